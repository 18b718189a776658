"""data.py prepare: another data root, whose training pairs are decoded and resized (section 4.1).

    python data.py prepare --preset paper --out DIR         # once
    python train.py --preset paper --data-root DIR          # reads it as any data root

Frames are resized to what training_image crops from, so the crops are equal to the bit; sounds are
cut or padded, at 16 kHz with 16 bits. A pair is 0.77 MB at 352 pixels and 10 s. Everything else
(validation, benchmarks, captions, pairs beyond --share) is linked, or copied where links are not
allowed. An interrupted run continues: what was made of files that have not changed is kept.
"""

import argparse
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import soundfile
from PIL import Image
from tqdm import tqdm

from data import VGGSound
from launch import between, is_made, overwritten, run_script, some_path, time_stamp, write_file
from media import RESIZE_BEFORE_CROP, SAMPLE_RATE, SampleError, read_audio, read_image
from model import PRESETS

PREPARED = 'prepared_from.txt'      # names the data root that a prepared one was made of


def prepare(root, out, image_size, seconds, share=1.0, skip_bad=False):
    """Write the data root `out`, made of `root`. -> how many training pairs it has

    ValueError where `out` holds anything else; SampleError: a pair cannot be read.
    """
    pairs = VGGSound(root, 'train', image_size, seconds, augmented=True, skip_bad=skip_bad)
    folder = Path(out, 'vggsound')
    marker = Path(out, PREPARED)
    source = str(Path(root).resolve())
    made_from = marker.read_text(encoding='utf-8') if marker.exists() else None
    if made_from != source and (made_from or folder.exists()):
        raise ValueError(f'{out} holds a dataset that was not prepared from {source}, and this '
                         'would overwrite it: name another --out')
    write_file(marker, source)
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    chosen = pairs.ids[:round(share * len(pairs))]
    need = len(chosen) * sum(file_bytes(pairs))
    free = shutil.disk_usage(folder).free
    print(f'{len(chosen):,} pairs will take {need / 1e9:,.2f} GB in {folder}; {free / 1e9:,.1f} GB '
          'are free')
    bad = set()
    prepare_one = partial(prepare_pair, pairs, folder)
    # closing cancels the pairs still to come after the first bad one, or after Ctrl-C
    with ThreadPoolExecutor() as pool, closing(pool.map(prepare_one, chosen)) as errors:
        for sample, error in zip(chosen, tqdm(errors, 'training pairs', len(chosen))):
            if error and not skip_bad:
                raise SampleError(f'{error}; or --skip-bad-samples leaves such pairs out')
            if error:
                tqdm.write(f'left out: {error}')
                bad.add(sample)
    prepared = set(chosen)
    for file in [*pairs.frames.iterdir(), *pairs.audio.iterdir()]:
        if file.stem not in prepared:
            link(file, folder / file.parent.name / file.name)
    if pairs.list.with_name('val.csv').exists():
        link(pairs.list.with_name('val.csv'), folder / 'val.csv')
    for entry in Path(root).iterdir():
        target = Path(out, entry.name)
        if entry.is_file() and not target.exists():
            shutil.copy2(entry, target)         # captions.jsonl too: a link would be written to
        elif entry.is_dir() and not is_own(entry):
            link(entry, target)
    ids = [i for i in pairs.ids if i not in bad]
    write_file(folder / 'train.csv', ''.join(f'{i}\n' for i in ids))
    return len(ids)


def file_bytes(pairs):
    """Bytes of a prepared frame, whose rows a BMP file pads to 4, and of a prepared sound."""
    side = int(RESIZE_BEFORE_CROP * pairs.image_size)
    return 54 + side * (-(-3 * side // 4) * 4), 44 + 2 * round(pairs.seconds * SAMPLE_RATE)


def is_own(folder):
    """Whether a folder of a data root is that root's alone: pairs, caches, stages, copies."""
    return (folder.name in ('vggsound', 'cache') or (folder / PREPARED).exists()
            or folder.name.endswith(('_captions', '.answers')))


def link(source, target):
    """A link to a file or folder, or a copy where the system allows no links (Windows, FAT)."""
    if target.exists() or target.is_symlink():
        return
    try:
        os.symlink(source.resolve(), target)
    except OSError:         # anything else that is wrong, a full disk say, the copy meets again
        copy_it = shutil.copytree if source.is_dir() else shutil.copy2
        copy_it(source, target)


def prepare_pair(pairs, folder, sample):
    """Write one pair below folder. -> None, or the SampleError of a file that cannot be read"""
    sources = pairs.files_of(sample)
    stamps = list(map(time_stamp, sources))     # before they are read
    targets = folder / f'frames/{sample}.bmp', folder / f'audio/{sample}.wav'
    if all(map(is_prepared, targets, stamps, file_bytes(pairs))):
        return None
    for source in sources:      # linked by an earlier start with a smaller --share
        (folder / source.parent.name / source.name).unlink(missing_ok=True)
    try:
        image = read_image(sources[0])
        wav = read_audio(sources[1], pairs.seconds)
    except SampleError as error:
        return error
    side = int(RESIZE_BEFORE_CROP * pairs.image_size)
    frame = io.BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(frame, 'BMP')
    write_file(targets[0], frame.getvalue(), stamp=stamps[0])
    wav = (wav * 2**15).round().clamp(-2**15, 2**15 - 1)            # resampling may overshoot
    sound = io.BytesIO()
    soundfile.write(sound, wav.short().numpy(), SAMPLE_RATE, format='WAV', subtype='PCM_16')
    write_file(targets[1], sound.getvalue(), stamp=stamps[1])
    return None


def is_prepared(target, stamp, size):
    """Whether a copy is of its source as it is now, and of this size: other presets have others."""
    return is_made(target, stamp) and target.stat().st_size == size


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('command', choices=['prepare'], help='the only one')
    add('--preset', choices=list(PRESETS), default='miniature', help='scale (default: miniature)')
    add('--data-root', type=some_path, help='folder of the datasets (default: the preset\'s)')
    add('--out', type=some_path, help='data root to write (default: prepared, in the data root)')
    add('--share', type=between(float, 1e-6, 1), default=1.0,
        help='decode this share of train.csv, its first lines (default: 1)')
    add('--skip-bad-samples', action='store_true', help='name and leave out unusable pairs')
    args = parser.parse_args(argv)
    config = PRESETS[args.preset]
    root = args.data_root or config.data_root
    out = args.out or Path(root, 'prepared')
    if sentence := overwritten([('--out', out)], [('--data-root', Path(root, 'vggsound'))]):
        parser.error(sentence)
    count = prepare(root, out, config.image_size, config.seconds, args.share, args.skip_bad_samples)
    print(f'{out}: {count} pairs, with links to {root} for what is not prepared; train.py '
          f'--data-root {out} reads them')


if __name__ == '__main__':
    run_script('data.py', main, 'interrupted; the same command goes on')

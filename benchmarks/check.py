"""Check the files of a data root before two days of training (section 4.1, Datasets).

    python -m benchmarks.check --preset paper           # without --preset: the miniature
    python -m benchmarks.check --preset paper --benchmarks vggsound vggss --json check.json

Opens every frame, sound, mask and list, without a model, and counts what is missing, unreadable or
suspicious. Most scores far below the paper's come from wrong frames or a wrong sampling rate. Many
equal or black frames mean that wrong frames were extracted; many silent or short sounds, that wrong
seconds were; long sounds, or headers unlike their data, that a rate was changed in the header only.

The exit code is 0 only if every file exists and is readable; suspicious files do not change it.
"""

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import BENCHMARKS
from benchmarks.lists import BenchmarkSample, boxes_out, files_of_root
from benchmarks.pairs import FRAMES, read_ids
from launch import (between, check_outputs, overwritten, run_script, sentence_for, some_path,
                    write_file)
from media import (SAMPLE_RATE, SOUNDS, SampleError, decode, file_of, mono, read_image, read_mask,
                   read_pickled_mask, wav_chunks)
from miniature import world
from model import PRESETS

# Samples in the paper and the releases. Videos vanish from the web, so everyone has fewer
EXPECTED = {'vggsound': 144_000, 'vggss': 5158, 'flickr': 250, 'is4': 6480, 'vpo_ss': 890,
            'vpo_ms': 2157, 'avs_s4': 3700, 'avs_ms3': 320, 'ade20k': 106, 'ext_vggss': 10_316,
            'ext_flickr': 500, 'robust_s4': 14_800, 'robust_ms3': 1280, 'vgg_instruments': 446,
            'vgg_duet': 5158}
BLACK = 8               # no pixel of a black frame is brighter, of 255
SILENT = 1e-3           # no sample of a silent sound is louder, full scale being 1
MARGIN = 0.5            # seconds by which a sound may be shorter or longer than the model's
UNCOMPRESSED = (1, 3, 0xFFFE)       # formats of a WAV: integers, floats, either with more channels
FEATURES_MB = 2.3       # of the published BEATs for 10 s in float16 (data.AudioFeatures)


# ============ One file ============

def look_at(job):
    """job: look_at_frame or the like, of one file. -> its findings, or {'error': a sentence}"""
    try:
        return job()
    except (OSError, SampleError) as error:         # OSError: of a disk with bad blocks
        return {'error': sentence_for(error)}


def look_at_frame(path):
    """-> {'size': (W, H), 'bytes', 'black', 'hash' of its pixels}"""
    image = read_image(path)
    pixels = np.asarray(image)
    return {'size': image.size, 'bytes': os.path.getsize(path), 'black': int(pixels.max()) <= BLACK,
            'hash': hashlib.md5(pixels.tobytes(), usedforsecurity=False).hexdigest()}


def look_at_sound(path, seconds):
    """-> {'rate', 'seconds' of sound, 'bytes', 'silent', 'short', 'long', 'unlike': bool}

    seconds: of sound, from the start, for the model. A sound that is shorter than its header states
    raises SampleError (decode).
    """
    sound, rate, stated = decode(path, seconds)                         # (channels, samples)
    length = (stated or sound.shape[1]) / rate                          # in seconds
    return {'rate': rate, 'seconds': length, 'bytes': os.path.getsize(path),
            'silent': mono(sound, path).abs().max().item() <= SILENT,
            'short': length < seconds - MARGIN, 'long': length > seconds + MARGIN,
            'unlike': header_unlike_data(path)}


def header_unlike_data(path):
    """Whether a WAV's rate contradicts its bytes a second, or its data go on after their end.

    Both come from programs that change the header and leave the sound as it is.
    """
    contradiction = False
    end = os.path.getsize(path)
    with open(path, 'rb') as file:
        for name, start, size in wav_chunks(file):
            end = start + size
            parts = file.read(14)
            if name == b'fmt ' and len(parts) == 14:        # fewer in a damaged one, at the end
                layout, _, rate, bytes_a_second, width = struct.unpack('<HHIIH', parts)
                contradiction = layout in UNCOMPRESSED and bytes_a_second != rate * width
    # fewer bytes after the last chunk than a chunk's head are padding
    return contradiction or os.path.getsize(path) - end >= 8


def look_at_mask(path, frame):
    """-> {}; SampleError where it is unreadable or differs from its frame in size"""
    if path.suffix == '.pkl':
        read_pickled_mask(path)
    else:
        size = read_image(frame).size if frame.is_file() else None
        read_mask(path, size)
    return {}


# ============ One set ============

def listed(name, root):
    """The samples of a set: a benchmark's, or VGGSound's training pairs. -> [BenchmarkSample]"""
    if name != 'vggsound':
        return BENCHMARKS[name](root)
    folder = root / 'vggsound'
    return [BenchmarkSample(i, [file_of(folder / 'frames', i, FRAMES)],
                            [file_of(folder / 'audio', i, SOUNDS)])
            for i in read_ids(folder / 'train.csv', training=True)]


def jobs_of(samples, seconds):
    """{file that exists: its job for look_at}"""
    jobs = {}
    for s in samples:
        jobs |= {path: partial(look_at_frame, path) for path in s.images}
        heard = seconds / 2 if s.stereo else seconds        # both channels, one after the other
        jobs |= {path: partial(look_at_sound, path, heard) for path in s.sounds}
        jobs |= {mask: partial(look_at_mask, mask, frame) for mask, frame in zip(s.masks, s.images)}
    return {path: job for path, job in jobs.items() if path.is_file()}


def count(name, samples, found):
    """found: {file: what look_at says of it}. -> {finding: count}, sentences about files"""
    missing = {'frame': [], 'sound': [], 'mask': []}        # the first missing file of each sample
    for s in samples:
        for files, absent in zip((s.images, s.sounds, s.masks), missing.values()):
            absent += [path for path in files if path not in found][:1]
    errors = [result['error'] for result in found.values() if 'error' in result]
    errors = list(dict.fromkeys(errors))        # an unreadable frame is that of its masks, too
    frames = [result for result in found.values() if 'hash' in result]
    sounds = [result for result in found.values() if 'rate' in result]
    counts = {
        'samples': len(samples), 'samples in the paper': EXPECTED[name],
        **{f'samples without {kind}': len(absent) for kind, absent in missing.items()},
        'unreadable files, and masks unlike their frame': len(errors),
        'black frames': sum(frame['black'] for frame in frames),
        'frames equal to another': len(frames) - len({frame['hash'] for frame in frames}),
        'sizes of frames': len({frame['size'] for frame in frames}),
        'silent sounds': sum(sound['silent'] for sound in sounds),
        'sounds shorter than the model hears': sum(sound['short'] for sound in sounds),
        'sounds longer than the model hears': sum(sound['long'] for sound in sounds),
        'headers unlike the sound': sum(sound['unlike'] for sound in sounds),
        'sounds not at 16 kHz': sum(sound['rate'] != SAMPLE_RATE for sound in sounds),
        'boxes out of frame': sum(boxes_out(s) for s in samples),
        'hours of sound': sum(sound['seconds'] for sound in sounds) / 3600,
        'GB of frames and sounds on disk': sum(result['bytes'] for result in frames + sounds) / 1e9}
    absent = dict.fromkeys(sum(missing.values(), []))           # a sound may serve several samples
    return counts, [f'{path} is missing' for path in absent] + errors


def check(names, root, seconds, workers=1):
    """-> {set: {finding: count}}, {set: sentences about what is missing or unreadable}

    A file that several sets share is opened once.
    """
    counts = {}
    sentences = {}
    found = {}
    began = time.time()
    with ThreadPoolExecutor(workers) as pool:
        for name in names:
            try:
                samples = listed(name, root)
            except (OSError, ValueError) as error:
                counts[name] = {'unreadable lists': 1, 'samples in the paper': EXPECTED[name]}
                sentences[name] = [sentence_for(error)]
                continue
            jobs = jobs_of(samples, seconds)
            new = {path: job for path, job in jobs.items() if path not in found}
            looked = pool.map(look_at, new.values())
            results = list(tqdm(looked, name, len(new), disable=not new))
            found |= zip(new, results)
            of_set = {path: found[path] for path in jobs}
            counts[name], sentences[name] = count(name, samples, of_set)
    spent = time.time() - began
    print(f'{len(found):,} files in {spent:,.0f} s by {workers} threads')
    pairs = counts.get('vggsound', {}).get('samples')
    if pairs and found:
        counts['vggsound'] |= {
            'hours to read an epoch at this speed': 2 * pairs * spent / len(found) / 3600,
            "GB of the paper's features (--cache-audio)": pairs * FEATURES_MB / 1000}
    return counts, sentences


# ============ The command line ============

def main(argv=None):
    parser = argparse.ArgumentParser('python -m benchmarks.check', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--preset', choices=list(PRESETS), default='miniature', help='default: miniature')
    add('--data-root', type=some_path, help="default: the preset's")
    add('--benchmarks', nargs='+', choices=list(EXPECTED), default=list(EXPECTED), metavar='NAME',
        help=f'default: all of {", ".join(EXPECTED)}')
    add('--workers', type=between(int, 1), default=os.cpu_count() or 1,
        help='threads (default: one per core)')
    add('--examples', type=between(int, 0), default=3,
        help='sentences about files of each set (default: 3)')
    add('--json', type=some_path, help='write the counts and all sentences here')
    args = parser.parse_args(argv)
    config = PRESETS[args.preset]
    root = Path(args.data_root or config.data_root)
    if sentence := overwritten([('--json', args.json)], files_of_root(root)):
        parser.error(sentence)
    check_outputs([args.json], [])
    if args.preset == 'miniature' and not args.data_root:
        world.build(root)                               # unless it is there
    counts, sentences = check(args.benchmarks, root, config.seconds, args.workers)
    for name, several in sentences.items():
        for sentence in several[:args.examples]:
            print(f'{name}: {sentence}', file=sys.stderr)
    if args.json:
        write_file(args.json, json.dumps({'counts': counts, 'sentences': sentences}, indent=1))
    for name, found in counts.items():
        print(name)
        for finding, number in found.items():
            text = f'{number:,}' if isinstance(number, int) else f'{number:,.2f}'
            if number:
                print(f'{text:>11} {finding}')
    free = shutil.disk_usage(root if root.exists() else '.').free
    print(f'{free / 1e9:,.0f} GB are free below {root}')
    return 1 if any(sentences.values()) else 0


if __name__ == '__main__':
    run_script('benchmarks.check', main, 'interrupted')

"""data.py prepare: another data root, which is read as the first one is, to the bit."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import media
from data import SampleError, VGGSound
from speed import prepare as prepared
from tiny import LARGE, SECONDS, SIZE, TRAIN, VAL, name, write_root

NAMES = [name(n) for n in range(TRAIN)]


@pytest.fixture
def root(tmp_path):
    """The data root of tiny.py, with some of what else lies in one."""
    folder = write_root(tmp_path / 'data')
    (folder / 'captions.jsonl').write_text('captions')
    for file in ('vggss/vggss.json', 'cache/beats/x.npy'):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text('mine')
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def prepare(root, out, **more):
    return prepared.prepare(root, out, SIZE, SECONDS, **more)


def pairs(root, split='train', **more):
    return VGGSound(root, split, SIZE, SECONDS, augmented=split == 'train', **more)


def assert_same_samples(root, out, split='train'):
    one, other = pairs(root, split), pairs(out, split)
    assert one.ids == other.ids
    for k in range(len(one)):
        for key in ('image', 'wav'):
            assert torch.equal(one[k][key], other[k][key]), (one.ids[k], key)


def test_crops_and_sounds_are_the_same_to_the_bit_and_all_else_is_linked(root, tmp_path, capsys):
    before = contents(root)
    out = tmp_path / 'out'
    assert prepare(root, out) == TRAIN
    assert f'12 pairs will take 0.00 GB in {out}' in capsys.readouterr().out
    assert_same_samples(root, out)
    assert_same_samples(root, out, 'val')
    # no cache; the captions are a copy, as a link would be written to
    assert sorted(os.listdir(out)) == ['captions.jsonl', prepared.PREPARED, 'vggsound', 'vggss']
    assert not (out / 'captions.jsonl').is_symlink()
    assert (out / 'vggss').is_symlink() and (out / 'vggss/vggss.json').read_text() == 'mine'
    validation = name(TRAIN)
    for file in ('val.csv', f'frames/{validation}.jpg', f'audio/{validation}.wav'):
        assert (out / 'vggsound' / file).is_symlink()
    assert contents(root) == before
    frame, sound = (os.path.getsize(out / f'vggsound/{file}')
                    for file in (f'frames/{NAMES[1]}.bmp', f'audio/{NAMES[1]}.wav'))
    assert (frame, sound) == prepared.file_bytes(pairs(root))


def test_large_frames_and_sounds_of_any_rate_are_cut_to_what_training_reads(root, tmp_path):
    folder = root / 'vggsound'
    picture = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    Image.fromarray(picture).save(folder / f'frames/{NAMES[0]}.jpg')
    loud = np.sign(np.sin(np.arange(88_200) / 20))          # overshoots when it is resampled
    (folder / f'audio/{NAMES[0]}.wav').unlink()
    soundfile.write(folder / f'audio/{NAMES[0]}.flac', np.stack([loud, loud], 1), 44_100)
    prepare(root, tmp_path / 'out')
    one, other = pairs(root)[0], pairs(tmp_path / 'out')[0]
    assert torch.equal(one['image'], other['image'])
    assert one['wav'].abs().max() > 1 and one['wav'].shape == other['wav'].shape
    assert (other['wav'] - one['wav'].clamp(-1, 1 - 2**-15)).abs().max() <= 2**-16
    with Image.open(tmp_path / f'out/vggsound/frames/{NAMES[0]}.bmp') as frame:
        assert frame.size == (LARGE, LARGE)


def test_a_second_start_makes_only_what_is_missing_or_of_a_changed_source_or_another_size(
        root, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    prepare(root, out)
    made = []
    monkeypatch.setattr(prepared, 'read_audio', lambda path, seconds: made.append(path.stem)
                        or media.read_audio(path, seconds))
    prepare(root, out)
    assert made == []
    (out / f'vggsound/audio/{NAMES[1]}.wav').unlink()
    (out / f'vggsound/frames/{NAMES[2]}.bmp').unlink()
    (out / f'vggsound/frames/{NAMES[3]}.bmp').write_bytes(b'BM truncated')
    Image.new('RGB', (50, 50)).save(root / f'vggsound/frames/{NAMES[4]}.jpg')
    os.utime(root / f'vggsound/audio/{NAMES[5]}.wav', ns=(5, 5))    # replaced by an older file
    (out / f'vggsound/audio/{NAMES[6]}.wav.partial7').write_bytes(b'killed while it was written')
    (out / 'vggsound/train.csv').unlink()
    prepare(root, out)
    assert sorted(made) == NAMES[1:6]
    assert_same_samples(root, out)
    made.clear()
    prepared.prepare(root, out, 64, SECONDS)                    # another preset's frames
    prepared.prepare(root, out, 64, 0.25)                       # and sounds
    assert sorted(made) == sorted(2 * NAMES)


def test_a_share_is_prepared_the_rest_linked_and_a_larger_share_harms_no_sound(root, tmp_path):
    before = contents(root)
    out = tmp_path / 'out'
    folder = out / 'vggsound'
    for share, count in ((0.5, 6), (0.25, 6), (0.75, 9), (1, 12)):
        assert prepare(root, out, share=share) == TRAIN
        assert contents(root) == before                     # links lead there
        assert_same_samples(root, out)
        assert len(list(folder.glob('frames/*.bmp'))) == count
        assert not (folder / f'frames/{NAMES[0]}.jpg').exists()
    assert not any((folder / f'audio/{i}.wav').is_symlink() for i in NAMES)
    assert pairs(out).files_of(NAMES[-1])[0].suffix == '.bmp'


def test_a_system_without_links_copies(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1314, 'A required privilege is not held by the client')

    monkeypatch.setattr(os, 'symlink', refuse)
    out = tmp_path / 'out'
    prepare(root, out, share=0.5)
    prepare(root, out)
    assert_same_samples(root, out)
    assert_same_samples(root, out, 'val')
    assert not any(path.is_symlink() for path in out.rglob('*'))
    assert (out / 'vggss/vggss.json').read_text() == 'mine'
    assert len(list((out / 'vggsound/frames').iterdir())) == TRAIN + VAL


def test_the_first_bad_pair_ends_it_or_bad_ones_are_named_and_left_out(root, tmp_path, capsys,
                                                                       monkeypatch):
    (root / f'vggsound/frames/{NAMES[0]}.jpg').write_bytes(b'no picture')
    (root / f'vggsound/audio/{NAMES[7]}.wav').unlink()
    with pytest.raises(ValueError, match=f'1 of 12 samples .*{NAMES[7]}.*--skip-bad-samples'):
        prepare(root, tmp_path / 'a')
    (root / 'vggsound/train.csv').write_text('\n'.join(i for i in NAMES if i != NAMES[7]))
    gate = threading.Event()            # the others wait until the bad pair has been met
    prepare_pair = prepared.prepare_pair

    def wait_and_prepare(pairs, folder, sample):
        assert sample == NAMES[0] or gate.wait(60)
        return prepare_pair(pairs, folder, sample)

    monkeypatch.setattr(prepared, 'prepare_pair', wait_and_prepare)
    monkeypatch.setattr(prepared, 'ThreadPoolExecutor', partial(OneThread, gate))
    with pytest.raises(SampleError, match=f'{NAMES[0]}.jpg is not a rea.*--skip-bad-samples'):
        prepare(root, tmp_path / 'b')
    assert len(list((tmp_path / 'b/vggsound/frames').iterdir())) < 2        # not all the others
    assert not (tmp_path / 'b/vggsound/train.csv').exists()
    (root / 'vggsound/train.csv').write_text('\n'.join(NAMES))
    assert prepare(root, tmp_path / 'c', skip_bad=True) == 10
    assert f'left out: {root}/vggsound/frames/{NAMES[0]}.jpg' in capsys.readouterr().out
    assert pairs(tmp_path / 'c').ids == [*NAMES[1:7], *NAMES[8:]]


class OneThread(ThreadPoolExecutor):
    def __init__(self, gate):
        super().__init__(1)
        self.gate = gate

    def shutdown(self, *given, **more):
        self.gate.set()
        super().shutdown(*given, **more)


def test_a_full_disk_ends_it_and_the_same_command_goes_on(root, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='cannot write .*No space left on device.: free some'):
            prepare(root, tmp_path / 'out')
    assert not list(tmp_path.glob('out/vggsound/*/*'))
    prepare(root, tmp_path / 'out')
    assert_same_samples(root, tmp_path / 'out')


def test_the_folders_that_are_read_are_never_written(root, tmp_path):
    before = contents(root)
    link = tmp_path / 'link'
    for out, inner in ((root, ''), (link, ''), (tmp_path / 'a', 'vggsound'),
                       (tmp_path / 'b', 'vggsound/audio')):
        if inner or out == link:
            (out / inner).parent.mkdir(parents=True, exist_ok=True)
            (out / inner).symlink_to(root / inner)
        with pytest.raises(ValueError, match='name another --out'):
            prepare(root, out)
    assert contents(root) == before


def test_a_folder_that_prepare_has_not_written_is_never_overwritten(root, tmp_path):
    other = shutil.copytree(root, tmp_path / 'backup')
    before = contents(other)
    with pytest.raises(ValueError, match='backup holds a dataset that was not .* from .*/data,'):
        prepare(root, other)
    assert contents(other) == before
    prepare(root, tmp_path / 'out')
    with pytest.raises(ValueError, match='out holds a dataset that was not .* from .*/backup,'):
        prepare(other, tmp_path / 'out')


# ---- the command line

def test_the_command_writes_into_the_root_unless_told_and_reads_the_preset_s_sizes(root, tmp_path,
                                                                                   capsys):
    prepared.main(['prepare', '--data-root', str(root), '--share', '0.5'])
    out = root / 'prepared'
    assert f'{out}: 12 pairs, with links to' in capsys.readouterr().out
    assert not (out / 'prepared').exists() and len(list(out.glob('vggsound/frames/*.bmp'))) == 6
    prepared.main(['prepare', '--data-root', str(root)])        # again, with itself inside
    assert not (out / 'prepared').exists()
    prepared.main(['prepare', '--data-root', str(root), '--out', str(tmp_path / 'x'), '--preset',
               'paper', '--share', '0.1'])
    for folder, side, samples in ((out, 105, 32_000), (tmp_path / 'x', 387, 160_000)):
        with Image.open(folder / f'vggsound/frames/{NAMES[0]}.bmp') as frame:
            assert frame.size == (side, side)
        assert soundfile.info(folder / f'vggsound/audio/{NAMES[0]}.wav').frames == samples


def test_without_a_root_the_preset_s_is_prepared(monkeypatch):
    asked = []
    monkeypatch.setattr(prepared, 'prepare', lambda *given: asked.append(given) or 0)
    prepared.main(['prepare'])
    prepared.main(['prepare', '--preset', 'paper', '--share', '0.5', '--skip-bad-samples'])
    folder = Path(media.__file__).parent / 'data'
    assert asked == [
        (str(folder / 'miniature'), folder / 'miniature/prepared', 96, 2, 1.0, False),
        (str(folder), folder / 'prepared', 352, 10, 0.5, True)]


@pytest.mark.parametrize('options, words', [
    (['--share', '0'], 'argument --share: must be 1e-06 to 1, not 0'),
    (['--share', 'nan'], '--share: must be'), (['--share', '1.5'], '--share: must be'),
    (['--out', ''], 'argument --out: the path is empty'),
    (['--data-root', ' '], 'argument --data-root: the path is empty'),
    (['--data-root', 'd', '--out', 'd/vggsound'], '--out would overwrite --data-root'),
    (['--data-root', 'd', '--out', 'd/vggsound/x'], '--out would overwrite --data-root')])
def test_what_cannot_be_meant_is_refused(options, words, capsys):
    with pytest.raises(SystemExit) as end:
        prepared.main(['prepare', *options])
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_a_copy_within_the_data_root_is_not_linked_into_itself_or_into_another_one(root):
    for name in ('small', 'smaller', 'small'):
        prepare(root, root / name)
        assert sorted(os.listdir(root / name)) == ['captions.jsonl', prepared.PREPARED, 'vggsound',
                                                   'vggss']

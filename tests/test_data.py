"""The loader on what real disks hold: odd audio, broken pictures, strange boxes, wrong lists."""

import functools
import json
import os
import shutil
import signal
import sys
import wave

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import benchmarks
import data
import media
from conftest import send_from_a_third_process


def write(path, samples, rate=16000, **more):
    soundfile.write(path, samples, rate, **more)
    return path


def tone(seconds, rate, hertz=440.0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


# ---- sound

@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'mp3'])
@pytest.mark.parametrize('rate', [8000, 16000, 44100])
def test_any_format_and_rate_gives_the_same_tone(tmp_path, suffix, rate):
    wav = data.read_audio(write(tmp_path / f'a.{suffix}', tone(2, rate), rate), 2.0)
    assert wav.shape == (32000,) and wav.dtype == torch.float32
    middle = wav[4000:28000]                                            # codecs fade at the ends
    peak = torch.fft.rfft(middle).abs().argmax() * 16000 / len(middle)
    assert peak.item() == pytest.approx(440, abs=2)
    assert middle.abs().max().item() == pytest.approx(0.5, abs=0.08)


def test_stereo_is_mixed_to_the_mean(tmp_path):
    left = tone(1, 16000)
    wav = data.read_audio(write(tmp_path / 'a.wav', np.stack([left, np.zeros_like(left)], 1)), 1.0)
    assert torch.allclose(wav, torch.from_numpy(left) / 2, atol=1e-3)


def test_long_sounds_are_cut_and_short_ones_zero_padded(tmp_path):
    samples = tone(3, 16000)
    path = write(tmp_path / 'a.wav', samples)
    assert torch.allclose(data.read_audio(path, 1.0), torch.from_numpy(samples[:16000]), atol=1e-3)
    padded = data.read_audio(path, 10.0)
    assert padded.shape == (160000,)
    assert padded[48000:].abs().max() == 0
    assert padded[:48000].abs().max() > 0.4


def test_every_bad_sound_is_one_sentence_with_its_path(tmp_path):
    good = write(tmp_path / 'good.wav', tone(1, 16000)).read_bytes()
    (tmp_path / 'cut.wav').write_bytes(good[:len(good) // 2])
    (tmp_path / 'text.wav').write_text('not a sound')
    (tmp_path / 'nothing.wav').write_bytes(b'')
    with wave.open(str(tmp_path / 'empty.wav'), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    write(tmp_path / 'nan.wav', np.array([0.1, np.nan], np.float32), subtype='FLOAT')
    for name, word in (('cut', 'cut short'), ('text', 'not a readable sound'),
                       ('nothing', 'not a readable sound'), ('empty', 'zero samples'),
                       ('nan', 'not numbers'), ('absent', 'missing')):
        with pytest.raises(data.SampleError, match=word) as error:
            data.read_audio(tmp_path / f'{name}.wav', 1.0)
        assert f'{name}.wav' in str(error.value) and '\n' not in str(error.value)


# ---- frames and boxes

def test_broken_pictures_are_named(tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'\xff\xd8\xff\xe0 truncated')
    for name in ('bad.jpg', 'absent.jpg'):
        with pytest.raises(data.SampleError, match=name):
            data.read_image(tmp_path / name)


def test_training_frames_are_crops_that_repeat_with_their_seed():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    one, same, other = (media.training_image(picture, 96, torch.Generator().manual_seed(seed))
                        for seed in (0, 0, 1))
    assert one.shape == (3, 96, 96)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_normalise_and_back():
    picture = np.arange(768).astype(np.uint8).reshape(16, 16, 3)        # all values of each colour
    assert (media.displayable(media.normalise(picture)) == picture).all()


def test_boxes_are_clipped_and_truncated_and_odd_ones_stay_harmless():
    filled = media.box_map([[0.0, 0.5, 0.501, 1.2]])
    assert filled[112:, :112].all() and filled.sum() == 112 * 112       # 0.501 x 224 = 112.2 -> 112
    filled = media.box_map([[-0.1, -0.2, 0.5, 0.25]])
    assert filled[:56, :112].all() and filled.sum() == 56 * 112
    assert media.box_map([[-2.9e16, 0.1, -1.0, 0.9], [0.5, 0.5, 0.5, 0.9]]).sum() == 0


# ---- sets

def test_small_world_reads_as_vggsound_and_its_benchmarks(small_world):
    train = data.VGGSound(small_world, 'train', 96, 2.0, augmented=True)
    sample = train[0]
    assert sample['image'].shape == (3, 96, 96) and sample['wav'].shape == (32000,)
    for name in ('vggss', 'is4'):
        test = data.Benchmark(name, small_world, 96, 2.0)
        assert len(test) == test.expected == 16 and not test.missing
        for one in (test[i] for i in range(len(test))):
            inside = one['mask'].bool()
            # the mask lies in its box, but for the rounding of 96 pixels to 224
            assert inside[one['boxes'] == 0].float().mean() < 0.01 and inside.any()


def test_a_sample_s_augmentation_depends_on_seed_epoch_and_index_only(small_world):
    one, same, other = (data.VGGSound(small_world, 'train', 96, 2.0, augmented=True, seed=seed)
                        for seed in (0, 0, 1))
    one[3]
    assert torch.equal(one[7]['image'], same[7]['image'])
    assert not torch.equal(one[7]['image'], other[7]['image'])
    same.epoch = 1
    assert not torch.equal(one[7]['image'], same[7]['image'])
    batches = data.epoch_batches(len(one), 8, 0, 0)[:2]
    plain, workers = (list(data.loader(one, n, batch_sampler=batches)) for n in (0, 2))
    assert all(torch.equal(a['image'], b['image']) for a, b in zip(plain, workers))


class Whoami(torch.utils.data.Dataset):
    """Each sample is the number of the process that reads it."""

    def __getitem__(self, index):
        return {'id': str(os.getpid())}


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells who sent a signal')
def test_no_signal_but_the_trainer_s_ends_a_loading_process():
    block = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, block)            # as train.py does
    try:
        loader = data.loader(Whoami(), 1, batch_sampler=[[k] for k in range(30)])
        batches = iter(loader)
        reader = int(next(batches)['id'][0])
        assert reader != os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            send_from_a_third_process(number, reader)
        # far beyond what it had read ahead
        assert [int(batch['id'][0]) for batch in batches] == 29 * [reader]
        del batches                     # the reader ends, or this would wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_loading_processes_start_by_fork_on_linux_whatever_python_s_default():
    expected = 'fork' if sys.platform == 'linux' else None
    assert data.loader([0]).multiprocessing_context is None
    context = data.loader([0], 1).multiprocessing_context
    assert (context and context.get_start_method()) == expected


def test_epoch_batches_split_a_global_batch_and_drop_the_rest():
    whole = data.epoch_batches(50, 8, seed=3, epoch=1)
    parts = [data.epoch_batches(50, 8, seed=3, epoch=1, rank=r, processes=2) for r in (0, 1)]
    assert len(whole) == 6 and all(sorted(a + b) == sorted(w) for a, b, w in zip(*parts, whole))
    seen = [i for batch in whole for i in batch]
    assert len(set(seen)) == 48 and whole != data.epoch_batches(50, 8, seed=3, epoch=2)


def test_a_list_that_names_absent_files_is_refused_or_counted(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    names = data.read_ids(root / 'vggsound/train.csv')
    (root / f'vggsound/audio/{names[0]}.wav').unlink()
    with pytest.raises(ValueError, match=f'1 of {len(names)} samples.*{names[0]}'):
        data.VGGSound(root, 'train', 96, 2.0)
    kept = data.VGGSound(root, 'train', 96, 2.0, skip_bad=True)
    assert len(kept) == len(names) - 1 and kept.absent == [names[0]]
    (root / 'vggsound/val.csv').write_text(f'{names[1]}\n{names[0]}\n')
    _, validation = data.open_pairs(root, 96, 2.0, 0, skip_bad=True)
    assert (validation.ids, validation.absent) == ([names[1]], [names[0]])
    (root / 'vggsound/train.csv').write_text('\n'.join(names[::-1]))
    other = data.VGGSound(root, 'train', 96, 2.0, skip_bad=True)
    assert set(other.ids) == set(kept.ids) and other.checksum != kept.checksum  # another order


def test_in_training_alone_the_next_pair_stands_in_for_an_unreadable_one(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    *_, last = data.read_ids(root / 'vggsound/train.csv')
    (root / f'vggsound/frames/{last}.jpg').write_bytes(b'no picture')
    pairs = data.VGGSound(root, 'train', 96, 2.0, augmented=True, skip_bad=True)
    found = pairs[len(pairs) - 1]
    assert found['id'] == pairs.ids[0] and len(found['unreadable']) == 1    # after the last
    for augmented, skip_bad in ((True, False), (False, True)):
        pairs = data.VGGSound(root, 'train', 96, 2.0, augmented, skip_bad=skip_bad)
        found = pairs[len(pairs) - 1]
        assert found['id'] == last and 'in a row' not in str(found['error'])
        assert ('or --skip-bad-samples' in str(found['error'])) != skip_bad


def test_sounds_of_another_format_are_found_by_their_id(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    name = data.read_ids(root / 'vggsound/train.csv')[2]
    wav = root / f'vggsound/audio/{name}.wav'
    samples, rate = soundfile.read(wav)
    soundfile.write(wav.with_suffix('.flac'), samples, rate)
    expected = data.VGGSound(root, 'train', 96, 2.0)[2]['wav']
    wav.unlink()
    assert torch.equal(data.VGGSound(root, 'train', 96, 2.0)[2]['wav'], expected)


@pytest.mark.parametrize('text', [
    '[]', '{', '{"a": 1}', '[{"file": "a"}]', '[{"file": "a", "bbox": [["x", 0, 1, 1]]}]',
    '[{"bbox": [[0, 0, 1, 1]]}]', '[3]'])
def test_odd_annotation_files_are_named(tmp_path, text):
    (tmp_path / 'vggss').mkdir()
    (tmp_path / 'vggss/vggss.json').write_text(text)
    with pytest.raises(ValueError, match='vggss.json.*fetch it again'):
        benchmarks.list_vggss(tmp_path)


def test_labels_with_commas_and_lists_of_ids_only(tmp_path):
    (tmp_path / 'a.csv').write_text('\ufeffx_000001,"rowboat, canoe, kayak rowing"\r\ny_000002\n\n')
    assert data.read_ids(tmp_path / 'a.csv') == ['x_000001', 'y_000002']


def test_evaluation_counts_what_is_missing(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    listed = json.loads((root / 'vggss/vggss.json').read_text())
    (root / f'vggss/frames/{listed[0]["file"]}.jpg').unlink()
    test = data.Benchmark('vggss', root, 96, 2.0)
    assert (len(test), test.expected, test.missing) == (15, 16, [listed[0]['file']])


def test_errors_travel_beside_the_good_samples():
    good = {'id': 'a', 'image': torch.zeros(3, 2, 2), 'mask': None}
    bad = {'id': 'b', 'error': data.SampleError('b is bad')}
    batch = data.collate([good, bad])
    assert batch['id'] == ['a'] and batch['image'].shape == (1, 3, 2, 2) and batch['mask'] == [None]
    assert [str(e) for e in batch['errors']] == ['b is bad']


@pytest.mark.skipif(sys.platform != 'linux', reason='a patched torch does not travel by spawn')
def test_a_full_shared_memory_ends_the_loading_with_an_error(small_world, monkeypatch):
    def full(*_, **__):
        raise RuntimeError('unable to allocate shared memory(shm)')

    pairs = data.VGGSound(small_world, 'train', 96, 2.0)
    monkeypatch.setattr(data, 'DataLoader', functools.partial(data.DataLoader, timeout=30))
    monkeypatch.setattr(torch.UntypedStorage, '_share_fd_cpu_', full)
    with pytest.raises(RuntimeError, match='unable to allocate'):
        next(iter(data.loader(pairs, workers=1, batch_size=2)))

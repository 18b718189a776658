"""--cache-audio: E_A's features from disk are those that it computes; nothing old is served."""

import collections
import copy
import io
import multiprocessing
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch

import data
import media
from beats import BEATs
from conftest import assert_equal
from data import AudioFeatures, VGGSound
from launch import time_stamp, write_file
from tiny import (SECONDS, SIZE, TRAIN, name, number, tiny, tiny_beats,        # noqa: F401
                  tiny_clipseg, tiny_root, training, watch, write_root)

NAMES = [name(n) for n in range(TRAIN)]
CPU = torch.device('cpu')


@pytest.fixture
def pairs(tmp_path):
    return VGGSound(write_root(tmp_path / 'data'), 'train', SIZE, SECONDS, augmented=True)


@pytest.fixture
def beats(monkeypatch):
    """The tiny E_A. beats.heard: how many sounds it was given in each call"""
    encoder = copy.deepcopy(tiny_beats())
    encoder.heard = []

    def forward(wav):
        encoder.heard.append(len(wav))
        return type(encoder).forward(encoder, wav)

    monkeypatch.setattr(encoder, 'forward', forward)
    return encoder


def opened(folder, beats, pairs, seconds=SECONDS, share=1.0):
    pairs.features = AudioFeatures(folder, beats, seconds, pairs.ids[:round(share * TRAIN)])
    return pairs.features


def complete(pairs, beats, indices):
    """As a training step does. -> (B, T, 3 * width)"""
    batch = data.collate([pairs[k] for k in indices])
    return pairs.features.of_batch(batch, beats, CPU)


def sound_of(pairs, index):
    return data.read_audio(pairs.files_of(pairs.ids[index])[1], SECONDS)


def files(folder):
    return sorted(path.relative_to(folder).name for path in folder.rglob('*') if path.is_file())


def test_the_first_epoch_computes_and_keeps_and_the_next_ones_read_the_same_numbers(
        tmp_path, pairs, beats):
    opened(tmp_path / 'cache', beats, pairs)
    first = complete(pairs, beats, [4, 1, 5])
    wav = torch.stack([sound_of(pairs, k) for k in (4, 1, 5)])
    assert torch.equal(first, type(beats).forward(beats, wav).half().float())
    assert files(tmp_path / 'cache') == [f'{NAMES[k]}.npy' for k in (1, 4, 5)]
    mixed = complete(pairs, beats, [5, 2, 4, 0])            # two from disk, each in its place
    assert beats.heard == [3, 2] and mixed.dtype == torch.float32
    assert torch.equal(mixed[[0, 2]], first[[2, 0]])
    assert not torch.equal(mixed[1], mixed[3])
    assert torch.equal(complete(pairs, beats, [0, 2, 4, 5]), mixed[[3, 1, 2, 0]])
    assert beats.heard == [3, 2]
    size = (tmp_path / 'cache').rglob(f'{NAMES[0]}.npy').__next__().stat().st_size
    assert size == 128 + 2 * mixed[0].numel()               # NumPy's header, float16


def test_a_sound_is_not_decoded_where_its_features_are_cached(tmp_path, pairs, beats, monkeypatch):
    opened(tmp_path / 'cache', beats, pairs)
    complete(pairs, beats, [1, 3])
    read = []
    monkeypatch.setattr(data, 'read_audio', lambda path, seconds: read.append(path.stem)
                        or media.read_audio(path, seconds))
    batch = data.collate([pairs[k] for k in (3, 2, 1)])
    assert read == [NAMES[2]] and [wav.any().item() for wav in batch['wav']] == [False, True, False]


@pytest.mark.parametrize('content', ['', 'truncated', 'header', 'bracket', 'text', 'pickle', 'zip',
                                     'folder', 'shape', 'type'])
def test_a_damaged_or_foreign_file_counts_as_absent_and_is_written_again(tmp_path, pairs, beats,
                                                                         content):
    features = opened(tmp_path / 'cache', beats, pairs)
    expected = complete(pairs, beats, [0, 1])
    path = features.folder / f'{NAMES[0]}.npy'
    good = path.read_bytes()
    path.unlink()
    archive = io.BytesIO()
    np.savez(archive, np.ones(3))
    arrays = {'shape': io.BytesIO(), 'type': io.BytesIO()}
    np.save(arrays['shape'], np.load(io.BytesIO(good))[:-1])
    np.save(arrays['type'], np.load(io.BytesIO(good)).astype('V2'))
    contents = {'': b'', 'truncated': good[:-2], 'header': good[:60],
                'bracket': good.replace(b')', b' ', 1), 'text': b'no features',
                'pickle': pickle.dumps({'x': 1}), 'zip': archive.getvalue(),
                **{name: file.getvalue() for name, file in arrays.items()}}
    if content == 'folder':
        path.mkdir()
    else:
        path.write_bytes(contents[content])
    stamp = pairs.files_of(NAMES[0])[1].stat().st_mtime_ns
    os.utime(path, ns=(stamp, stamp))           # or it would be out of date, whatever it holds
    for _ in range(2):
        assert torch.equal(complete(pairs, beats, [0, 1]), expected)
    if content in contents:
        assert path.read_bytes() == good and beats.heard == [2, 1]


def test_a_sound_that_has_changed_is_heard_again(tmp_path, pairs, beats):
    opened(tmp_path / 'cache', beats, pairs)
    before = complete(pairs, beats, range(4))
    sound = pairs.files_of(NAMES[2])[1]
    stamp = sound.stat().st_mtime_ns - 2 * 10**6            # older, if only by 2 ms
    samples, rate = soundfile.read(sound, dtype='int16')
    soundfile.write(sound, samples[::-1].copy(), rate, subtype='PCM_16')
    os.utime(sound, ns=(stamp, stamp))
    after = complete(pairs, beats, range(4))
    assert beats.heard == [4, 1] and torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    fresh = type(beats).forward(beats, sound_of(pairs, 2)[None])[0]
    assert torch.equal(after[2], fresh.half().float()) and not torch.equal(after[2], before[2])


def test_a_sound_that_is_replaced_while_it_is_heard_is_heard_again(tmp_path, pairs, beats):
    features = opened(tmp_path / 'cache', beats, pairs)
    batch = data.collate([pairs[k] for k in range(3)])
    sounds = [pairs.files_of(NAMES[k])[1] for k in range(3)]
    shutil.copyfile(sounds[0], sounds[1])       # its features are of the old sound
    moved = sounds[2].rename(tmp_path / 'away.wav')
    features.of_batch(batch, beats, CPU)
    moved.rename(sounds[2])
    after = complete(pairs, beats, range(3))
    assert beats.heard == [3, 1] and torch.equal(after[0], after[1])


# of 2020, of 1969, of 1970, of 2100
@pytest.mark.parametrize('stamp', [1_600_000_001_234_567_890, -1_234_567_890, 0, 41 * 10**17])
def test_disks_that_keep_whole_seconds_serve_features_and_those_without_stamps_say_so(
        tmp_path, pairs, beats, monkeypatch, capsys, stamp):
    sound = pairs.files_of(NAMES[0])[1]
    os.utime(sound, ns=(stamp, stamp))
    utime = os.utime
    seconds = stamp // 10**9 * 10**9
    monkeypatch.setattr(os, 'utime', lambda path, ns: utime(path, ns=(seconds, seconds)))
    opened(tmp_path / 'cache', beats, pairs)
    for _ in range(2):
        complete(pairs, beats, [0])
    assert beats.heard == [1] and capsys.readouterr().out == ''
    monkeypatch.setattr(os, 'utime', lambda path, ns: None)
    opened(tmp_path / 'other', beats, pairs)
    for _ in range(2):
        complete(pairs, beats, [0, 1])
    assert beats.heard == [1, 2, 2]
    assert capsys.readouterr().out.count('does not keep their time stamps') == 1


def test_other_weights_another_length_or_format_have_a_folder_of_their_own(tmp_path, pairs, beats,
                                                                           monkeypatch):
    def folder(encoder=beats, seconds=SECONDS):
        return AudioFeatures(tmp_path, encoder, seconds, pairs.ids).folder

    other = copy.deepcopy(tiny_beats())
    list(other.parameters())[-1].data[0] += 1e-3
    layers = copy.deepcopy(tiny_beats())
    layers.feature_layers = (1, 1, 3)
    folders = [folder(), folder(other), folder(layers), folder(seconds=1.0),
               folder(copy.deepcopy(tiny_beats()).bfloat16())]
    assert folder(tiny_beats()) == folders[0]
    monkeypatch.setattr(data, 'FEATURES_FORMAT', 99)
    folders.append(folder())
    assert len(set(folders)) == len(folders) and {f.parent for f in folders} == {tmp_path}


def test_features_beyond_float16_are_refused_with_their_sounds(tmp_path, pairs, beats,
                                                               monkeypatch):
    def loud(wav):
        found = type(beats).forward(beats, wav)
        found[1, 0, 0] = 1e5                                # float16 ends at 65504
        return found

    opened(tmp_path / 'cache', beats, pairs)
    monkeypatch.setattr(beats, 'forward', loud)
    with pytest.raises(ValueError, match=f'{NAMES[7]}.* leave the range of float16: train with'):
        complete(pairs, beats, [3, 7, 5])
    assert not (tmp_path / 'cache').exists()


def test_a_share_is_kept_and_the_rest_computed(tmp_path, pairs, beats):
    opened(tmp_path / 'cache', beats, pairs, share=0.25)
    for _ in range(2):
        complete(pairs, beats, range(6))
    assert files(tmp_path / 'cache') == [f'{name}.npy' for name in NAMES[:3]]
    assert beats.heard == [6, 3]


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'),
                                   PermissionError(13, 'Permission denied')])
def test_a_folder_that_cannot_be_written_is_said_once_and_the_training_goes_on(
        tmp_path, pairs, beats, monkeypatch, capsys, error):
    features = opened(tmp_path / 'cache', beats, pairs)
    expected = complete(pairs, beats, range(6))
    for k in (1, 4):
        (features.folder / f'{NAMES[k]}.npy').unlink()
    calls = []

    def fails(path, mode='r', *more):
        calls.append(path)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr('launch.open', fails, raising=False)
        for _ in range(2):
            assert torch.equal(complete(pairs, beats, range(6)), expected)
    said = capsys.readouterr().out
    assert said.count('BEATs features are no longer kept: cannot write') == 1
    assert error.strerror in said and len(calls) == 1
    assert files(tmp_path / 'cache') == [f'{NAMES[k]}.npy' for k in (0, 2, 3, 5)]


def test_a_folder_that_is_a_file_costs_the_cache_alone(tmp_path, pairs, beats, capsys):
    (tmp_path / 'cache').write_text('mine')
    opened(tmp_path / 'cache', beats, pairs).print_size()
    complete(pairs, beats, range(4))
    assert 'no longer kept: cannot write' in capsys.readouterr().out
    assert (tmp_path / 'cache').read_text() == 'mine'


def test_the_size_is_printed_and_a_disk_too_small_refused(tmp_path, pairs, beats, monkeypatch,
                                                          capsys):
    usage = collections.namedtuple('usage', 'total used free')
    features = opened(tmp_path / 'a/b/cache', beats, pairs)
    one = 2 * type(beats).forward(beats, pairs[0]['wav'][None]).numel()
    asked = []

    def disk(free, path):
        asked.append(path)
        return usage(0, 0, free)

    monkeypatch.setattr(shutil, 'disk_usage', lambda path: disk(12 * one, path))
    features.print_size()
    assert asked == [tmp_path] and not (tmp_path / 'a').exists()
    said = capsys.readouterr().out
    assert f'BEATs features: 12 files of {one / 1e6:.3g} MB are' in said and '0 of them' in said
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: disk(12 * one - 1, path))
    with pytest.raises(OSError, match='needs another 0.0 GB: .*--cache-audio DIR.*--cache-share'):
        features.print_size()
    complete(pairs, beats, range(4))                        # then there is room for the others
    shutil.copy(features.folder / f'{NAMES[0]}.npy', features.folder / 'another.npy')
    features.print_size()
    assert '4 of them there' in capsys.readouterr().out
    opened(tmp_path / 'c', beats, pairs, share=0.5).print_size()
    assert '6 files' in capsys.readouterr().out


def write_often(path, content, stamp):
    for _ in range(100):
        write_file(path, content, stamp=stamp)


def test_two_trainings_fill_one_folder_and_never_show_half_a_file(tmp_path, pairs, beats):
    features = opened(tmp_path / 'cache', beats, pairs)
    expected = complete(pairs, beats, [0])[0]
    path = features.folder / f'{NAMES[0]}.npy'
    fork = multiprocessing.get_context('fork' if hasattr(os, 'fork') else 'spawn')
    stamp = time_stamp(pairs.files_of(NAMES[0])[1])
    others = [fork.Process(target=write_often, args=(path, path.read_bytes(), stamp))
              for _ in range(2)]
    for process in others:
        process.start()
    while any(process.is_alive() for process in others):
        assert torch.equal(features.get(NAMES[0], stamp).float(), expected)
    assert [process.exitcode for process in others] == [0, 0]
    assert files(tmp_path / 'cache') == [path.name]


# ---- in a training

def assert_same_run(one, other):
    for key in ('audio_proj', 'masker_i'):
        assert_equal(one.saved[key], other.saved[key])


def test_a_training_gives_the_same_bits_with_an_empty_a_half_filled_and_a_full_folder(
        training, tmp_path):
    tiny_clipseg()                      # which seeds torch when it is first made
    flags = ['--epochs', '2', '--cache-audio']
    first = training(*flags, str(tmp_path / 'cache'), folder='a')
    assert len(files(tmp_path / 'cache')) == TRAIN + 4      # four of validation, in one batch
    again = training(*flags, str(tmp_path / 'cache'), folder='b')
    half = shutil.copytree(tmp_path / 'cache', tmp_path / 'half')
    for k, path in enumerate(sorted(half.rglob('*.npy'))):
        if k % 2:
            path.unlink()
        if k == 4:
            path.write_bytes(path.read_bytes()[:99])
    filled = training(*flags, str(half), folder='c')
    assert files(half) == files(tmp_path / 'cache')
    shared = training(*flags, str(tmp_path / 'share'), '--cache-share', '0.5', folder='d')
    assert len(files(tmp_path / 'share')) == TRAIN // 2 + 4
    for seen in (again, filled, shared):
        assert_same_run(seen, first)
    plain = training('--epochs', '2', folder='e')           # whose features are not rounded
    for one, other in zip(first.forwards, plain.forwards, strict=True):
        assert torch.allclose(one['out'].A, other['out'].A, atol=2e-2)


def test_a_training_that_stopped_resumes_to_the_bit_with_the_features_it_had_kept(training,
                                                                                  tmp_path):
    class Killed(BaseException):
        pass

    def die(seen, one):
        if len(seen.forwards) == 3:
            raise Killed

    flags = ['--epochs', '2', '--save-seconds', '0', '--cache-audio']
    plain = training(*flags, str(tmp_path / 'x'), folder='plain')
    with pytest.raises(Killed):
        training(*flags, str(tmp_path / 'y'), folder='parts', hook=die)
    rest = training(*flags, str(tmp_path / 'y'), '--resume', folder='parts')
    assert len(rest.forwards) == 4
    assert_same_run(rest, plain)


def test_the_default_folder_lies_in_the_data_root(training, tmp_path, tiny_root):   # noqa: F811
    root = shutil.copytree(tiny_root, tmp_path / 'root')
    training('--cache-audio', root=root)
    kept = [number(path.stem) for path in (root / 'cache/beats').rglob('*.npy')]
    assert len([n for n in kept if n < TRAIN]) == 4
    assert sorted(kept)[4:] == [TRAIN, TRAIN + 1, TRAIN + 2, TRAIN + 3]     # of validation


@pytest.mark.parametrize('flags, sounds, kept', [       # the last of five validation pairs is alone
    ([], 2 * (TRAIN + 4), []), (['--cache-audio'], TRAIN + 4, [TRAIN + 5]),
    (['--cache-audio', '--cache-share', '0.5'], TRAIN + TRAIN // 2 + 4, [TRAIN // 2 + 5])])
def test_beats_hears_a_sound_that_is_kept_once_in_training_and_in_validation(
        training, tmp_path, tiny_root, monkeypatch, capsys, flags, sounds, kept):   # noqa: F811
    root = shutil.copytree(tiny_root, tmp_path / 'root')
    heard = []
    watch(monkeypatch, BEATs, 'forward', lambda _, encoder, wav: heard.append(len(wav)))
    seen = training('--epochs', '2', *flags, root=root)
    assert sum(heard) == sounds and len(seen.validations) == 2
    said = re.findall(r'BEATs features: (\d+) files', capsys.readouterr().out)
    assert list(map(int, said)) == kept

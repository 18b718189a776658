"""cache.py: what comes from disk equals what is computed, and nothing old, torn or foreign is ever served."""

import collections
import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch

import cache
from beats import BEATs, BEATsConfig
from data import SampleError, VGGSound
from media import read_audio, read_image, training_image

N = 12      # pairs in the tests


@pytest.fixture
def pairs(tmp_path, small_world):
    """A dataset of N pairs whose files may be damaged."""
    folder = tmp_path / 'data/vggsound'
    for kind, suffix in (('frames', 'jpg'), ('audio', 'wav')):
        (folder / kind).mkdir(parents=True)
        for i in ids_of(small_world):
            shutil.copy(small_world / 'vggsound' / kind / f'{i}.{suffix}', folder / kind)
    (folder / 'train.csv').write_text('\n'.join(ids_of(small_world)))
    return VGGSound(tmp_path / 'data', 'train', 96, 2.0, augmented=True)


def ids_of(world):
    return [line.split(',')[0] for line in (world / 'vggsound/train.csv').read_text().splitlines()[:N]]


@pytest.fixture(scope='module')
def beats():
    torch.manual_seed(0)
    return BEATs(BEATsConfig(encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=2,
                             embed_dim=16, conv_pos=8, conv_pos_groups=2)).eval().requires_grad_(False)


class Killed(Exception):
    pass


def killed_after(beats, calls):
    """The same encoder, which dies at a later call: what SIGKILL between two batches leaves on the disk."""
    def forward(wav, left=[calls]):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return type(beats).forward(beats, wav)
    return forward


def test_features_from_disk_are_those_of_beats(tmp_path, pairs, beats, capsys):
    features = cache.build_features(tmp_path / 'cache', pairs, beats, batch_size=5)
    assert f'{N} rows' in capsys.readouterr().out and len(features.rows) == N       # the size, said first
    wav = torch.stack([pairs[k]['wav'] for k in range(N)])
    expected, ids = beats(wav), pairs.ids
    assert features.get(ids[3]).dtype == torch.float16 and features.get(ids[3]).shape == expected.shape[1:]
    called = lambda wav: pytest.fail('all are on disk')
    assert torch.allclose(features.of(ids, wav, called), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(features.get(ids[3]).float(), expected[4], rtol=1e-3, atol=1e-3)


def test_a_share_is_kept_and_the_rest_computed(tmp_path, pairs, beats):
    features = cache.build_features(tmp_path / 'cache', pairs, beats, share=0.5)
    assert len(features.rows) == N // 2 and features.get(pairs.ids[-1]) is None and not features.rows.stale
    wav, asked = torch.stack([pairs[k]['wav'] for k in (0, N - 1)]), []
    compute = lambda part: asked.append(len(part)) or beats(part)
    mixed = features.of([pairs.ids[0], pairs.ids[-1]], wav, compute)
    assert asked == [1] and torch.allclose(mixed, beats(wav), rtol=1e-3, atol=1e-3)
    stacked = torch.stack([features.get(i) for i in pairs.ids[:2]])                 # as a loader hands it over
    assert torch.equal(cache.complete(stacked, wav, None), stacked.float())
    assert len(pickle.dumps(features)) < 20_000                                     # without the file that is mapped
    loader = torch.utils.data.DataLoader(pairs.ids[:4], batch_size=None, num_workers=1, collate_fn=features.get)
    assert torch.equal(next(iter(loader)), stacked[0])                              # and in another process
    more = cache.build_features(tmp_path / 'cache', pairs, beats)                   # later, all of them
    assert len(more.rows) == N


def test_a_killed_build_goes_on_where_it_was(tmp_path, pairs, beats, monkeypatch):
    folder, undisturbed = tmp_path / 'cache', cache.build_features(tmp_path / 'whole', pairs, beats, batch_size=2)
    monkeypatch.setattr(beats, 'forward', killed_after(beats, 3))
    with pytest.raises(Killed):
        cache.build_features(folder, pairs, beats, batch_size=2)
    partial = tmp_path / 'cache.partial'
    assert not folder.exists() and partial.is_dir()
    with pytest.raises(FileNotFoundError, match='no finished cache'):
        cache.AudioFeatures(folder, pairs, beats)
    with open(partial / 'index.jsonl', 'a') as index, open(partial / 'rows', 'ab') as rows:     # killed while it wrote
        index.write('{"id": "half a li')
        rows.write(b'half a row')
    calls = collections.Counter()
    monkeypatch.setattr(beats, 'forward', lambda wav: calls.update(clips=len(wav)) or type(beats).forward(beats, wav))
    features = cache.build_features(folder, pairs, beats, batch_size=2)
    assert calls['clips'] == N - 6 and folder.is_dir() and not partial.exists()
    for sample in pairs.ids:
        assert torch.equal(features.get(sample), undisturbed.get(sample))


def test_a_changed_sound_is_not_served_and_made_anew(tmp_path, pairs, beats):
    features, sample = cache.build_features(tmp_path / 'cache', pairs, beats), pairs.ids[2]
    before, path = features.get(sample), pairs.audio / f'{pairs.ids[2]}.wav'
    sound, rate = soundfile.read(path, dtype='int16')
    soundfile.write(path, sound[::-1].copy(), rate, subtype='PCM_16')               # as long as before
    opened = cache.AudioFeatures(tmp_path / 'cache', pairs, beats)
    assert opened.rows.stale == [sample] and opened.get(sample) is None and len(opened.rows) == N - 1
    after = cache.build_features(tmp_path / 'cache', pairs, beats)
    expected = beats(read_audio(path, 2.0)[None])[0]
    assert not after.rows.stale and torch.allclose(after.get(sample).float(), expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(after.get(sample), before)


def test_a_copied_dataset_keeps_its_cache(tmp_path, pairs, beats, monkeypatch):
    cache.build_features(tmp_path / 'cache', pairs, beats)
    for sample in pairs.ids:                                                        # new times, same content
        (pairs.audio / f'{sample}.wav').touch()
    assert len(cache.AudioFeatures(tmp_path / 'cache', pairs, beats).rows) == N


def test_other_weights_and_other_lengths_are_refused(tmp_path, pairs, beats):
    cache.build_features(tmp_path / 'cache', pairs, beats)
    torch.manual_seed(1)
    other = BEATs(beats.cfg).eval()
    for opened in (lambda: cache.AudioFeatures(tmp_path / 'cache', pairs, other),
                   lambda: cache.build_features(tmp_path / 'cache', pairs, other)):
        with pytest.raises(ValueError, match='was made with weights .* name another folder'):
            opened()
    pairs.seconds = 1.0
    with pytest.raises(ValueError, match='was made with seconds 2.0, not 1.0'):
        cache.AudioFeatures(tmp_path / 'cache', pairs, beats)


def test_a_disk_too_small_is_refused_before_anything_is_computed(tmp_path, pairs, beats, monkeypatch, capsys):
    usage = collections.namedtuple('usage', 'total used free')
    row = cache.features_layout(pairs, beats)[0].itemsize
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: usage(0, 0, int(cache.SPARE_BYTES + 6.5 * row)))
    monkeypatch.setattr(beats, 'forward', lambda wav: pytest.fail('computed'))
    with pytest.raises(OSError, match=r'a share of the set, at most 0\.541$'):
        cache.build_features(tmp_path / 'cache', pairs, beats)
    assert f'{N} rows' in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: usage(0, 0, int(cache.SPARE_BYTES + 6.5 * row)))
    assert len(cache.build_features(tmp_path / 'cache', pairs, beats, share=0.541).rows) == 6
    assert len(cache.build_features(tmp_path / 'cache', pairs, beats).rows) == N   # there is room for the other six


def test_torn_and_damaged_files_are_named(tmp_path, pairs, beats):
    folder = tmp_path / 'cache'
    cache.build_features(folder, pairs, beats)
    whole = (folder / 'rows').read_bytes()
    (folder / 'rows').write_bytes(whole[:-100])
    with pytest.raises(ValueError, match='rows is torn'):
        cache.AudioFeatures(folder, pairs, beats)
    (folder / 'rows').write_bytes(whole[:1000] + bytes(100) + whole[1100:])
    with pytest.raises(ValueError, match=f'rows is damaged at the row of {pairs.ids[0]}'):
        cache.AudioFeatures(folder, pairs, beats)
    (folder / 'rows').write_bytes(whole)
    assert len(cache.AudioFeatures(folder, pairs, beats).rows) == N
    header, first = (folder / 'index.jsonl').read_text().splitlines()[:2]
    for change in ({'row': '0'}, {'row': -1}, {'row': 0.5}, {'id': ['x']}, {'files': None}, {'files': [[1]]}):
        line = json.dumps({**json.loads(first), **change})
        (folder / 'index.jsonl').write_text(f'{header}\n{line}\n')
        with pytest.raises(ValueError, match='index.jsonl holds the line .*delete the folder'):
            cache.AudioFeatures(folder, pairs, beats)
    for text in ('[1, 2]\n', '{"id": "x"}\n', ''):
        (folder / 'index.jsonl').write_text(text)
        with pytest.raises(ValueError, match='index.jsonl'):
            cache.AudioFeatures(folder, pairs, beats)


def test_a_sound_that_changes_while_it_is_read_is_made_anew(tmp_path, pairs, beats, monkeypatch):
    path, forward = pairs.audio / f'{pairs.ids[2]}.wav', type(beats).forward

    def changed(wav):
        soundfile.write(path, np.zeros(32_000, np.int16), 16_000)
        return forward(beats, wav)
    monkeypatch.setattr(beats, 'forward', changed)
    features = cache.build_features(tmp_path / 'cache', pairs, beats)
    assert features.rows.stale == [pairs.ids[2]]


def test_features_beyond_float16_are_refused_with_their_sounds(tmp_path, pairs, beats, monkeypatch):
    def loud(wav):
        found = type(beats).forward(beats, wav)
        found[1, 0, 0] = 1e5                                                        # float16 ends at 65504
        return found
    monkeypatch.setattr(beats, 'forward', loud)
    with pytest.raises(ValueError, match=f'{pairs.ids[1]}.* leave the range of float16'):
        cache.build_features(tmp_path / 'cache', pairs, beats)


def test_features_are_computed_in_float32_whatever_the_training_s_precision(tmp_path, pairs, beats):
    plain = cache.build_features(tmp_path / 'plain', pairs, beats, share=0.25)
    with torch.autocast('cpu', torch.bfloat16):
        low = cache.build_features(tmp_path / 'low', pairs, beats, share=0.25)
    assert torch.equal(low.get(pairs.ids[0]), plain.get(pairs.ids[0]))


def test_sounds_that_change_one_after_the_other_each_get_a_row(tmp_path, pairs, beats):
    for k in (2, 5, 7):
        noise = np.random.default_rng(k).uniform(-0.1 * k, 0.1 * k, 32_000)
        soundfile.write(pairs.audio / f'{pairs.ids[k]}.wav', noise, 16_000)
        features = cache.build_features(tmp_path / 'cache', pairs, beats)
    for k in (2, 5, 7):
        expected = beats(pairs[k]['wav'][None])[0]
        assert torch.allclose(features.get(pairs.ids[k]).float(), expected, rtol=1e-2, atol=1e-2), k
    (tmp_path / 'cache/rows').write_bytes((tmp_path / 'cache/rows').read_bytes()[:-100])
    with pytest.raises(ValueError, match='rows is torn'):
        cache.AudioFeatures(tmp_path / 'cache', pairs, beats)


def test_two_builds_of_one_folder_do_not_mix(tmp_path, pairs, beats):
    (tmp_path / 'cache.partial').mkdir()
    with cache.only_writer(tmp_path / 'cache.partial'):
        with pytest.raises(OSError, match='being written by another process'):
            cache.build_features(tmp_path / 'cache', pairs, beats)


def test_an_unreadable_sound_stops_the_build_or_is_named_and_left_out(tmp_path, pairs, beats, capsys):
    (pairs.audio / f'{pairs.ids[1]}.wav').write_bytes(b'no sound')
    with pytest.raises(SampleError, match=f'{pairs.ids[1]}.wav is not a readable sound.*--skip-bad-samples'):
        cache.build_features(tmp_path / 'cache', pairs, beats)
    features = cache.build_features(tmp_path / 'cache', pairs, beats, skip_bad=True)
    assert len(features.rows) == N - 1 and features.get(pairs.ids[1]) is None
    assert f'{pairs.ids[1]}.wav' in capsys.readouterr().out


def test_prepared_pairs_give_the_same_samples_to_the_bit(tmp_path, pairs):
    prepared = cache.prepare(tmp_path / 'cache', pairs, batch_size=5)
    for sample in pairs.ids:
        frame, wav = prepared.get(sample)
        assert frame.size == (105, 105)                                             # int(1.1 * 96)
        assert torch.equal(wav, read_audio(pairs.audio / f'{sample}.wav', 2.0))
        draws = [training_image(image, 96, torch.Generator().manual_seed(3))
                 for image in (frame, read_image(pairs.frames / f'{sample}.jpg'))]
        assert torch.equal(*draws)


def test_a_sound_at_another_rate_is_rounded_to_16_bits(tmp_path, pairs):
    path = pairs.audio / f'{pairs.ids[0]}.wav'
    loud = np.sign(np.sin(np.arange(44_100) / 20))                                  # overshoots when it is resampled
    soundfile.write(path, loud, 44_100, subtype='FLOAT')
    wav, exact = cache.prepare(tmp_path / 'cache', pairs).get(pairs.ids[0])[1], read_audio(path, 2.0)
    assert exact.abs().max() > 1 and wav.shape == exact.shape
    assert (wav - exact.clamp(-1, 1 - 2**-15)).abs().max() <= 2**-16


def test_a_changed_frame_is_not_served(tmp_path, pairs):
    cache.prepare(tmp_path / 'cache', pairs)
    shutil.copy(pairs.frames / f'{pairs.ids[0]}.jpg', pairs.frames / f'{pairs.ids[1]}.jpg')
    (pairs.frames / f'{pairs.ids[2]}.jpg').unlink()
    prepared = cache.Prepared(tmp_path / 'cache', pairs)
    assert prepared.rows.stale == pairs.ids[1:3] and prepared.get(pairs.ids[1]) is None
    lines = [json.loads(line) for line in (tmp_path / 'cache/index.jsonl').read_text().splitlines()]
    assert lines[0]['settings']['side'] == 105 and len(lines) == N + 1

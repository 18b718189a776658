"""Training pairs: each id has its own frame, sound and features, read, prepared or cached.

Pair k's frame is of grey 20 k + 20, its sound of level (k + 1) / 16, wherever it is in a list.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import cache
import data
import media

NAMES = [f'{letter}_00000{k}' for k, letter in enumerate('hbfacg')]     # not in alphabetical order


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'data/vggsound'
    for kind in ('frames', 'audio'):
        (folder / kind).mkdir(parents=True)
    for k, name in enumerate(NAMES):
        Image.new('RGB', (64, 36), (20 * k + 20,) * 3).save(folder / f'frames/{name}.jpg')
        soundfile.write(folder / f'audio/{name}.wav', np.full(32_000, (k + 1) / 16), 16_000)
    (folder / 'train.csv').write_text(''.join(f'{name},label\n' for name in NAMES))
    (folder / 'val.csv').write_text('\n'.join(NAMES[k] for k in (4, 1)))
    return tmp_path / 'data'


def pair_of(sample):
    """Which pair a frame and a sound are of; both must agree."""
    by_frame = (media.displayable(sample['image']).mean() - 20) / 20
    by_sound = 16 * sample['wav'][100].item() - 1
    assert by_frame == pytest.approx(by_sound, abs=0.15)
    return round(by_sound)


def train(root, **more):
    return data.VGGSound(root, 'train', 96, 2.0, augmented=True, **more)


# ---- data.VGGSound

def test_each_id_has_its_own_frame_and_sound_in_either_split(root):
    dataset = train(root)
    assert dataset.ids == NAMES and [pair_of(dataset[k]) for k in range(6)] == list(range(6))
    assert [dataset[k]['id'] for k in range(6)] == NAMES
    validation = data.VGGSound(root, 'val', 96, 2.0)
    assert [pair_of(validation[k]) for k in range(2)] == [4, 1]


def test_ids_without_a_frame_or_without_a_sound_are_left_out_and_move_no_other(root):
    (root / f'vggsound/frames/{NAMES[1]}.jpg').unlink()
    (root / f'vggsound/audio/{NAMES[3]}.wav').unlink()
    dataset = train(root, skip_bad=True)
    assert dataset.absent == [NAMES[1], NAMES[3]]
    assert [pair_of(dataset[k]) for k in range(4)] == [0, 2, 4, 5]


def test_batches_hold_the_asked_pairs_in_order_and_an_unreadable_one_shifts_none(root):
    (root / f'vggsound/audio/{NAMES[5]}.wav').write_bytes(b'no sound')
    batches = list(data.training_loader(train(root), [[3, 5, 0], [4, 1]]))
    assert [batch['id'] for batch in batches] == [[NAMES[3], NAMES[0]], [NAMES[4], NAMES[1]]]
    assert [len(batch['errors']) for batch in batches] == [1, 0]
    for batch, pairs in zip(batches, ([3, 0], [4, 1])):
        shown = [pair_of({'image': batch['image'][k], 'wav': batch['wav'][k]}) for k in range(2)]
        assert shown == pairs


def test_only_training_frames_are_augmented_each_from_its_seed_epoch_and_index(root, monkeypatch):
    seeds = []

    def keep(image, size, generator):
        seeds.append(generator.initial_seed())
        return torch.zeros(3, size, size)
    monkeypatch.setattr(data, 'training_image', keep)
    for seed in (0, 1):
        dataset = train(root, seed=seed)
        for dataset.epoch in (0, 1):
            for index in range(6):
                dataset[index]
    assert len(seeds) == len(set(seeds)) == 24
    first = np.random.SeedSequence((1, 0, 3)).generate_state(1, np.uint64)[0]
    assert seeds[12 + 3] == int(first) >> 1
    data.VGGSound(root, 'val', 96, 2.0)[0]
    assert len(seeds) == 24


def test_the_size_and_the_seconds_of_a_dataset_are_those_of_its_samples(root):
    dataset = data.VGGSound(root, 'train', 64, 3.0)
    sample = dataset[0]
    assert sample['image'].shape == (3, 64, 64) and sample['wav'].shape == (48_000,)
    assert not sample['wav'][32_000:].any()                         # padded with zeros


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_an_epoch_s_batches_are_a_permutation_drawn_from_seed_and_epoch(processes):
    shares = [data.epoch_batches(21, 4, 3, 5, rank, processes) for rank in range(processes)]
    assert {len(batch) for share in shares for batch in share} == {4 // processes}
    together = [i for batch in zip(*shares) for part in batch for i in part]
    assert together == np.random.default_rng((3, 5)).permutation(21)[:20].tolist()


# ---- data.py prepare

def prepared_pair(prepared, name):
    frame, wav = prepared.get(name)
    by_sound = round(16 * wav[100].item() - 1)
    assert np.asarray(frame).mean() == pytest.approx(20 * by_sound + 20, abs=3)
    return by_sound


def test_prepare_writes_each_pair_under_its_id_in_the_cache_of_the_root(root, capsys):
    data.main(['prepare', '--data-root', str(root)])
    assert f'{root}/cache/pairs: 6 of 6 pairs' in capsys.readouterr().out
    prepared = cache.Prepared(root / 'cache/pairs', train(root))
    assert [prepared_pair(prepared, name) for name in NAMES] == list(range(6))
    read = train(root, prepared=prepared)
    plain, copied = ([dataset[k] for k in range(6)] for dataset in (train(root), read))
    for one, other in zip(plain, copied):
        assert torch.equal(one['image'], other['image']) and torch.equal(one['wav'], other['wav'])


def test_prepared_pairs_are_served_in_training_only(root, monkeypatch):
    prepared = cache.prepare(root / 'x', train(root))
    frame, wav = prepared.get(NAMES[2])
    served = SimpleNamespace(get=lambda name: (frame, wav))
    assert pair_of(train(root, prepared=served)[0]) == 2
    assert pair_of(data.VGGSound(root, 'train', 96, 2.0, prepared=served)[0]) == 0


def test_share_takes_the_first_part_and_out_and_the_preset_are_obeyed(root, tmp_path, capsys):
    for preset, side, samples in (('miniature', 105, 32_000), ('paper', 387, 160_000)):
        folder = tmp_path / preset
        data.main(['prepare', '--data-root', str(root), '--out', str(folder), '--share', '0.5',
                   '--preset', preset])
        header, *lines = map(json.loads, (folder / 'index.jsonl').read_text().splitlines())
        assert (header['settings']['side'], header['settings']['samples']) == (side, samples)
        assert [line['id'] for line in lines] == NAMES[:3]
        assert f'{folder}: 3 of 6 pairs' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        data.main(['prepare', '--share', '0'])
    assert '--share must lie above 0' in capsys.readouterr().err


def test_without_a_root_the_preset_s_is_prepared(root, monkeypatch):
    asked = []

    class Absent(Exception):
        pass

    def dataset(where, split, size, seconds, augmented, skip_bad):
        asked.append((where, split, size, seconds, augmented, skip_bad))
        raise Absent
    monkeypatch.setattr(data, 'VGGSound', dataset)
    for options in ([], ['--preset', 'paper', '--skip-bad-samples']):
        with pytest.raises(Absent):
            data.main(['prepare', *options])
    folder = data.Path(data.__file__).parent / 'data'
    assert asked == [(str(folder / 'miniature'), 'train', 96, 2, True, False),
                     (str(folder), 'train', 352, 10, True, True)]


def test_bad_pairs_stop_prepare_or_are_left_out_and_move_no_other(root, capsys):
    (root / f'vggsound/frames/{NAMES[2]}.jpg').write_bytes(b'no picture')
    (root / f'vggsound/audio/{NAMES[0]}.wav').unlink()
    command = ['prepare', '--data-root', str(root)]
    with pytest.raises(ValueError, match='--skip-bad-samples'):
        data.main(command)
    data.main([*command, '--skip-bad-samples'])
    assert '4 of 5 pairs' in capsys.readouterr().out
    dataset = train(root, skip_bad=True)
    prepared = cache.Prepared(root / 'cache/pairs', dataset)
    assert prepared.get(NAMES[2]) is None and prepared.get(NAMES[0]) is None
    assert [prepared_pair(prepared, NAMES[k]) for k in (1, 3, 4, 5)] == [1, 3, 4, 5]
    row = 105 * 105 * 3 + 2 * 32_000
    assert (root / 'cache/pairs/rows').stat().st_size == 4 * row        # and no gaps


def test_a_changed_pair_and_later_ones_get_rows_of_their_own(root):
    folder = root / 'cache/pairs'
    cache.prepare(folder, train(root), share=0.5, batch_size=2)
    shutil.copy(root / f'vggsound/frames/{NAMES[5]}.jpg', root / f'vggsound/frames/{NAMES[1]}.jpg')
    shutil.copy(root / f'vggsound/audio/{NAMES[5]}.wav', root / f'vggsound/audio/{NAMES[1]}.wav')
    prepared = cache.prepare(folder, train(root), batch_size=2)
    assert [prepared_pair(prepared, name) for name in NAMES] == [0, 5, 2, 3, 4, 5]


# ---- --cache-audio

class Ears(torch.nn.Module):
    """In BEATs' place: every feature of a sound is its level."""
    cfg, feature_dim, feature_layers = SimpleNamespace(input_patch_size=16), 4, (1, 2, 3)

    def __init__(self):
        super().__init__()
        self.weight, self.heard = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, wav):
        self.heard.append([round(16 * level - 1) for level in wav[:, 100].tolist()])
        return wav[:, :1, None].expand(-1, 96, 4)           # 198 frames: 12 x 8 patches


def features_pair(features):
    return round(16 * features.float().mean().item() - 1)


def test_features_are_cached_under_their_own_ids_and_an_unreadable_sound_shifts_none(root, capsys):
    (root / f'vggsound/audio/{NAMES[1]}.wav').write_bytes(b'no sound')
    ears, dataset = Ears(), train(root)
    features = cache.build_features(root / 'beats', dataset, ears, batch_size=4, skip_bad=True)
    assert ears.heard == [[0, 2, 3], [4, 5]] and features.get(NAMES[1]) is None
    assert [features_pair(features.get(NAMES[k])) for k in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]
    dataset.features = features
    assert [features_pair(dataset[k]['features']) for k in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]


def test_what_is_not_cached_is_computed_in_its_own_place(root):
    ears = Ears()
    dataset = train(root)
    dataset.features = cache.build_features(root / 'cache/beats', dataset, ears, share=0.5)
    ears.heard.clear()
    (batch,) = data.training_loader(dataset, [[4, 1, 5, 0]])
    found = cache.complete(batch['features'], batch['wav'], ears)
    assert ears.heard == [[4, 5]] and found.shape == (4, 96, 4) and found.dtype == torch.float32
    assert list(map(features_pair, found)) == [4, 1, 5, 0]
    wav = torch.stack([dataset[3]['wav'], dataset[2]['wav']])
    one = dataset.features.of([NAMES[3], NAMES[2]], wav, ears)
    assert list(map(features_pair, one)) == [3, 2] and ears.heard[1:] == [[3]]

"""Training pairs: each id has its own frame and sound.

Pair k's frame is of grey 20 k + 20, its sound of level (k + 1) / 16, wherever it is in a list.
"""

import numpy as np
import pytest
import torch

import data
import media
from stand_ins import write_pairs

NAMES = [f'{letter}_00000{k}' for k, letter in enumerate('hbfacg')]     # not in alphabetical order


@pytest.fixture
def root(tmp_path):
    root = write_pairs(tmp_path / 'data', NAMES, (64, 36), 32_000, first=1)
    (root / 'vggsound/val.csv').write_text('\n'.join(NAMES[k] for k in (4, 1)))
    return root


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
    batches = list(data.loader(train(root), batch_sampler=[[3, 5, 0], [4, 1]]))
    assert [batch['id'] for batch in batches] == [[NAMES[3], NAMES[0]], [NAMES[4], NAMES[1]]]
    assert [len(batch['errors']) for batch in batches] == [1, 0]
    assert '--skip-bad-samples' in str(batches[0]['errors'][0])
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

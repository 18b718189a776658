"""Training's random draws, and whether what it joins belongs together: pairs, features, answers."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import data
import media
import model as model_file
import train
from captions import load_answers
from speed import prepare
from test_train_options import cosine, info_nce
from tiny import (SIZE, TRAIN, VAL, colours, name, number, pair_of_image, tiny,     # noqa: F401
                  tiny_beats, tiny_clipseg, tiny_root, training, watch, write_captions, write_root)


def pairs_in(forward):
    """The pairs of a step, by what their frames show."""
    return [pair_of_image(image) for image in forward['image']]


def crop_of(image):
    """Where a frame was cropped: (left, top, flipped), read off its ramps of 7 a pixel."""
    red, green, _ = colours(image)
    flipped = bool(red[0, 0] > red[0, -1])
    left = round(float(red.min()) / 7)
    top = round(float(green[0, 0]) / 7)
    ramp = 7.0 * torch.arange(left, left + SIZE)
    assert torch.allclose(red[0], ramp.flip(0) if flipped else ramp, atol=0.01)
    assert torch.allclose(green[:, 0], 7.0 * torch.arange(top, top + SIZE), atol=0.01)
    return left, top, flipped


# ---- the order of the pairs, the first weights, the noise

def noise_of(seen):
    return [forward['random'] for forward in seen.forwards]


def test_order_noise_and_weights_depend_on_the_seed_and_an_epoch_sees_every_pair_once(training):
    orders, noise, weights, crops = [], [], [], []
    for seed in ('0', '1'):
        seen = training('--epochs', '2', '--seed', seed, folder=seed)
        batches = [pairs_in(forward) for forward in seen.forwards]
        assert [len(batch) for batch in batches] == 6 * [4]
        orders += [sum(batches[:3], []), sum(batches[3:], [])]
        noise += noise_of(seen)
        weights.append(seen.steps[0]['before']['audio_proj.fc1.weight'])
        for half in (seen.forwards[:3], seen.forwards[3:]):
            images = [image for forward in half for image in forward['image']]
            crops.append({pair_of_image(image): crop_of(image) for image in images})
    assert all(sorted(order) == list(range(TRAIN)) for order in orders)
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    assert not any(torch.equal(*two) for two in itertools.combinations(noise, 2))
    assert not torch.equal(*weights)
    torch.manual_seed(1)
    expected = model_file.load_model('miniature')[0].audio_proj.fc1.weight
    assert torch.equal(weights[1], expected)
    # a pair is cropped anew with each epoch and seed, and unlike its neighbours
    for one, other in itertools.combinations(crops, 2):
        assert sum(one[n] == other[n] for n in range(TRAIN)) < 4
    assert all(len(set(of_epoch.values())) > 6 for of_epoch in crops)
    again = training('--epochs', '1', '--seed', '1', folder='again')
    assert sum(map(pairs_in, again.forwards), []) == orders[2]
    assert all(map(torch.equal, noise_of(again), noise[6:9]))


def test_a_step_s_noise_depends_on_seed_rank_and_step_alone(training, tmp_path):
    """Not on what was drawn before it: another step, a validation, another start of the run."""
    def draw(seen, one):
        torch.rand(len(seen.forwards))

    plain = training('--steps', '3', '--seed', '3', folder='plain')
    root = write_root(tmp_path / 'root')
    (root / 'vggsound/val.csv').unlink()
    flags = ['--steps', '3', '--seed', '3', '--batch-size', '2', '--image-mask', 'soft']
    other = training(*flags, root=root, hook=draw)
    validated = training('--steps', '3', '--seed', '3', '--batch-size', '12', folder='validated')
    assert [len(one.validations) for one in (plain, other, validated)] == [1, 0, 3]
    for one in (other, validated):
        assert all(map(torch.equal, noise_of(one), noise_of(plain)))
    # the batches that one step accumulates draw on
    first, second = noise_of(training('--seed', '3', '--accumulate', '2', folder='accumulated'))
    assert torch.equal(first, noise_of(plain)[0]) and not torch.equal(first, second)


def test_each_process_takes_its_own_part_of_a_batch_and_its_own_noise(training, monkeypatch):
    alone = training('--epochs', '1', folder='alone')
    monkeypatch.setattr(train, 'data_parallel', lambda model: model)
    runs = []
    for rank in (0, 1):
        monkeypatch.setattr(train, 'rank_and_processes', lambda: (rank, 2))
        runs.append(training('--epochs', '1', folder=f'rank{rank}'))
    for one, other, both in zip(runs[0].forwards, runs[1].forwards, alone.forwards, strict=True):
        assert pairs_in(one) + pairs_in(other) == pairs_in(both)
        assert torch.equal(one['random'], both['random'])
        assert not torch.equal(one['random'], other['random'])
    for key, before in runs[0].steps[0]['before'].items():              # but one model
        assert torch.equal(before, runs[1].steps[0]['before'][key])


def test_areas_and_masked_images_take_two_draws_of_noise(training):
    out = training().forwards[0]['out']
    share = torch.stack([torch.sigmoid(out.M_G[i, i] + 1.4).mean() for i in range(4)])
    drawn = out.M_I[:, 0].mean((1, 2))
    assert torch.allclose(drawn, share, atol=0.08)
    assert not torch.equal(drawn, out.areas.diagonal())


# ---- augmentation

def test_crops_vary_in_both_directions_and_half_are_flipped():
    rows, columns = np.mgrid[:35, :35]
    ramps = np.stack([7 * columns, 7 * rows, 0 * rows], -1).astype(np.uint8)

    def crop(seed):
        generator = torch.Generator().manual_seed(seed)
        return crop_of(media.training_image(Image.fromarray(ramps), SIZE, generator))

    found = Counter(crop(seed) for seed in range(640))      # of 32 crops, about 20 times each
    assert set(found) == set(itertools.product(range(4), range(4), (False, True)))
    assert max(found.values()) < 45
    flipped = sum(times for (_, _, flip), times in found.items() if flip)
    assert flipped == pytest.approx(320, abs=50)


def test_validation_frames_are_squashed_uncropped_and_always_alike(training, tiny_root):
    seen = training('--epochs', '2', '--batch-size', '5')
    first, second = seen.validations
    assert torch.equal(first['image'], second['image'])
    assert pairs_in(first) == list(range(TRAIN, TRAIN + VAL))
    with Image.open(tiny_root / f'vggsound/frames/{name(TRAIN)}.jpg') as frame:
        squashed = np.array(frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    shown = colours(first['image'][0]).permute(1, 2, 0)
    assert torch.allclose(shown, torch.from_numpy(squashed).float(), atol=0.01)


# ---- joins: frame and sound, features, prepared pairs

def sound_of(n):
    """What is heard of pair n: its first half second, odd ones filled up with zeros."""
    sound = np.random.default_rng(n).integers(-3000, 3000, 16_000 if n % 2 == 0 else 4000)
    sound[0] = 512 * (n + 1)
    padded = np.concatenate([sound, np.zeros(8000, int)])[:8000]
    return torch.from_numpy(padded / 32768).float()


@pytest.mark.parametrize('workers', ['0', '1'])
def test_every_frame_comes_with_its_own_sound(training, workers):
    seen = training('--epochs', '1', '--workers', workers)
    for step in (*seen.forwards, *seen.validations):
        for image, wav in zip(step['image'], step['wav'], strict=True):
            assert torch.equal(wav, sound_of(pair_of_image(image)))


def test_workers_and_batch_size_reach_both_loaders(training, monkeypatch):
    asked = []

    def loader(kind, *arguments, num_workers, **more):
        size = len(more['batch_sampler'][0]) if 'batch_sampler' in more else more['batch_size']
        asked.append((size, num_workers))
        return DataLoader(kind, *arguments, **{**more, 'multiprocessing_context': None})

    monkeypatch.setattr(data, 'DataLoader', loader)
    training('--workers', '3', '--batch-size', '6')
    assert asked == [(6, 3), (6, 3)]


@pytest.mark.parametrize('share, cached', [('1', 12), ('0.5', 6)])
def test_cached_features_are_those_of_each_pair_s_own_sound(
        training, tmp_path, monkeypatch, share, cached):
    assert training().forwards[0]['features'] is None
    flags = ['--cache-audio', str(tmp_path / 'cache'), '--cache-share', share]
    fresh = []
    watch(monkeypatch, data.AudioFeatures, 'keep',
          lambda _, self, sample, *_more: fresh.append(sample))
    seen = training('--epochs', '2', *flags, folder='cached')
    assert len(list(tmp_path.glob('cache/*/*.npy'))) == cached + 4      # four of validation
    assert len(fresh) == TRAIN + 4 + TRAIN - cached         # the second epoch reads what it can
    for step in (*seen.forwards, *seen.validations):
        wav = torch.stack([sound_of(n) for n in pairs_in(step)])
        expected = tiny_beats()(wav)
        assert torch.allclose(step['features'], expected, atol=2e-3)
        assert torch.equal(step['features'], step['features'].half().float())
        # closer to its own than to any other's
        distance = torch.cdist(step['features'].flatten(1), expected.flatten(1))
        assert distance.argmin(1).tolist() == [0, 1, 2, 3]
        step['self'].eval()
        A = step['self'].embed_audio(torch.zeros_like(wav), step['features'])
        assert torch.allclose(A, step['self'].embed_audio(wav), atol=2e-2)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_features_are_cached_in_each_precision_of_the_networks(training, tmp_path, precision):
    flags = ['--precision', precision, '--cache-audio', str(tmp_path / 'cache')]
    first, again = (training(*flags, folder=folder).forwards[0] for folder in ('first', 'again'))
    assert first['features'].dtype == torch.float32
    assert torch.equal(first['features'], again['features'])
    expected = tiny_beats()(first['wav'])
    assert (first['features'] - expected).norm() < 0.02 * expected.norm()


def test_the_model_hears_the_features_that_it_is_given(tiny):
    model, _ = model_file.load_model('miniature')
    wav = torch.rand(2, 8000) - 0.5
    other = torch.rand(2, 8000) - 0.5
    given = model(torch.zeros(2, 3, SIZE, SIZE), other, features=model.beats(wav)).A
    assert torch.allclose(given, model.embed_audio(wav), atol=1e-5)
    assert not torch.allclose(given, model.embed_audio(other), atol=1e-3)


def test_prepared_pairs_are_used_and_are_the_same_pairs(training, tiny_root, tmp_path, monkeypatch):
    plain = training('--epochs', '1', folder='plain')
    root = tmp_path / 'prepared'
    prepare.main(['prepare', '--data-root', str(tiny_root), '--out', str(root), '--share', '0.75'])
    read = []
    watch(monkeypatch, data, 'read_image', lambda _, path: read.append(path))
    seen = training('--epochs', '1', root=root)
    prepared = {number(path.stem) for path in read if path.suffix == '.bmp'}
    linked = {number(path.stem) for path in read if path.suffix == '.jpg'}
    assert prepared == set(range(9)) and linked == set(range(9, TRAIN + VAL))
    for one, other in zip(seen.forwards + seen.validations, plain.forwards + plain.validations,
                          strict=True):
        assert torch.equal(one['image'], other['image']) and torch.equal(one['wav'], other['wav'])


def test_features_lie_in_the_data_root_unless_a_folder_is_named(training, tmp_path):
    root = write_root(tmp_path / 'root')
    training('--cache-audio', root=root)
    assert len(list(root.glob('cache/beats/*/*.npy'))) == 4 + 4         # of training, validation


# ---- joins: answers

WORDS = ['dog', 'bell', '', 'drum', 'dog']


def test_each_pair_gets_the_embedding_of_its_own_answer(training, tmp_path):
    captions = write_captions(tmp_path / 'c.jsonl', lambda n: WORDS[n % 5])
    seen = training('--variant', 'av_llm', '--epochs', '1', '--captions', str(captions),
                    '--lambda-c', '0.5', '--tau', '0.3')
    clipseg, tokenizer = tiny_clipseg()
    embedded = {}
    for word in set(WORDS) - {''}:
        ids = tokenizer([word], return_tensors='pt')
        embedded[word] = clipseg.clip.get_text_features(**ids).pooler_output[0]
    for forward, (C, rows), terms, weights in zip(seen.forwards, seen.answers, seen.terms,
                                                  seen.weights, strict=True):
        words = [WORDS[n % 5] for n in pairs_in(forward)]
        for word, row in zip(words, rows.tolist(), strict=True):
            assert row == -1 if not word else torch.allclose(C[row], embedded[word], atol=1e-5)
        has = [i for i, word in enumerate(words) if word]
        of_pairs = torch.stack([embedded[words[i]] for i in has])
        expected = info_nce(cosine(of_pairs[:, None], forward['out'].A[has][None]), 0.3)
        assert terms['acl_c'].item() == pytest.approx(expected.item(), rel=1e-4)
        assert weights['acl_c'] == 0.5
    first = seen.log[0]
    assert first['acl_c'] == pytest.approx(seen.terms[0]['acl_c'].item())
    total = first['acl_i'] + first['acl_f'] + first['reg'] + 0.5 * first['acl_c']
    assert first['loss'] == pytest.approx(total, rel=1e-5) and seen.saved['variant'] == 'av_llm'
    assert 'acl_c' not in training(folder='av').terms[0]                # Eq. 5 has no such term


def test_equal_answers_are_negatives_or_masked_as_the_option_says(training, tmp_path):
    captions = write_captions(tmp_path / 'c.jsonl', lambda n: WORDS[n % 2])
    flags = ['--variant', 'av_llm', '--captions', str(captions), '--tau', '0.5']
    found = {}
    for choice in ('negatives', 'masked'):
        seen = training(*flags, '--same-answers', choice, '--batch-size', '12', folder=choice)
        C, rows = seen.answers[0]
        S = cosine(C[rows][:, None], seen.forwards[0]['out'].A[None])
        if choice == 'masked':
            S[(rows[:, None] == rows[None]) & ~torch.eye(12, dtype=torch.bool)] = -float('inf')
        found[choice] = seen.terms[0]['acl_c'].item()
        assert found[choice] == pytest.approx(info_nce(S, 0.5).item(), rel=1e-5)
    assert found['masked'] < found['negatives'] - 0.1


FILES = {'both': 'captions', 'image': 'captions-image', 'audio': 'captions-audio'}


@pytest.mark.parametrize('kind', FILES)
def test_captions_come_from_the_file_of_their_kind(training, tmp_path, monkeypatch, kind):
    root = write_root(tmp_path / 'root')
    for file in FILES.values():
        write_captions(root / f'{file}.jsonl', lambda n: WORDS[n % 2])
    read = []
    watch(monkeypatch, train, 'load_answers', lambda _, path, *more: read.append(Path(path)))
    training('--variant', 'av_llm', '--captions-from', kind, root=root)
    assert read == [root / f'{FILES[kind]}.jsonl']


def test_a_run_goes_on_with_its_own_answers_alone(training, tmp_path):
    flags = ['--variant', 'av_llm', '--captions', str(tmp_path / 'c.jsonl'), '--resume',
             '--overwrite', '--epochs']
    for epochs, shift in (('1', 0), ('2', 0), ('3', 1)):
        # the last has the same words, each at the other pairs
        write_captions(tmp_path / 'c.jsonl', lambda n: WORDS[(n + shift) % 2])
        if shift:
            with pytest.raises(ValueError, match='other answers'):
                training(*flags, epochs)
        else:
            assert training(*flags, epochs).saved['trainer']['step'] == 3 * int(epochs)

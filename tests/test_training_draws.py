"""Training's random draws, and whether what it joins belongs together: pairs, features, answers."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import data
import media
import model as model_file
import train
from captions import load_answers
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


# ---- the order of the pairs

def test_order_depends_on_seed_and_epoch_and_an_epoch_sees_every_pair_once(training):
    orders = []
    for seed in ('0', '1'):
        seen = training('--epochs', '2', '--seed', seed, folder=seed)
        batches = [pairs_in(forward) for forward in seen.forwards]
        assert [len(batch) for batch in batches] == 6 * [4]
        orders += [sum(batches[:3], []), sum(batches[3:], [])]
    assert all(sorted(order) == list(range(TRAIN)) for order in orders)
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    again = training('--epochs', '1', '--seed', '1', folder='again')
    assert [n for forward in again.forwards for n in pairs_in(forward)] == orders[2]


def test_each_process_takes_its_own_part_of_a_batch_and_its_own_noise(training, monkeypatch):
    alone = training('--epochs', '1', folder='alone')
    monkeypatch.setattr(train, 'DistributedDataParallel', lambda model, **options: model)
    runs = []
    for rank in (0, 1):
        monkeypatch.setattr(train, 'rank_and_processes', lambda: (rank, 2))
        runs.append(training('--epochs', '1', folder=f'rank{rank}'))
    for one, other, both in zip(runs[0].forwards, runs[1].forwards, alone.forwards, strict=True):
        assert pairs_in(one) + pairs_in(other) == pairs_in(both)
        assert not torch.equal(one['random'], other['random'])
    for key, before in runs[0].steps[0]['before'].items():              # but one model
        assert torch.equal(before, runs[1].steps[0]['before'][key])


# ---- weights and noise

def test_the_seed_decides_the_first_weights_and_all_noise(training):
    one, same, other = (training('--steps', '2', '--seed', seed, folder=f'run{k}')
                        for k, seed in enumerate('334'))
    weight = lambda run: run.steps[0]['before']['audio_proj.fc1.weight']
    noise = lambda run: [forward['random'] for forward in run.forwards]
    assert torch.equal(weight(one), weight(same)) and not torch.equal(weight(one), weight(other))
    torch.manual_seed(3)
    assert torch.equal(weight(one), model_file.load_model('miniature')[0].audio_proj.fc1.weight)
    for step in (0, 1):
        assert torch.equal(noise(one)[step], noise(same)[step])
        assert not torch.equal(noise(one)[step], noise(other)[step])
    assert not torch.equal(*noise(one))


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
    crop = lambda seed: crop_of(media.training_image(Image.fromarray(ramps), SIZE,
                                                     torch.Generator().manual_seed(seed)))
    found = Counter(crop(seed) for seed in range(640))      # of 32 crops, about 20 times each
    assert set(found) == set(itertools.product(range(4), range(4), (False, True)))
    assert max(found.values()) < 45
    flipped = sum(times for (_, _, flip), times in found.items() if flip)
    assert flipped == pytest.approx(320, abs=50)


def test_a_training_frame_is_resized_bicubically_to_a_tenth_more_before_it_is_cropped():
    pixels = np.random.default_rng(0).integers(0, 255, (70, 140, 3), np.uint8)
    picture = Image.fromarray(pixels)
    crop = colours(media.training_image(picture, SIZE, torch.Generator().manual_seed(0)))
    large = np.array(picture.resize((35, 35), Image.Resampling.BICUBIC))
    large = torch.from_numpy(large).permute(2, 0, 1).float()
    both = (large, large.flip(2))
    windows = [side[:, top:top + SIZE, left:left + SIZE]
               for side, top, left in itertools.product(both, range(4), range(4))]
    assert sum(torch.allclose(crop, window, atol=0.01) for window in windows) == 1


def test_a_pair_is_cropped_anew_with_each_epoch_and_seed_and_unlike_its_neighbours(training):
    crops = []
    for seed in ('0', '1'):
        seen = training('--epochs', '2', '--seed', seed, folder=seed)
        for half in (seen.forwards[:3], seen.forwards[3:]):
            images = [image for forward in half for image in forward['image']]
            crops.append({pair_of_image(image): crop_of(image) for image in images})
    for one, other in itertools.combinations(crops, 2):
        assert sum(one[n] == other[n] for n in range(TRAIN)) < 4
    assert all(len(set(of_epoch.values())) > 6 for of_epoch in crops)


def test_validation_frames_are_squashed_uncropped_and_always_alike(training, tiny_root):
    seen = training('--epochs', '2', '--batch-size', '5')
    first, second = seen.validations
    assert torch.equal(first['image'], second['image'])
    assert pairs_in(first) == list(range(TRAIN, TRAIN + VAL))
    with Image.open(tiny_root / f'vggsound/frames/{name(TRAIN)}.jpg') as frame:
        squashed = np.array(frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    shown = colours(first['image'][0]).permute(1, 2, 0)
    assert torch.allclose(shown, torch.from_numpy(squashed).float(), atol=0.01)


def test_frames_are_normalised_by_clip_s_mean_and_deviation():
    black_and_white = media.normalise(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    # (0 - mean) / deviation and (1 - mean) / deviation of OpenAI's CLIP
    expected = torch.tensor([[-1.7922626, 1.9303361], [-1.7520971, 2.0748837],
                             [-1.4802198, 2.1458969]])
    assert torch.allclose(black_and_white[:, 0], expected, atol=1e-5)
    picture = Image.fromarray(np.full((50, 60, 3), (255, 0, 255), np.uint8))
    colour = torch.tensor([1.9303361, -1.7520971, 2.1458969]).view(3, 1, 1).expand(3, 8, 8)
    for image in (media.evaluation_image(picture, 8),
                  media.training_image(picture, 8, torch.Generator())):
        assert torch.allclose(image, colour, atol=1e-5)


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
    of_training = lambda dataset, batches, workers: data.training_loader(dataset, batches)
    of_validation = lambda dataset, batch_size, workers: data.evaluation_loader(dataset, batch_size)
    monkeypatch.setattr(train, 'training_loader', of_training)
    monkeypatch.setattr(train, 'evaluation_loader', of_validation)
    watch(monkeypatch, train, 'training_loader', lambda _, *a: asked.append((len(a[1][0]), a[2])))
    watch(monkeypatch, train, 'evaluation_loader', lambda _, *a: asked.append(a[1:]))
    training('--workers', '3', '--batch-size', '6')
    assert asked == [(6, 3), (6, 3)]
    monkeypatch.undo()
    loaders = (data.training_loader([0, 1], [[0]], 2), data.evaluation_loader([0, 1], 2, 2))
    assert [loader.num_workers for loader in loaders] == [2, 2]


@pytest.mark.parametrize('share, cached', [('1', 12), ('0.5', 6)])
def test_cached_features_are_those_of_each_pair_s_own_sound(training, tmp_path, share, cached):
    assert training().forwards[0]['features'] is None
    seen = training('--epochs', '1', '--cache-audio', str(tmp_path / 'cache'),
                    '--cache-share', share, folder='cached')
    index = (tmp_path / 'cache/index.jsonl').read_text().splitlines()
    assert len(index) == 1 + cached
    for step in seen.forwards:
        wav = torch.stack([sound_of(n) for n in pairs_in(step)])
        expected = tiny_beats()(wav)
        assert torch.allclose(step['features'], expected, atol=2e-3)
        # closer to its own than to any other's
        distance = torch.cdist(step['features'].flatten(1), expected.flatten(1))
        assert distance.argmin(1).tolist() == [0, 1, 2, 3]
        step['self'].eval()
        A = step['self'].embed_audio(torch.zeros_like(wav), step['features'])
        assert torch.allclose(A, step['self'].embed_audio(wav), atol=2e-2)


def test_the_model_hears_the_features_that_it_is_given(tiny):
    model, _ = model_file.load_model('miniature')
    wav = torch.rand(2, 8000) - 0.5
    other = torch.rand(2, 8000) - 0.5
    given = model(torch.zeros(2, 3, SIZE, SIZE), other, features=model.beats(wav)).A
    assert torch.allclose(given, model.embed_audio(wav), atol=1e-5)
    assert not torch.allclose(given, model.embed_audio(other), atol=1e-3)


def test_prepared_pairs_are_used_and_are_the_same_pairs(training, tiny_root, tmp_path, monkeypatch):
    plain = training('--epochs', '1', folder='plain')
    folder = str(tmp_path / 'pairs')
    data.main(['prepare', '--data-root', str(tiny_root), '--out', folder, '--share', '0.75'])
    read = []
    note = lambda result, path, *seconds: read.append(number(path.stem))
    watch(monkeypatch, data, 'read_image', note)
    watch(monkeypatch, data, 'read_audio', note)
    seen = training('--epochs', '1', '--prepared', folder, folder='prepared')
    assert sorted(n for n in read if n < TRAIN) == [9, 9, 10, 10, 11, 11]   # not prepared
    for one, other in zip(seen.forwards, plain.forwards, strict=True):
        assert torch.equal(one['image'], other['image']) and torch.equal(one['wav'], other['wav'])


def test_caches_lie_in_the_data_root_unless_a_folder_is_named(training, tmp_path):
    root = write_root(tmp_path / 'root')
    training('--cache-audio', root=root)
    assert (root / 'cache/beats/index.jsonl').is_file()
    (root / f'vggsound/frames/{name(3)}.jpg').write_bytes(b'no picture')
    common = ['prepare', '--preset', 'paper', '--data-root', str(root)]
    with pytest.raises(media.SampleError, match=name(3)):
        data.main(common)
    data.main([*common, '--skip-bad-samples'])
    settings, *rows = (root / 'cache/pairs/index.jsonl').read_text().splitlines()
    settings = json.loads(settings)['settings']
    assert len(rows) == TRAIN - 1
    assert (settings['side'], settings['samples']) == (387, 160_000)    # 1.1 * 352, and 10 s


# ---- joins: answers

WORDS = ['dog', 'bell', '', 'drum', 'dog']


def test_each_pair_gets_the_embedding_of_its_own_answer(training, tmp_path):
    answer_of = lambda n: WORDS[n % 5]
    captions = write_captions(tmp_path / 'c.jsonl', answer_of)
    seen = training('--variant', 'av_llm', '--epochs', '1', '--captions', str(captions),
                    '--lambda-c', '0.5', '--tau', '0.3')
    clipseg, tokenizer = tiny_clipseg()
    encode = lambda word: clipseg.clip.get_text_features(**tokenizer([word], return_tensors='pt'))
    embedded = {word: encode(word).pooler_output[0] for word in set(WORDS) - {''}}
    for forward, (C, rows), terms, weights in zip(seen.forwards, seen.answers, seen.terms,
                                                  seen.weights, strict=True):
        words = [answer_of(n) for n in pairs_in(forward)]
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


def test_equal_answers_are_negatives_or_masked_as_the_option_says():
    A = torch.eye(4) + 0.1
    C = torch.tensor([[0.9, 0.3, 0.0, 0.2], [0.1, 0.2, 1.0, 0.4]])
    rows = torch.tensor([0, -1, 0, 1])                      # pairs 0 and 2 have one answer
    S = cosine(C[[0, 0, 1]][:, None], A[[0, 2, 3]][None])
    plain = info_nce(S, 0.5).item()
    S[0, 1] = S[1, 0] = -float('inf')
    masked = info_nce(S, 0.5).item()
    assert masked < plain - 0.1
    for choice, value in (('negatives', plain), ('masked', masked)):
        args = train.parse_args(['--variant', 'av_llm', '--same-answers', choice, '--tau', '0.5',
                                 '--lambda-i', '0', '--lambda-f', '0', '--lambda-reg', '0'])
        terms = train.loss_terms(model_file.Alignment(A, *[None] * 6), args, C, rows)
        assert set(terms) == {'acl_c'} and terms['acl_c'].item() == pytest.approx(value, rel=1e-5)


FILES = {'both': 'captions', 'image': 'captions-image', 'audio': 'captions-audio'}


@pytest.mark.parametrize('kind', FILES)
def test_captions_come_from_the_file_of_their_kind(training, tmp_path, kind, capsys):
    root = write_root(tmp_path / 'root')
    for file in FILES.values():
        write_captions(root / f'{file}.jsonl', lambda n: ['dog', 'bell'][n % 2])
    training('--variant', 'av_llm', '--captions-from', kind, root=root)
    assert f'{root / FILES[kind]}.jsonl: 12 of 12 pairs' in capsys.readouterr().out


def test_answers_are_known_again_by_what_each_pair_was_given(tmp_path, tiny):
    model, tokenizer = model_file.load_model('miniature')
    ids = [name(n) for n in range(TRAIN)]
    keys = []
    for shift in (0, 0, 1):                 # the last has the same words, each at the other pairs
        path = write_captions(tmp_path / 'c.jsonl', lambda n: ['dog', 'bell'][(n + shift) % 2])
        keys.append(load_answers(path, model, tokenizer, ids)[2])
    assert keys[0] == keys[1] != keys[2]

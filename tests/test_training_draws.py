"""What training draws at random, in which order it sees the pairs, and whether what it joins belongs together."""

import collections
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import answers
import data
import losses
import media
import model as model_file
import negatives
import train
from test_train_options import cosine, info_nce
from tiny import (SECONDS, SIZE, TRAIN, VAL, colours, name, number, pair_of_image, pair_of_sound, tiny, tiny_beats,     # noqa: F401
                  tiny_clipseg, tiny_root, training, watch, write_captions, write_root)


def pairs_in(seen):
    """The pairs of each step, by what their frames show."""
    return [[pair_of_image(one) for one in step['image']] for step in seen.forwards]


def crop_of(image):
    """Where a frame of the tiny root was cropped: (left, top, flipped), read off its ramps of 7 a pixel."""
    red, green, _ = colours(image)
    flipped = bool(red[0, 0] > red[0, -1])
    left, top = round(float(red.min()) / 7), round(float(green[0, 0]) / 7)
    expected = 7.0 * torch.arange(left, left + SIZE)
    assert torch.allclose(red[0], expected.flip(0) if flipped else expected, atol=0.01)
    assert torch.allclose(green[:, 0], 7.0 * torch.arange(top, top + SIZE), atol=0.01)
    return left, top, flipped


# ---- the order of the pairs

def test_order_depends_on_seed_and_epoch_and_each_epoch_sees_every_pair_once(training):
    orders = {}
    for seed in (0, 1):
        batches = pairs_in(training('--epochs', '2', '--seed', str(seed), folder=f'seed{seed}'))
        assert [len(batch) for batch in batches] == 6 * [4]
        for epoch in (0, 1):
            orders[seed, epoch] = sum(batches[3 * epoch:3 * epoch + 3], [])
            assert sorted(orders[seed, epoch]) == list(range(TRAIN))
    assert all(one != other for one, other in itertools.combinations(orders.values(), 2))
    again = pairs_in(training('--epochs', '2', '--seed', '1', folder='again'))
    assert sum(again, []) == orders[1, 0] + orders[1, 1]
    assert orders[0, 0] != list(range(TRAIN))


def test_each_process_takes_its_own_part_of_a_batch_and_its_own_noise(training, monkeypatch):
    alone = pairs_in(training('--epochs', '1', folder='alone'))
    parts, first = [], []
    for rank in (0, 1):
        monkeypatch.setattr(train, 'rank_and_processes', lambda: (rank, 2))
        monkeypatch.setattr(train, 'DistributedDataParallel', lambda model, **options: model)
        seen = training('--epochs', '1', folder=f'rank{rank}')
        parts.append(pairs_in(seen))
        first.append(seen)
    assert [one + other for one, other in zip(*parts)] == alone
    assert not torch.equal(first[0].forwards[0]['random'], first[1].forwards[0]['random'])
    for key, before in first[0].steps[0]['before'].items():                         # but one model
        assert torch.equal(before, first[1].steps[0]['before'][key])


# ---- weights, noise, dropout

def test_the_seed_decides_the_first_weights_and_all_noise(training):
    runs = [training('--steps', '2', '--seed', seed, folder=f'run{k}') for k, seed in enumerate('334')]
    weights = [run.steps[0]['before']['audio_proj.fc1.weight'] for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    random = [[one['random'] for one in run.forwards] for run in runs]
    assert torch.equal(random[0][0], random[1][0]) and torch.equal(random[0][1], random[1][1])
    assert not torch.equal(random[0][0], random[2][0]) and not torch.equal(random[0][0], random[0][1])
    torch.manual_seed(3)
    assert torch.equal(weights[0], model_file.load_model('miniature')[0].audio_proj.fc1.weight)


def test_areas_and_masked_images_take_two_draws_of_noise(training):
    out = training().forwards[0]['out']
    own = torch.stack([torch.sigmoid(out.M_G[i, i] + 1.4) for i in range(4)])
    assert out.M_I[:, 0].mean((1, 2)).tolist() == pytest.approx(own.mean((1, 2)).tolist(), abs=0.08)
    assert out.M_I[:, 0].mean((1, 2)).tolist() != out.areas.diagonal().tolist()


# ---- augmentation

def test_crops_vary_in_both_directions_and_half_are_flipped():
    rows, columns = np.mgrid[:35, :35]
    picture = Image.fromarray(np.stack([7 * columns, 7 * rows, 0 * rows], -1).astype(np.uint8))
    found = collections.Counter(crop_of(media.training_image(picture, SIZE, torch.Generator().manual_seed(s)))
                                for s in range(640))
    assert set(found) == set(itertools.product(range(4), range(4), (False, True)))  # each of 32, about 20 times
    assert max(found.values()) < 45
    assert sum(times for (_, _, flipped), times in found.items() if flipped) == pytest.approx(320, abs=50)


def test_a_training_frame_is_resized_to_a_tenth_more_before_it_is_cropped():
    rows, columns = np.mgrid[:70, :140]
    picture = Image.fromarray(np.stack([columns, 3 * rows, 0 * rows], -1).astype(np.uint8))
    crop = colours(media.training_image(picture, SIZE, torch.Generator().manual_seed(0)))
    assert abs(float((crop[0, 16, 20] - crop[0, 16, 10]) / 10)) == pytest.approx(4, abs=0.11)       # 140 columns to 35
    assert float((crop[1, 20, 16] - crop[1, 10, 16]) / 10) == pytest.approx(6, abs=0.11)            # 70 rows to 35


def test_a_pair_is_cropped_anew_in_each_epoch_and_with_each_seed_and_unlike_its_neighbours(training):
    crops = {}
    for seed in (0, 1):
        seen = training('--epochs', '2', '--seed', str(seed), folder=f'seed{seed}')
        for k, step in enumerate(seen.forwards):
            crops.update({(seed, k // 3, pair_of_image(one)): crop_of(one) for one in step['image']})
    assert len(crops) == 4 * TRAIN
    of = lambda seed, epoch: [crops[seed, epoch, n] for n in range(TRAIN)]
    for one, other in itertools.combinations([of(s, e) for s in (0, 1) for e in (0, 1)], 2):
        assert sum(a == b for a, b in zip(one, other)) < 4
    for order in itertools.product((0, 1), (0, 1)):
        assert len(set(of(*order))) > 6
    assert len({crop[:2] for crop in crops.values()}) > 10 and {flipped for *_, flipped in crops.values()} == {False, True}


def test_validation_frames_are_squashed_whole_and_always_alike(training, tiny_root):
    seen = training('--epochs', '2', '--batch-size', '5')
    images = [one['image'] for one in seen.validations]
    assert len(images) == 2 and torch.equal(*images)
    assert [pair_of_image(one) for one in images[0]] == list(range(TRAIN, TRAIN + VAL))
    with Image.open(tiny_root / f'vggsound/frames/{name(TRAIN)}.jpg') as frame:
        squashed = np.array(frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert torch.allclose(colours(images[0][0]).permute(1, 2, 0), torch.from_numpy(squashed).float(), atol=0.01)


def test_frames_are_normalised_by_clip_s_mean_and_deviation():
    black_and_white = media.normalise(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    # openai/CLIP: (0 or 1 - mean) / deviation
    expected = torch.tensor([[-1.7922626, 1.9303361], [-1.7520971, 2.0748837], [-1.4802198, 2.1458969]])
    assert torch.allclose(black_and_white[:, 0], expected, atol=1e-5)
    # a single colour stays what it is on either way into the model
    picture = Image.fromarray(np.full((50, 60, 3), (255, 0, 255), np.uint8))
    for image in (media.evaluation_image(picture, 8), media.training_image(picture, 8, torch.Generator())):
        colour = torch.tensor([1.9303361, -1.7520971, 2.1458969]).view(3, 1, 1)
        assert torch.allclose(image, colour.expand(3, 8, 8), atol=1e-5)


# ---- joins

def sound_of(n):
    """What the model should hear of pair n: half a second, even ones cut, odd ones padded with zeros."""
    sound = np.random.default_rng(n).integers(-3000, 3000, 16_000 if n % 2 == 0 else 4000)
    sound[0] = 512 * (n + 1)
    return torch.from_numpy(np.concatenate([sound, np.zeros(8000, int)])[:8000] / 32768).float()


@pytest.mark.parametrize('workers', ['0', '1'])
def test_every_frame_comes_with_its_own_sound(training, workers):
    seen = training('--epochs', '1', '--workers', workers)
    for step in (*seen.forwards, *seen.validations):
        for image, wav in zip(step['image'], step['wav'], strict=True):
            assert torch.equal(wav, sound_of(pair_of_image(image)))


def test_workers_reach_both_loaders(training, monkeypatch):
    asked = []
    monkeypatch.setattr(train, 'training_loader', lambda *a: asked.append(a[2]) or data.training_loader(*a[:2]))
    monkeypatch.setattr(train, 'evaluation_loader', lambda *a: asked.append(a[1:]) or data.evaluation_loader(*a[:2]))
    training('--workers', '3', '--batch-size', '6')
    assert asked == [3, (6, 3)]
    monkeypatch.undo()
    dataset = list(range(4))
    assert data.training_loader(dataset, [[0]], 2).num_workers == data.evaluation_loader(dataset, 2, 2).num_workers == 2


def test_cached_features_are_those_of_each_pair_s_own_sound(training, tmp_path, monkeypatch):
    for share, cached in (('1', 12), ('0.5', 6)):
        heard = []
        seen = training('--epochs', '1', '--cache-audio', str(tmp_path / share), '--cache-share', share, folder=share)
        (line, *rows) = (tmp_path / share / 'index.jsonl').read_text().splitlines()
        assert len(rows) == cached
        for step in seen.forwards:
            numbers = [pair_of_image(one) for one in step['image']]
            expected = tiny_beats()(torch.stack([sound_of(n) for n in numbers]))
            assert torch.allclose(step['features'], expected, atol=2e-3)
            nearest = torch.cdist(step['features'].flatten(1), expected.flatten(1)).argmin(1)
            assert nearest.tolist() == [0, 1, 2, 3]
    assert training().forwards[0]['features'] is None


def test_prepared_pairs_are_used_and_are_the_same_pairs(training, tiny_root, tmp_path, monkeypatch, capsys):
    plain = training('--epochs', '1', folder='plain')
    data.main(['prepare', '--data-root', str(tiny_root), '--out', str(tmp_path / 'pairs'), '--share', '0.75'])
    read = []
    watch(monkeypatch, data, 'read_image', lambda _, path: read.append(number(path.stem)))
    watch(monkeypatch, data, 'read_audio', lambda _, path, seconds: read.append(number(path.stem)))
    seen = training('--epochs', '1', '--prepared', str(tmp_path / 'pairs'), folder='prepared')
    assert sorted(n for n in read if n < TRAIN) == [9, 9, 10, 10, 11, 11]           # the quarter that was not prepared
    for one, other in zip(seen.forwards, plain.forwards, strict=True):
        assert torch.equal(one['image'], other['image']) and torch.equal(one['wav'], other['wav'])


WORDS = ['dog', 'bell', '', 'drum', 'dog']


def test_each_pair_gets_the_embedding_of_its_own_answer(training, tmp_path):
    answer_of = lambda n: WORDS[n * n % 5]
    captions = write_captions(tmp_path / 'c.jsonl', answer_of)
    seen = training('--variant', 'av_llm', '--epochs', '1', '--captions', str(captions), '--lambda-c', '0.5', '--tau', '0.3')
    clipseg, tokenizer = tiny_clipseg()
    embedded = {word: clipseg.clip.get_text_features(**tokenizer([word], return_tensors='pt')).pooler_output[0]
                for word in set(WORDS) - {''}}
    for step, (C, rows), terms, weights in zip(seen.forwards, seen.answers, seen.terms, seen.weights, strict=True):
        words = [answer_of(pair_of_image(one)) for one in step['image']]
        for word, row in zip(words, rows.tolist(), strict=True):
            assert row == -1 if word == '' else torch.allclose(C[row], embedded[word], atol=1e-5)
        has = [i for i, word in enumerate(words) if word]
        S = cosine(torch.stack([embedded[words[i]] for i in has])[:, None], step['out'].A[has][None])
        assert terms['acl_c'].item() == pytest.approx(info_nce(S, 0.3).item(), rel=1e-4)
        assert weights['acl_c'] == 0.5
    assert seen.log[0]['acl_c'] == pytest.approx(seen.terms[0]['acl_c'].item())
    total = sum(weight * seen.log[0][key] for key, weight in (('acl_i', 1), ('acl_f', 1), ('reg', 1), ('acl_c', 0.5)))
    assert seen.log[0]['loss'] == pytest.approx(total, rel=1e-5) and seen.saved['variant'] == 'av_llm'
    assert 'acl_c' not in training(folder='av').terms[0]                            # Eq. 5 has no such term


def test_equal_answers_are_negatives_or_masked_as_the_option_says():
    A = torch.eye(4) + 0.1
    C, rows = torch.tensor([[0.9, 0.3, 0.0, 0.2], [0.1, 0.2, 1.0, 0.4]]), torch.tensor([0, -1, 0, 1])
    S = cosine(C[[0, 0, 1]][:, None], A[[0, 2, 3]][None])       # pairs 0 and 2 have one answer
    plain = info_nce(S, 0.5)
    S[0, 1] = S[1, 0] = -float('inf')
    masked = info_nce(S, 0.5)
    for choice, value in (('negatives', plain), ('masked', masked)):
        args = train.parse_args(['--variant', 'av_llm', '--same-answers', choice, '--tau', '0.5', '--lambda-i', '0',
                                 '--lambda-f', '0', '--lambda-reg', '0'])
        terms = train.loss_terms(model_file.Alignment(A, *[None] * 6), args, C, rows)
        assert set(terms) == {'acl_c'} and terms['acl_c'].item() == pytest.approx(value.item(), rel=1e-5)
    assert masked.item() < plain.item() - 0.1
    assert train.parse_args(['--variant', 'av_llm']).same_answers == 'negatives'


@pytest.mark.parametrize('kind, file', [('both', 'captions'), ('image', 'captions-image'), ('audio', 'captions-audio')])
def test_captions_come_from_the_file_of_their_kind(training, tmp_path, kind, file):
    root = write_root(tmp_path / 'root')
    for k, other in enumerate(('captions', 'captions-image', 'captions-audio')):
        write_captions(root / f'{other}.jsonl', lambda n: ['dog', ('bell', 'drum', 'cat')[k]][n % 2])
    training('--variant', 'av_llm', '--captions-from', kind, root=root)
    assert [path.name for path in root.glob('*.embeddings')] == [f'{file}.jsonl.embeddings']


def test_answers_are_known_again_by_what_each_pair_was_given(tmp_path, tiny):
    model, tokenizer = model_file.load_model('miniature')
    keys = []
    for k, shift in enumerate((0, 0, 1)):
        args = train.parse_args(['--variant', 'av_llm', '--captions', str(tmp_path / f'{k}.jsonl')])
        write_captions(tmp_path / f'{k}.jsonl', lambda n: ['dog', 'bell'][(n + shift) % 2])
        answers.load_answers(args, model, tokenizer, [name(n) for n in range(TRAIN)], torch.device('cpu'))
        keys.append(args.answers)
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 12         # the same words, each at the other pairs


# ---- negatives of several processes

def test_rows_of_all_processes_come_in_the_order_of_ranks_and_gradients_go_back_to_their_own(monkeypatch):
    ask = lambda parts, x: [part.copy_(x + 10 * (k - 1)) for k, part in enumerate(parts)]
    for key, value in (('is_initialized', lambda: True), ('get_rank', lambda: 1), ('get_world_size', lambda: 3),
                       ('all_gather', ask), ('all_reduce', lambda total: total.mul_(2))):
        monkeypatch.setattr(negatives.dist, key, value)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    every = negatives.everyone(x)
    assert every.tolist() == [-9, -8, 1, 2, 11, 12] and negatives.first_of_mine(2) == 2
    (every * torch.arange(6.0)).sum().backward()
    assert x.grad.tolist() == [4, 6]                            # twice 2 and 3: what all ask of this process's rows
    assert negatives.everyone(torch.tensor([1, 2])).dtype == torch.int64


def test_global_negatives_ground_every_image_under_all_sounds_and_compare_it_with_its_own(tiny, monkeypatch):
    model, _ = model_file.load_model('miniature')
    torch.manual_seed(0)
    image, wav, others = torch.randn(2, 3, SIZE, SIZE), torch.rand(2, 8000) - 0.5, torch.randn(3, 16)
    monkeypatch.setattr(model_file, 'everyone', lambda A: torch.cat([others, A]))
    monkeypatch.setattr(model_file, 'first_of_mine', lambda b: 3)
    local, every = model(image, wav, 'soft'), model(image, wav, 'soft', negatives='global')
    assert local.A.shape == (2, 16) and local.first == 0 and every.first == 3
    assert torch.allclose(every.A, torch.cat([others, local.A]), atol=1e-6)
    assert torch.allclose(every.M_G[:, 3:], local.M_G, atol=1e-5) and every.M_G.shape[1] == 5
    assert torch.allclose(every.M_I, local.M_I, atol=1e-5) and torch.allclose(every.v_I, local.v_I, atol=1e-4)


@pytest.mark.parametrize('acl_f', ['paper', 'release'])
def test_gathered_terms_are_those_of_one_process_with_all_pairs(acl_f):
    torch.manual_seed(0)
    A, v_I, v_D, C = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8, 2, 2), torch.randn(3, 8)
    M_F, areas, rows = torch.rand(4, 4, 2, 2), torch.rand(4, 4), torch.tensor([0, 2, -1, 1])
    args = train.parse_args(['--variant', 'av_llm', '--negatives', 'global', '--acl-f', acl_f])
    part = lambda mine, first: model_file.Alignment(A, None, areas[mine], None, v_I[mine], M_F[mine], v_D[mine], first)
    alone = train.loss_terms(part(slice(0, 4), 0), args, C, rows)
    first_half = []
    train.loss_terms(part(slice(0, 2), 0), args, C, rows[:2], lambda x: first_half.append(x) or torch.cat([x, x]))
    both = train.loss_terms(part(slice(2, 4), 2), args, C, rows[2:], lambda x: torch.cat([first_half.pop(0), x]))
    assert {key: value.item() for key, value in both.items()} == pytest.approx({k: v.item() for k, v in alone.items()})
    assert set(alone) == {'acl_i', 'acl_f', 'reg', 'acl_c'} and not first_half


@pytest.mark.parametrize('choice, gather', [('local', []), ('global', [negatives.everyone])])
def test_negatives_reach_the_model_and_the_terms(training, choice, gather):
    seen = training('--negatives', choice)
    assert seen.forwards[0]['negatives'] == choice and list(seen.answers[0][2:]) == gather

"""From a batch to a step, a line of the log, a validation and summary.json: values by hand."""

import dataclasses
import json
import math
import time
from types import SimpleNamespace

import pytest
import torch

import checkpoints
import data
import losses
import model as model_file
import train
from conftest import assert_equal
from tiny import (SECONDS, SIZE, TRAIN, VAL, name, pair_of_image, pair_of_sound, tiny,  # noqa: F401
                  tiny_root, training, watch, write_captions, write_root)

CPU = torch.device('cpu')


# ---- the optimiser

def adam_by_hand(steps, weight_decay, betas=(0.9, 0.999), eps=1e-8):
    """Kingma and Ba's algorithm 1, the decay in the gradient. Yields the parameters after a step"""
    m = {key: torch.zeros_like(p) for key, p in steps[0]['before'].items()}
    v = {key: torch.zeros_like(p) for key, p in m.items()}
    for t, step in enumerate(steps, 1):
        after = {}
        for key, before in step['before'].items():
            g = step['gradient'][key] + weight_decay * before
            m[key] = betas[0] * m[key] + (1 - betas[0]) * g
            v[key] = betas[1] * v[key] + (1 - betas[1]) * g**2
            deviation = (v[key] / (1 - betas[1]**t)).sqrt()
            after[key] = before - step['lr'] * m[key] / (1 - betas[0]**t) / (deviation + eps)
        yield after


@pytest.mark.parametrize('flags, rates, weight_decay', [
    ('--lr 0.01 --weight-decay 0.3', [0.01, 0.02 / 3, 0.01 / 3], 0.3),
    ('--lr-schedule constant --weight-decay 0', [2e-3, 2e-3, 2e-3], 0)])
def test_a_step_is_adam_s_with_the_rate_schedule_and_decay_asked_for(
        training, flags, rates, weight_decay):
    seen = training('--steps', '3', *flags.split())
    assert [step['lr'] for step in seen.steps] == pytest.approx(rates)
    assert [entry['lr'] for entry in seen.log if 'lr' in entry] == pytest.approx(rates)
    for step, expected in zip(seen.steps, adam_by_hand(seen.steps, weight_decay), strict=True):
        for key, after in step['after'].items():
            assert torch.allclose(after, expected[key], atol=2e-5 * rates[0] + 1e-7), key
    for earlier, later in zip(seen.steps, seen.steps[1:]):
        assert_equal(earlier['after'], later['before'])


def test_each_step_begins_without_the_gradient_of_the_one_before(training):
    seen = training('--steps', '2', '--lr', '1e-12')        # a rate at which nothing moves
    model = seen.loaded[0]
    second = seen.forwards[1]
    model.train().zero_grad()
    torch.set_rng_state(second['random'])
    out = model(second['image'], second['wav'])
    losses.total_loss(train.loss_terms(out, seen.args), train.weights_of(seen.args)).backward()
    again = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for key, gradient in seen.steps[1]['gradient'].items():
        assert (gradient - again[key]).norm() <= 1e-3 * again[key].norm() + 1e-7, key


@pytest.mark.parametrize('broken', ['audio_proj.fc1.weight', 'masker_i.b',
                                    'audio_proj.fga.reduce_potentials.0.weight'])
def test_a_gradient_that_is_not_a_number_stops_the_run_though_the_loss_is_one(training, broken):
    def spoil(seen, one):
        if len(seen.forwards) == 2:
            parameter = dict(one['self'].named_parameters())[broken]
            parameter.register_hook(lambda gradient: gradient * float('nan'))

    with pytest.raises(ValueError, match='a gradient is not finite at step 1 on the pairs pair_'):
        training('--steps', '3', hook=spoil)


def test_steps_epochs_and_what_is_left_of_an_epoch(training):
    assert len(training('--epochs', '2', folder='a').steps) == 6        # 12 pairs, batches of 4
    # two pairs of an epoch are left over
    assert len(training('--epochs', '2', '--batch-size', '5', folder='b').steps) == 4
    # and here a batch: a step takes two
    seen = training('--steps', '4', '--accumulate', '2', folder='c')
    assert [len(part) for part in (seen.steps, seen.forwards, seen.validations)] == [4, 8, 4]
    assert all(value == 0.5 for weights in seen.weights for value in weights.values())
    with pytest.raises(ValueError, match='12 samples, fewer than 4 batch'):
        training('--accumulate', '4', folder='d')


def test_loss_and_terms_of_accumulated_batches_are_logged_as_their_means(training):
    seen = training('--accumulate', '3', '--lambda-f', '2', '--lambda-reg', '0')
    mean = {key: sum(terms[key].item() for terms in seen.terms) / 3 for key in ('acl_i', 'acl_f')}
    assert len(seen.terms) == 3
    for key, value in {**mean, 'loss': mean['acl_i'] + 2 * mean['acl_f']}.items():
        assert seen.log[0][key] == pytest.approx(value, rel=1e-5)


def test_the_time_between_checkpoints_is_the_one_asked_for(training, monkeypatch):
    saved = []
    watch(monkeypatch, train, 'save_checkpoint', lambda _, *a: saved.append(a[5]['step']))
    training('--epochs', '1', '--save-seconds', '0', folder='a')
    assert saved == [1, 2, 3, 3]        # each step, the epoch's end, its validation
    saved.clear()
    training('--epochs', '1', '--save-seconds', '1000', folder='b')
    assert saved == [3, 3]


# ---- the log

def test_a_line_of_the_log_by_hand(tmp_path, monkeypatch):
    clock = iter([100.0, 108.0, 120.0])
    monkeypatch.setattr(checkpoints, 'time', SimpleNamespace(time=lambda: next(clock)))
    alarm = SimpleNamespace(check=lambda: None)
    log = checkpoints.Log(tmp_path / 'log.jsonl', 0, False, alarm, enabled=True)
    areas = torch.tensor([[0.1, 0.2, 0.5], [0.3, 0.4, 0.7]])    # 3 audios, the last two these 2's
    out = SimpleNamespace(areas=areas, first=1)
    mask = SimpleNamespace(w=torch.tensor(3.0), b=torch.tensor(4.0))
    args = SimpleNamespace(batch_size=5, accumulate=2)
    bar = SimpleNamespace(set_postfix=lambda shown: None)
    for step in range(9, 21):
        log.step(step, 2, torch.tensor(6.0), {'acl_i': torch.tensor(1.5)}, out,
                 SimpleNamespace(masker_i=mask), args, bar, 0.25)
    line, next_line = (tmp_path / 'log.jsonl').read_text().splitlines()     # every tenth step
    assert json.loads(line) == pytest.approx(
        {'step': 10, 'epoch': 2, 'loss': 6.0, 'acl_i': 1.5, 'area_pos': 0.45, 'area_neg': 0.325,
         'w': 3.0, 'b': 4.0, 'lr': 0.25, 'pairs_per_second': 2 * 5 * 2 / 8})
    assert json.loads(next_line)['pairs_per_second'] == pytest.approx(10 * 5 * 2 / 12)


def test_steps_epochs_areas_and_masks_are_logged_as_they_were(training):
    seen = training('--epochs', '2')
    lines = [entry for entry in seen.log if 'loss' in entry]
    assert [(line['step'], line['epoch']) for line in lines] == [
        (0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    validated = [(line['step'], line['epoch']) for line in seen.log if 'val_loss' in line]
    assert validated == [(3, 0), (6, 1)]
    for line, one, step in zip(lines, seen.forwards, seen.steps, strict=True):
        areas = one['out'].areas
        others = areas[~torch.eye(4, dtype=torch.bool)]
        assert line['area_pos'] == pytest.approx(areas.diagonal().mean().item(), rel=1e-5)
        assert line['area_neg'] == pytest.approx(others.mean().item(), rel=1e-5)
        assert line['w'] == step['after']['masker_i.w'] and line['b'] == step['after']['masker_i.b']


# ---- validation

class Sure(torch.nn.Module):
    """Stands for the model: pairs are one-hot, but image 13 looks twice as much like 12."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, image, wav, image_mask, feature_mask):
        numbers = [pair_of_image(one) for one in image]
        assert numbers == [pair_of_sound(one) for one in wav]
        self.given.append((self.training, image_mask, feature_mask))
        self.drawn = torch.rand(1)
        one_hot = lambda n: torch.eye(VAL)[torch.tensor(n) - TRAIN]
        v_I = one_hot(numbers)
        if 13 in numbers:
            v_I[numbers.index(13)] = torch.tensor([2.0, 1, 0, 0, 0])
        areas = torch.full((len(image), len(image)), numbers[0] / 100)
        return model_file.Alignment(A=one_hot(numbers), M_G=None, areas=areas, M_I=None, v_I=v_I,
                                    M_F=None, v_D=None)


def validate(root, *flags, model=None):
    args = train.parse_args(['--data-root', str(root), '--lambda-f', '0', *flags])
    return train.validate(model or Sure(), data.VGGSound(root, 'val', SIZE, SECONDS), args, CPU)


def test_validation_is_the_mean_over_pairs(tiny, tiny_root):
    scores = validate(tiny_root, '--batch-size', '3', '--tau', '1', '--area', 'mean',
                      '--lambda-i', '0.5')
    # the first batch, S = [1 0 0], [a b 0], [0 0 1]: -log of the share of the right one
    a = 2 / 5**0.5
    b = 1 / 5**0.5
    nce = lambda right, *others: math.log(sum(map(math.exp, (right, *others)))) - right
    rows = (nce(1, 0, 0) + nce(b, a, 0) + nce(1, 0, 0)) / 3
    columns = (nce(1, a, 0) + nce(b, 0, 0) + nce(1, 0, 0)) / 3
    of_three = (rows + columns) / 2
    of_two = nce(1, 0)
    acl_i = (3 * of_three + 2 * of_two) / 5
    # areas of 0.12 in the first batch and 0.15 in the second, against 0.4 and 0
    reg = (3 * (0.28 + 0.12) + 2 * (0.25 + 0.15)) / 5
    assert scores == pytest.approx({'val_acl_i': acl_i, 'val_reg': reg, 'val_retrieval': 4 / 5,
                                    'val_loss': 0.5 * acl_i + reg, 'val_n': 5}, rel=1e-5)


def test_validation_is_without_dropout_and_has_its_own_random_numbers(tiny, tiny_root):
    model = Sure().train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    validate(tiny_root, '--batch-size', '3', '--image-mask', 'soft', '--feature-mask', 'image',
             model=model)
    assert torch.equal(torch.rand(1), expected)             # training's go on as without it
    assert model.given == 2 * [(False, 'soft', 'image')]
    first = model.drawn
    validate(tiny_root, '--batch-size', '3', model=model)
    assert torch.equal(first, model.drawn)                  # one validation is like another


def test_a_last_pair_alone_has_no_negatives_and_is_left_out(tiny, tiny_root):
    scores = validate(tiny_root, '--batch-size', '4')
    assert scores['val_n'] == 4 and scores['val_retrieval'] == 0.75


def test_unreadable_pairs_are_left_out_only_when_told_and_counted(tiny, training, tmp_path):
    root = write_root(tmp_path / 'root')
    for n in (3, TRAIN):
        (root / f'vggsound/frames/{name(n)}.jpg').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=f'{name(TRAIN)}.jpg .*--skip-bad-samples'):
        validate(root, '--batch-size', '5')
    assert validate(root, '--batch-size', '5', '--skip-bad-samples')['val_n'] == 4
    with pytest.raises(ValueError, match=f'{name(3)}.jpg .*--skip-bad-samples'):
        training('--epochs', '1', root=root, folder='a')
    for n in (7, 8):
        (root / f'vggsound/audio/{name(n)}.wav').unlink()
    with pytest.raises(ValueError, match='2 of 12 samples without'):
        training(root=root, folder='b')
    seen = training('--skip-bad-samples', '--epochs', '1', '--batch-size', '5', root=root,
                    folder='c')
    used = [pair_of_image(one) for step in seen.forwards for one in step['image']]
    assert sorted(used) == [0, 1, 2, 4, 5, 6, 9, 10, 11]
    assert seen.summary['skipped'] == {'without_files': 2, 'unreadable': 1}


def test_where_processes_keep_unequal_numbers_global_negatives_use_the_fewest(monkeypatch):
    batch = {'errors': [], 'id': ['a', 'b', 'c']}
    usable = lambda *flags: train.usable(batch, {'skipped': 0}, train.parse_args(flags))
    for fewest, local, everyone in ((3, 3, 3), (2, 3, 2), (1, 0, 0)):
        monkeypatch.setattr(train, 'smallest', lambda number: fewest)
        assert usable('--skip-bad-samples') == local
        assert usable('--skip-bad-samples', '--negatives', 'global') == everyone
    assert usable('--negatives', 'global') == 3             # then nothing was left out


# ---- the data root

def test_the_miniature_makes_its_world_and_captions_where_none_are_named(
        training, monkeypatch, tmp_path):
    made = []
    root = tmp_path / 'root'

    def make_captions(kind):
        made.append(kind)
        write_captions(root / f'captions-{kind}.jsonl', lambda n: ['dog', 'bell'][n % 2])

    here = dataclasses.replace(model_file.PRESETS['miniature'], data_root=str(root))
    monkeypatch.setitem(model_file.PRESETS, 'miniature', here)

    def build(path):
        assert path == str(root)
        write_root(root)
        write_captions(root / 'captions.jsonl', lambda n: ['cat', 'bell'][n % 2])   # another kind

    monkeypatch.setattr('miniature.world.build', build)
    monkeypatch.setattr(train, 'make_captions', make_captions)
    seen = training('--variant', 'av_llm', '--captions-from', 'audio', root=None)
    assert made == ['audio'] and seen.held_out[0][3] == str(root)
    training('--variant', 'av_llm', '--captions-from', 'audio', root=root, folder='named')
    assert made == ['audio']


def test_without_a_list_of_validation_pairs_there_is_no_validation(training, tmp_path, capsys):
    root = write_root(tmp_path / 'root')
    (root / 'vggsound/val.csv').unlink()
    seen = training(root=root)
    assert not seen.validations and len(seen.log) == 1
    assert f'no {root}/vggsound/val.csv' in capsys.readouterr().out
    assert [call[-1] for call in seen.held_out] == [False, False]       # no dropout in the scores


# ---- what a finished run leaves

def test_summary_and_table_hold_each_column_in_its_place(training, capsys):
    began = time.time()
    seen = training('--seed', '3')
    assert 0 <= seen.summary.pop('seconds') <= time.time() - began + 0.1
    untrained = {'cIoU': 11.0, 'mIoU': None, 'area_noise': 0.1}
    after = lambda column: {'cIoU': column + 2.0, 'mIoU': None, 'area_noise': 0.2}
    assert seen.summary == {
        'untrained': untrained, 'trained': after(10), 'oracle': after(20), 'ceiling': after(30),
        'seed': 3, 'n': {'boxes': 7}, 'skipped': {'without_files': 0, 'unreadable': 0}}
    assert [call[0] for call in seen.held_out] == 2 * [seen.loaded[0]]
    lines = capsys.readouterr().out.splitlines()
    row = lambda start: next(line.split()[-4:] for line in lines if line.startswith(start))
    assert row(' ') == ['untrained', 'trained', 'oracle', 'ceiling']
    assert row('cIoU, %') == ['11.0', '12.0', '22.0', '32.0'] and row('mIoU, %') == 4 * ['-']
    assert row('area_noise, %') == ['10.0', '20.0', '20.0', '20.0']
    assert any('seed 3, 1 steps' in line for line in lines)


def test_the_pictures_show_the_weights_of_the_beginning_and_of_the_end(training):
    seen = training('--seed', '3', '--audio-tokens', '2', '--p-pos', '0.3', '--p-neg', '0.2')
    untrained, trained = seen.sheets[0][:2]
    assert trained is seen.loaded[0] and untrained is seen.loaded[1]
    weights = dict(untrained.named_parameters())
    for key, before in seen.steps[0]['before'].items():
        assert torch.equal(weights[key], before), key
    assert not torch.equal(untrained.audio_proj.fc1.weight, trained.audio_proj.fc1.weight)
    out = seen.args.out
    assert seen.curves == [(out / 'log.jsonl', out / 'loss.png', 0.3, 0.2)]

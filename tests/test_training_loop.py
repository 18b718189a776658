"""From a batch to a step, a line of the log, a validation and summary.json: values by hand."""

import dataclasses
import json
import math
import re
import time
from types import SimpleNamespace

import pytest
import torch

import checkpoint
import data
import losses
import model as model_file
import train
from conftest import assert_equal
from tiny import (SECONDS, SIZE, TRAIN, VAL, name, pair_of_image, pair_of_sound, tiny,  # noqa: F401
                  tiny_root, training, write_captions, write_root)


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
    sum(losses.loss_terms(out).values()).backward()
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


def test_in_fp16_a_step_whose_gradient_overflows_is_left_out_and_the_run_goes_on(training):
    def spoil(seen, one):
        if len(seen.forwards) == 1:
            one['self'].masker_i.b.register_hook(lambda gradient: gradient * float('inf'))

    seen = training('--precision', 'fp16', '--steps', '2', hook=spoil)
    assert seen.code == 0 and seen.steps == [] and len(seen.forwards) == 2


def test_a_loss_that_is_not_a_number_stops_the_run_in_whichever_batch_of_a_step(training):
    def spoil(seen, one):
        if len(seen.forwards) == 2:
            one['out'].v_I = one['out'].v_I * float('nan')

    with pytest.raises(ValueError, match='the loss is nan or .* at step 0 on the pairs pair_'):
        training('--accumulate', '3', hook=spoil)


def test_steps_epochs_and_what_is_left_of_an_epoch(training):
    assert len(training('--epochs', '2', folder='a').steps) == 6        # 12 pairs, batches of 4
    # two pairs of an epoch are left over
    assert len(training('--epochs', '2', '--batch-size', '5', folder='b').steps) == 4
    # and here a batch: a step takes two
    seen = training('--steps', '4', '--accumulate', '2', folder='c')
    assert [len(part) for part in (seen.steps, seen.forwards, seen.validations)] == [4, 8, 4]
    assert all(value == 0.5 for weights in seen.weights for value in weights.values())
    assert len(training('--epochs', '2', '--accumulate', '2', folder='e').steps) == 2
    with pytest.raises(ValueError, match='12 samples, fewer than 4 batch'):
        training('--accumulate', '4', folder='d')


def test_what_is_logged_of_accumulated_batches_are_means(training):
    seen = training('--accumulate', '3', '--lambda-f', '2', '--lambda-reg', '0')
    assert len(seen.terms) == 3
    expected = {key: sum(terms[key].item() for terms in seen.terms) / 3 for key in seen.terms[0]}
    expected['loss'] = expected['acl_i'] + 2 * expected['acl_f']
    areas = [one['out'].areas for one in seen.forwards]
    others = ~torch.eye(4, dtype=torch.bool)
    expected['area_pos'] = sum(part.diagonal().mean().item() for part in areas) / 3
    expected['area_neg'] = sum(part[others].mean().item() for part in areas) / 3
    assert {key: seen.log[0][key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert seen.terms[0]['reg'] > 0 and seen.log[0]['reg'] > 0          # logged, with weight 0 too


# ---- the log

def test_a_line_of_the_log_by_hand(tmp_path, monkeypatch):
    areas = torch.tensor([[0.1, 0.2, 0.5], [0.3, 0.4, 0.7]])    # 3 audios, the last two these 2's
    assert losses.mean_areas(areas, 1) == pytest.approx({'area_pos': 0.45, 'area_neg': 0.325})
    clock = iter([100.0, 100.0, 108.0, 120.0])
    monkeypatch.setattr(checkpoint, 'time', SimpleNamespace(time=lambda: next(clock)))
    parts = [{'loss': torch.tensor(5.0), 'reg': torch.tensor(1.0)},
             {'loss': torch.tensor(7.0), 'reg': torch.tensor(2.0)}]
    run = checkpoint.Run(tmp_path)
    with run.steps_from(9, 0.0, 5 * 2):
        assert run.log(10, 2, parts, w=3.0, b=4.0, lr=0.25) == {'loss': 6.0, 'reg': 1.5}
        run.log(20, 2, parts)
    run.lock.release()
    line, next_line = (tmp_path / 'log.jsonl').read_text(encoding='utf-8').splitlines()
    assert json.loads(line) == pytest.approx(
        {'step': 10, 'epoch': 2, 'loss': 6.0, 'reg': 1.5, 'w': 3.0, 'b': 4.0, 'lr': 0.25,
         'pairs_per_second': 2 * 5 * 2 / 8})
    assert json.loads(next_line)['pairs_per_second'] == pytest.approx(10 * 5 * 2 / 12)


def test_every_tenth_step_is_logged(training):
    def every_tenth(seen, one):
        checkpoint.LOG_EVERY = log_every

    log_every = checkpoint.LOG_EVERY
    seen = training('--steps', '12', '--batch-size', '2', hook=every_tenth)
    assert [line['step'] for line in seen.log if 'loss' in line] == [0, 10]


def test_steps_epochs_and_masks_are_logged_as_they_were(training):
    seen = training('--epochs', '2')
    lines = [entry for entry in seen.log if 'loss' in entry]
    assert [(line['step'], line['epoch']) for line in lines] == [
        (0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    validated = [(line['step'], line['epoch']) for line in seen.log if 'val_loss' in line]
    assert validated == [(3, 0), (6, 1)]
    for line, step in zip(lines, seen.steps, strict=True):
        assert line['w'] == step['after']['masker_i.w'] and line['b'] == step['after']['masker_i.b']


# ---- validation

class Sure(torch.nn.Module):
    """Stands for the model: pairs are one-hot, but image 13 looks twice as much like 12."""

    def __init__(self):
        super().__init__()
        self.given = []
        self.beats = None
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, image, wav, image_mask, feature_mask, features):
        numbers = [pair_of_image(one) for one in image]
        assert numbers == [pair_of_sound(one) for one in wav]
        self.given.append((self.training, image_mask, feature_mask))
        self.drawn = torch.rand(1)
        A = torch.eye(VAL)[torch.tensor(numbers) - TRAIN]
        v_I = A.clone()
        if 13 in numbers:
            v_I[numbers.index(13)] = torch.tensor([2.0, 1, 0, 0, 0])
        B = len(image)
        areas = torch.full((B, B), numbers[0] / 100)
        return model_file.Alignment(A=A, M_G=None, areas=areas, M_I=None, v_I=v_I,
                                    M_F=torch.ones(B, B, 1, 1), v_D=v_I.view(B, VAL, 1, 1))


def validate(root, batch_size, model=None, skip_bad=False, image_mask='hard'):
    """val_... of losses at temperature 1, where L_ACL_I counts half and L_ACL_F not at all."""
    options = ['--tau', '1', '--area', 'mean', '--lambda-i', '0.5', '--lambda-f', '0',
               '--image-mask', image_mask, '--feature-mask', 'image', '--batch-size',
               str(batch_size)]
    args = train.parse_args(options + ['--skip-bad-samples'] * skip_bad)
    pairs = data.VGGSound(root, 'val', SIZE, SECONDS, skip_bad=skip_bad)
    return train.validate(args, model or Sure(), pairs)


def test_validation_is_the_mean_over_pairs(tiny, tiny_root):
    scores = validate(tiny_root, 3)
    # the first batch, S = [1 0 0], [a b 0], [0 0 1]: -log of the share of the right one
    a = 2 / 5**0.5
    b = 1 / 5**0.5
    rows = (nce(1, 0, 0) + nce(b, a, 0) + nce(1, 0, 0)) / 3
    columns = (nce(1, a, 0) + nce(b, 0, 0) + nce(1, 0, 0)) / 3
    of_three = (rows + columns) / 2
    acl_i = (3 * of_three + 2 * nce(1, 0)) / 5              # the second one has two pairs
    # areas of 0.12 in the first batch and 0.15 in the second, against 0.4 and 0
    reg = (3 * (0.28 + 0.12) + 2 * (0.25 + 0.15)) / 5
    # under masks of ones, v_F is v_I here
    assert scores == pytest.approx(
        {'val_acl_i': acl_i, 'val_acl_f': acl_i, 'val_reg': reg, 'val_retrieval': 4 / 5,
         'val_loss': 0.5 * acl_i + reg, 'val_n': 5}, rel=1e-5)


def nce(right, *others):
    return math.log(sum(map(math.exp, (right, *others)))) - right


def test_validation_is_without_dropout_and_one_is_like_another(tiny, tiny_root):
    model = Sure().train()
    validate(tiny_root, 3, model, image_mask='soft')
    assert model.given == 2 * [(False, 'soft', 'image')]
    first = model.drawn
    torch.manual_seed(5)
    validate(tiny_root, 3, model)
    assert torch.equal(first, model.drawn)


def test_a_batch_of_validation_is_as_large_as_one_process_s(tiny, tiny_root, monkeypatch):
    alone = validate(tiny_root, 3)
    monkeypatch.setattr(train, 'rank_and_processes', lambda: (0, 2))
    assert validate(tiny_root, 6) == alone


def test_a_last_pair_alone_has_no_negatives_and_is_left_out(tiny, tiny_root):
    scores = validate(tiny_root, 4)
    assert scores['val_n'] == 4 and scores['val_retrieval'] == 0.75


# ---- pairs that cannot be used

def break_frames(root, *numbers):
    for n in numbers:
        (root / f'vggsound/frames/{name(n)}.jpg').write_bytes(b'no picture')


def test_the_first_unreadable_pair_stops_a_run_unless_told_otherwise(training, tmp_path, capsys):
    root = write_root(tmp_path / 'root')
    break_frames(root, TRAIN)
    with pytest.raises(ValueError, match=f'{name(TRAIN)}.jpg .*--skip-bad-samples'):
        validate(root, 5)
    assert validate(root, 5, skip_bad=True)['val_n'] == 4
    said, = capsys.readouterr().out.splitlines()
    assert said.startswith('left out of the validation: ') and f'{name(TRAIN)}.jpg' in said
    assert '--skip-bad-samples' not in said
    break_frames(root, 3)
    with pytest.raises(ValueError, match=f'{name(3)}.jpg .*--skip-bad-samples'):
        training('--epochs', '1', root=root)
    (root / f'vggsound/audio/{name(7)}.wav').unlink()
    with pytest.raises(ValueError, match='1 of 12 samples without .*--skip-bad-samples'):
        training(root=root)


def test_in_the_place_of_an_unreadable_pair_the_next_one_is_trained(training, tmp_path, capsys):
    root = write_root(tmp_path / 'root')
    break_frames(root, 3)
    (root / f'vggsound/audio/{name(11)}.wav').write_bytes(b'no sound')
    for n in (7, 8):
        (root / f'vggsound/audio/{name(n)}.wav').unlink()
    captions = write_captions(tmp_path / 'c.jsonl', lambda n: ['dog', 'bell', 'cat'][n % 3])
    flags = ['--skip-bad-samples', '--batch-size', '5', '--save-seconds', '0', '--variant',
             'av_llm', '--captions', str(captions), '--cache-audio', str(tmp_path / 'cache')]
    first = training('--epochs', '1', *flags, root=root)
    rest = training('--epochs', '2', '--resume', '--overwrite', *flags, root=root)
    for seen in (first, rest):
        used = [pair_of_image(image) for one in seen.forwards for image in one['image']]
        assert sorted(used) == [0, 0, 1, 2, 4, 4, 5, 6, 9, 10]          # 4 for 3, and 0 for 11
        heard = [pair_of_sound(wav) for one in seen.forwards for wav in one['wav']]
        answers = [row for _, rows in seen.answers for row in rows.tolist()]
        assert heard == used or seen is rest            # whose cached sounds are not decoded
        assert len({(n % 3, row) for n, row in zip(used, answers)}) == 3
    assert len(list(tmp_path.glob('cache/*/*.npy'))) == 8 + VAL
    said = re.findall(r'skipped \((\d) so far\): .*/pair_0*(\d+)', capsys.readouterr().out)
    assert [number for number, _ in said] == ['1', '2', '3', '4']
    assert sorted(n for _, n in said[:2]) == sorted(n for _, n in said[2:]) == ['11', '3']
    assert first.saved['trainer']['skipped'] == 2 and rest.saved['trainer']['skipped'] == 4
    assert rest.summary['skipped'] == {'without_files': 2, 'unreadable': 4}


def test_skipped_pairs_of_all_processes_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(train.launch, 'gather_lists', lambda mine: [*mine, 'y of process 1'])
    batch = {'errors': [], 'unreadable': [['x of process 0'], []]}
    assert train.print_skipped(batch, 3) == 5
    assert capsys.readouterr().out.splitlines() == [
        'skipped (4 so far): x of process 0', 'skipped (5 so far): y of process 1']


def test_ten_unreadable_pairs_in_a_row_stop_a_run(training, tmp_path):
    root = write_root(tmp_path / 'root')
    break_frames(root, *range(9))
    pairs = data.VGGSound(root, 'train', SIZE, SECONDS, augmented=True, skip_bad=True)
    assert pairs[0]['id'] == name(9) and len(pairs[0]['unreadable']) == 9
    break_frames(root, 9)
    with pytest.raises(ValueError, match=f'10 pairs in a row cannot be read, .*{name(0)}.jpg'):
        training('--epochs', '1', '--skip-bad-samples', root=root)


# ---- the data root

def test_the_miniature_makes_its_world_and_captions_where_none_are_named(
        training, monkeypatch, tmp_path):
    made = []
    root = tmp_path / 'root'

    def make_captions(kind, device):
        made.append((kind, device))
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
    assert made == [('audio', 'cpu')] and seen.held_out[0][3] == str(root)
    training('--variant', 'av_llm', '--captions-from', 'audio', root=root, folder='named')
    assert made == [('audio', 'cpu')]


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
    after = {name: {'cIoU': score, 'mIoU': None, 'area_noise': 0.2}
             for name, score in (('trained', 12.0), ('oracle', 22.0), ('ceiling', 32.0))}
    assert seen.code == 0 and seen.summary == {
        'untrained': untrained, **after, 'seed': 3, 'n': {'boxes': 7},
        'skipped': {'without_files': 0, 'unreadable': 0}}
    assert [call[0] for call in seen.held_out] == 2 * [seen.loaded[0]]
    lines = capsys.readouterr().out.splitlines()
    rows = {name: values for name, *values in (re.split('  +', line) for line in lines)}
    assert rows['%'] == ['untrained', 'trained', 'oracle', 'perfect masks']
    assert rows['cIoU on boxes'] == ['11.0', '12.0', '22.0', '32.0']
    assert rows['mIoU, all scenes'] == 4 * ['-']
    assert rows['area under noise'] == ['10.0', '20.0', '20.0', '20.0']
    assert any('seed 3, 1 steps' in line for line in lines)


def test_the_summary_is_written_before_the_table_is_printed(training, monkeypatch, tmp_path):
    def full(_):
        raise OSError('stdout is full')

    monkeypatch.setattr(train, 'table_of', full)
    with pytest.raises(OSError, match='stdout is full'):
        training()
    assert json.loads((tmp_path / 'run/summary.json').read_text())['n'] == {'boxes': 7}


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

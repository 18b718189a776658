"""From a batch to a step, a line of the log, a validation, a checkpoint and summary.json: values worked out by hand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import checkpoints
import data
import losses
import model as model_file
import train
from conftest import assert_equal
from tiny import (TRAIN, VAL, name, pair_of_image, pair_of_sound, tiny, tiny_beats, tiny_root, training, watch,   # noqa: F401
                  write_captions, write_root)


# ---- the optimiser

def adam_by_hand(steps, weight_decay, betas=(0.9, 0.999), eps=1e-8):
    """Kingma and Ba's algorithm 1 with the decay in the gradient, on recorded gradients. -> parameters after each step"""
    m = {key: torch.zeros_like(p) for key, p in steps[0]['before'].items()}
    v = {key: torch.zeros_like(p) for key, p in m.items()}
    for t, step in enumerate(steps, 1):
        after = {}
        for key, before in step['before'].items():
            g = step['gradient'][key] + weight_decay * before
            m[key] = betas[0] * m[key] + (1 - betas[0]) * g
            v[key] = betas[1] * v[key] + (1 - betas[1]) * g**2
            after[key] = before - step['lr'] * (m[key] / (1 - betas[0]**t)) / ((v[key] / (1 - betas[1]**t)).sqrt() + eps)
        yield after


@pytest.mark.parametrize('flags, rates, weight_decay', [
    (['--lr', '0.01', '--weight-decay', '0.3'], [0.01, 0.02 / 3, 0.01 / 3], 0.3),
    (['--lr-schedule', 'constant', '--weight-decay', '0'], [2e-3, 2e-3, 2e-3], 0)])
def test_a_step_is_adam_s_with_the_rate_schedule_and_decay_that_were_asked_for(training, flags, rates, weight_decay):
    seen = training('--steps', '3', *flags)
    assert [step['lr'] for step in seen.steps] == pytest.approx(rates)
    assert [entry['lr'] for entry in seen.log if 'lr' in entry] == pytest.approx(rates)
    for step, expected in zip(seen.steps, adam_by_hand(seen.steps, weight_decay), strict=True):
        for key, after in step['after'].items():
            assert torch.allclose(after, expected[key], atol=2e-5 * rates[0] + 1e-7), key
    for earlier, later in zip(seen.steps, seen.steps[1:]):
        assert_equal(earlier['after'], later['before'])


def test_each_step_begins_without_the_gradient_of_the_last(training, monkeypatch):
    seen = training('--steps', '2', '--lr', '1e-12')
    # at that rate nothing moves: a gradient summed over steps would be the sum of both
    model = seen.loaded[0]
    one = seen.forwards[1]
    torch.set_rng_state(one['random'])
    model.train()
    out = model(one['image'], one['wav'])
    terms = train.loss_terms(out, seen.args)
    model.zero_grad()
    losses.total_loss(terms, {'acl_i': 1, 'acl_f': 1, 'reg': 1}).backward()
    for key, gradient in seen.steps[1]['gradient'].items():
        again = dict(model.named_parameters())[key].grad
        assert (gradient - again).norm() <= 1e-3 * again.norm() + 1e-7, key


@pytest.mark.parametrize('broken', ['audio_proj.fc1.weight', 'audio_proj.fga.reduce_potentials.0.weight', 'masker_i.b'])
def test_a_gradient_that_is_not_a_number_stops_the_run_though_the_loss_is_one(training, broken):
    def spoil(seen, one):
        if len(seen.forwards) == 2:
            dict(one['self'].named_parameters())[broken].register_hook(lambda gradient: gradient * float('nan'))

    with pytest.raises(ValueError, match='a gradient is not finite at step 1 on the pairs pair_'):
        training('--steps', '3', hook=spoil)


def test_steps_epochs_and_what_is_left_of_an_epoch(training):
    assert len(training('--epochs', '2', folder='a').steps) == 6                        # 12 pairs in batches of 4
    assert len(training('--epochs', '2', '--batch-size', '5', folder='b').steps) == 4   # two pairs of an epoch are left
    seen = training('--steps', '4', '--accumulate', '2', folder='c')                    # one step of two batches an epoch
    assert len(seen.steps) == 4 and len(seen.forwards) == 8 and len(seen.validations) == 4
    assert all(value == pytest.approx(0.5) for weights in seen.weights for value in weights.values())   # each half of a step
    with pytest.raises(ValueError, match='12 samples, fewer than 4 batch'):
        training('--accumulate', '4', folder='d')


def test_the_mean_over_accumulated_batches_is_logged(training):
    seen = training('--accumulate', '3', '--lambda-f', '2')
    by_batch = [(t['acl_i'] + 2 * t['acl_f'] + t['reg']).item() for t in seen.terms]
    assert len(by_batch) == 3 and seen.log[0]['loss'] == pytest.approx(sum(by_batch) / 3, rel=1e-5)


def test_the_time_between_checkpoints_is_the_one_asked_for(training, monkeypatch):
    saved = []
    watch(monkeypatch, train, 'save_checkpoint', lambda _, *a: saved.append(a[5]['step']))
    training('--epochs', '1', '--save-seconds', '0', folder='a')
    assert saved == [1, 2, 3, 3]                            # after each step, at the epoch's end, after its validation
    saved.clear()
    training('--epochs', '1', '--save-seconds', '1000', folder='b')
    assert saved == [3, 3]


# ---- the log

def test_a_line_of_the_log_by_hand(tmp_path, monkeypatch):
    clock = iter([100.0, 108.0])
    monkeypatch.setattr(checkpoints, 'time', SimpleNamespace(time=lambda: next(clock)))
    log = checkpoints.Log(tmp_path / 'log.jsonl', 0, False, SimpleNamespace(check=lambda: None), enabled=True)
    areas = torch.tensor([[0.1, 0.2, 0.5], [0.3, 0.4, 0.7]])                            # 2 images, 3 audios, the last two theirs
    out, mask = SimpleNamespace(areas=areas, first=1), SimpleNamespace(w=torch.tensor(3.0), b=torch.tensor(4.0))
    args, bar = SimpleNamespace(batch_size=5, accumulate=2), SimpleNamespace(set_postfix=lambda shown: None)
    for step in range(9, 11):
        log.step(step, 2, torch.tensor(6.0), {'acl_i': torch.tensor(1.5)}, out, SimpleNamespace(masker_i=mask), args, bar, 0.25)
    (entry,) = map(json.loads, (tmp_path / 'log.jsonl').read_text().splitlines())       # every tenth step
    assert entry == pytest.approx({'step': 10, 'epoch': 2, 'loss': 6.0, 'acl_i': 1.5, 'area_pos': 0.45, 'area_neg': 0.325,
                                   'w': 3.0, 'b': 4.0, 'lr': 0.25, 'pairs_per_second': 2 * 5 * 2 / 8})


def test_steps_epochs_areas_and_masks_are_logged_as_they_were(training):
    seen = training('--epochs', '2')
    steps = [entry for entry in seen.log if 'loss' in entry]
    assert [(entry['step'], entry['epoch']) for entry in steps] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert [(e['step'], e['epoch']) for e in seen.log if 'val_loss' in e] == [(3, 0), (6, 1)]
    for entry, one, step in zip(steps, seen.forwards, seen.steps, strict=True):
        off = one['out'].areas[~torch.eye(4, dtype=torch.bool)]
        assert entry['area_pos'] == pytest.approx(one['out'].areas.diagonal().mean().item(), rel=1e-5)
        assert entry['area_neg'] == pytest.approx(off.mean().item(), rel=1e-5)
        assert [entry['w'], entry['b']] == [step['after']['masker_i.w'].item(), step['after']['masker_i.b'].item()]


# ---- validation

class Sure(torch.nn.Module):
    """Stands for the model: every image and sound is the one-hot vector of its pair, and image 13 looks like 12."""

    def forward(self, image, wav, image_mask, feature_mask):
        self.given = getattr(self, 'given', []) + [(self.training, image_mask, feature_mask)]
        numbers = [pair_of_image(one) for one in image]
        assert numbers == [pair_of_sound(one) for one in wav]
        self.drawn = torch.rand(1)
        one_hot = lambda n: torch.eye(VAL)[torch.tensor(n) - TRAIN]
        B = len(numbers)
        return model_file.Alignment(A=one_hot(numbers), M_G=None, areas=torch.full((B, B), numbers[0] / 100), M_I=None,
                                    v_I=one_hot([12 if n == 13 else n for n in numbers]), M_F=None, v_D=None)


def test_validation_is_the_mean_over_pairs_and_draws_nothing_of_training_s(tiny, tiny_root):
    dataset = data.VGGSound(tiny_root, 'val', 32, 0.5)
    args = train.parse_args(['--data-root', str(tiny_root), '--batch-size', '3', '--lambda-f', '0', '--lambda-i', '0.5',
                             '--tau', '1', '--area', 'mean', '--image-mask', 'soft', '--feature-mask', 'image'])
    model = Sure().train()
    torch.manual_seed(5)
    scores, after = train.validate(model, dataset, args, torch.device('cpu')), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert model.given == 2 * [(False, 'soft', 'image')]
    right, wrong = -math.log(math.e / (math.e + 2)), math.log(math.e + 2)       # among three
    # the first batch: image 13 looks like 12, so row 2 and column 2 find nothing right; column 1 finds two alike
    rows = (2 * right + (math.log(math.e + 2) - 0)) / 3
    columns = (math.log(2 * math.e + 1) - 1 + math.log(3) + right) / 3
    three, two = (rows + columns) / 2, -math.log(math.e / (math.e + 1))
    reg = (3 * (0.4 - 0.12 + 0.12) + 2 * (0.4 - 0.15 + 0.15)) / 5
    expected = {'val_acl_i': (3 * three + 2 * two) / 5, 'val_reg': reg, 'val_retrieval': (2 + 2) / 5, 'val_n': 5,
                'val_loss': 0.5 * (3 * three + 2 * two) / 5 + reg}
    assert scores == pytest.approx(expected, rel=1e-5)
    first = model.drawn
    train.validate(model, dataset, args, torch.device('cpu'))
    assert torch.equal(first, model.drawn)                                      # the same noise at every validation


def test_a_last_pair_alone_has_no_negatives_and_is_left_out(tiny, tiny_root):
    args = train.parse_args(['--data-root', str(tiny_root), '--batch-size', '4', '--lambda-f', '0'])
    scores = train.validate(Sure(), data.VGGSound(tiny_root, 'val', 32, 0.5), args, torch.device('cpu'))
    assert scores['val_n'] == 4 and scores['val_retrieval'] == 0.75


def test_validation_names_what_it_cannot_read_or_leaves_it_out_when_told(tiny, tmp_path):
    root = write_root(tmp_path / 'root')
    (root / f'vggsound/frames/{name(TRAIN)}.jpg').write_bytes(b'no picture')
    dataset = data.VGGSound(root, 'val', 32, 0.5)
    common = ['--data-root', str(root), '--batch-size', '5', '--lambda-f', '0']
    with pytest.raises(ValueError, match=f'{name(TRAIN)}.jpg .*--skip-bad-samples'):
        train.validate(Sure(), dataset, train.parse_args(common), torch.device('cpu'))
    args = train.parse_args([*common, '--skip-bad-samples'])
    assert train.validate(Sure(), dataset, args, torch.device('cpu'))['val_n'] == 4


def test_unreadable_pairs_are_skipped_only_when_told_and_counted(training, tmp_path, capsys):
    root = write_root(tmp_path / 'root')
    (root / f'vggsound/frames/{name(3)}.jpg').write_bytes(b'no picture')
    (root / f'vggsound/audio/{name(7)}.wav').unlink()
    with pytest.raises(ValueError, match='1 of 12 samples without'):
        training(root=root, folder='a')
    seen = training('--skip-bad-samples', '--epochs', '1', root=root, folder='b')       # 11 pairs: two batches
    used = [pair_of_image(one) for step in seen.forwards for one in step['image']]
    assert 3 not in used and 7 not in used and len(used) in (7, 8)
    assert seen.summary['skipped'] == {'without_files': 1, 'unreadable': 8 - len(used)}


# ---- checkpoints

def test_a_checkpoint_holds_the_weights_and_how_they_were_made(training):
    seen = training('--steps', '2', '--prompt', 'the <*>', '--tau', '0.5')
    saved, model = seen.saved, seen.loaded[0]
    assert {key: saved[key] for key in ('prompt', 'audio_tokens', 'preset', 'variant')} == {
        'prompt': 'the <*>', 'audio_tokens': 1, 'preset': 'miniature', 'variant': 'av'}
    for key, value in seen.steps[-1]['after'].items():
        part, _, rest = key.partition('.')
        assert torch.equal(saved[part][rest], value)
    assert saved['trainer']['step'] == saved['trainer']['last_step'] == 2 and saved['trainer']['settings']['tau'] == 0.5
    assert saved['trainer']['optimiser']['state'][0]['step'] == 2 and model.training is False


KEPT = {    # setting: (what the run began with, what it is resumed with)
    'preset': ('miniature', 'paper'), 'variant': ('av_llm', 'av'), 'seed': (1, 2), 'batch_size': (4, 6), 'lr': (0.1, 0.2),
    'weight_decay': (0.1, 0.2), 'tau': (0.1, 0.2), 'lambda_i': (1.0, 2.0), 'lambda_f': (1.0, 2.0), 'lambda_reg': (1.0, 2.0),
    'lambda_c': (1.0, 2.0), 'captions_from': ('both', 'image'), 'same_answers': ('negatives', 'masked'),
    'p_pos': (0.4, 0.5), 'p_neg': (0.0, 0.1), 'area': ('release', 'sum'), 'acl_f': ('paper', 'release'),
    'image_mask': ('hard', 'soft'), 'feature_mask': ('feature', 'image'), 'audio_tokens': (1, 2),
    'prompt': ('the <*>', 'a <*>'), 'precision': ('float32', 'bf16'), 'clipseg': (None, 'a'), 'beats': (None, 'a'),
    'negatives': ('local', 'global'), 'accumulate': (1, 2), 'lr_schedule': ('constant', 'linear'), 'answers': (None, 'abc')}


@pytest.fixture
def saved_run(tmp_path):
    """A checkpoint of a run that began with KEPT's first values. -> resume(changed settings), folder"""
    began = {'out': tmp_path, **{key: first for key, (first, _) in KEPT.items()}}
    model = SimpleNamespace(audio_proj=torch.nn.Linear(2, 2), masker_i=model_file.MaskGenI(3, 4))
    optimiser = torch.optim.Adam([*model.audio_proj.parameters(), *model.masker_i.parameters()], 0.1)
    for group in optimiser.param_groups:
        for p in group['params']:
            p.grad = torch.ones_like(p)
    optimiser.step()
    scaler = torch.amp.GradScaler('cpu', init_scale=128.0)
    scaler.scale(torch.ones(1))
    torch.manual_seed(11)
    state = {'step': 5, 'last_step': 9, 'seconds': 3.5, 'skipped': 2, 'untrained': {'cIoU': 1.0}, 'unvalidated': True}
    checkpoints.save_checkpoint(tmp_path, model, optimiser, scaler, SimpleNamespace(**began), state, checkpoints.random_states())

    def resume(**changed):
        fresh = SimpleNamespace(audio_proj=torch.nn.Linear(2, 2), masker_i=model_file.MaskGenI(0, 0))
        adam = torch.optim.Adam([*fresh.audio_proj.parameters(), *fresh.masker_i.parameters()], 0.1)
        other = torch.amp.GradScaler('cpu')
        found = checkpoints.resume(tmp_path, fresh, adam, other, SimpleNamespace(**{**began, **changed}))
        return fresh, adam, other, found

    return SimpleNamespace(resume=resume, model=model, optimiser=optimiser, state=state)


def test_all_that_a_training_needs_comes_back(saved_run):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(12)
    model, optimiser, scaler, state = saved_run.resume()
    assert torch.equal(torch.rand(3), expected) and state == saved_run.state
    assert scaler.get_scale() == 128.0 and model.masker_i.w.item() == saved_run.model.masker_i.w.item() == pytest.approx(2.9)
    assert torch.equal(model.audio_proj.weight, saved_run.model.audio_proj.weight)
    assert_equal(optimiser.state_dict()['state'], saved_run.optimiser.state_dict()['state'])


def test_a_changed_setting_is_refused_by_name_and_every_one_that_matters_is_among_them(saved_run):
    for key, (first, other) in KEPT.items():
        with pytest.raises(ValueError, match='other answers' if key == 'answers' else f'--{key.replace("_", "-")} ') as error:
            saved_run.resume(**{key: other})
        assert key == 'answers' or (str(first) in str(error.value) and str(other) in str(error.value))
    # an option of train.py is among them, or does not change what is learnt
    free = ('out resume overwrite data_root data_root_given workers save_seconds skip_bad_samples cache_audio cache_share '
            'prepared pair_chunk epochs steps captions').split()
    assert set(vars(train.parse_args([]))) == set(KEPT) | set(free)


def test_a_resumed_run_goes_on_with_the_pairs_the_noise_and_the_rate_of_an_undisturbed_one(training):
    whole = training('--steps', '5', '--lr-schedule', 'constant', folder='whole')
    training('--steps', '2', '--lr-schedule', 'constant', folder='parts')
    rest = training('--steps', '5', '--lr-schedule', 'constant', '--resume', '--overwrite', folder='parts')
    assert [one['out'].first for one in rest.forwards] == [0, 0, 0]
    for one, other in zip(rest.forwards, whole.forwards[2:], strict=True):
        assert torch.equal(one['image'], other['image']) and torch.equal(one['wav'], other['wav'])
        assert torch.equal(one['random'], other['random'])
    assert_equal(rest.saved['audio_proj'], whole.saved['audio_proj'])
    assert_equal(rest.saved['trainer']['optimiser'], whole.saved['trainer']['optimiser'])
    assert rest.saved['trainer']['step'] == 5 and [e['step'] for e in rest.log if 'loss' in e] == [0, 1, 2, 3, 4]
    assert len(rest.held_out) == 1 and rest.summary['untrained'] == {'cIoU': 11.0, 'mIoU': None, 'area_noise': 0.1}


# ---- what a finished run leaves

def test_summary_and_table_hold_each_column_in_its_place(training, capsys):
    seen = training('--seed', '3')
    (model, _, _, _, eval_mode), (trained, *_) = seen.held_out[0], seen.held_out[1]
    assert model is trained is seen.loaded[0] and eval_mode is False
    seconds = seen.summary.pop('seconds')
    assert 0 < seconds < 600 and seen.summary == {
        'untrained': {'cIoU': 11.0, 'mIoU': None, 'area_noise': 0.1}, 'trained': {'cIoU': 12.0, 'mIoU': None, 'area_noise': 0.2},
        'oracle': {'cIoU': 22.0, 'mIoU': None, 'area_noise': 0.2}, 'ceiling': {'cIoU': 32.0, 'mIoU': None, 'area_noise': 0.2},
        'seed': 3, 'n': {'boxes': 7}, 'skipped': {'without_files': 0, 'unreadable': 0}}
    said = capsys.readouterr().out
    row = lambda start: next(line.split()[-4:] for line in said.splitlines() if line.startswith(start))
    assert row(' ') == ['untrained', 'trained', 'oracle', 'ceiling']
    assert row('cIoU, %') == ['11.0', '12.0', '22.0', '32.0'] and row('mIoU, %') == ['-'] * 4
    assert row('area_noise, %') == ['10.0', '20.0', '20.0', '20.0'] and 'seed 3, 1 steps' in said


def test_the_pictures_show_the_weights_of_the_beginning_and_of_the_end(training):
    seen = training('--seed', '3', '--audio-tokens', '2')
    untrained, trained = seen.sheets[0][:2]
    assert trained is seen.loaded[0] and untrained is seen.loaded[1]
    for key, before in seen.steps[0]['before'].items():
        assert torch.equal(dict(untrained.named_parameters())[key], before), key
    assert not torch.equal(untrained.audio_proj.fc1.weight, trained.audio_proj.fc1.weight)


def test_the_loss_curve_gets_the_run_s_log_and_priors(training):
    seen = training('--p-pos', '0.3', '--p-neg', '0.2')
    assert seen.curves == [(seen.args.out / 'log.jsonl', seen.args.out / 'loss.png', 0.3, 0.2)]

"""What a checkpoint holds, what comes back of it, and which settings must be those of the run."""

from types import SimpleNamespace

import pytest
import torch

import checkpoints
import model as model_file
import train
from conftest import assert_equal
from tiny import tiny, tiny_root, training      # noqa: F401


def test_a_checkpoint_holds_the_weights_and_how_they_were_made(training):
    seen = training('--steps', '2', '--prompt', 'the <*>', '--audio-tokens', '2', '--tau', '0.5')
    saved = seen.saved
    assert {key: saved[key] for key in ('prompt', 'audio_tokens', 'preset', 'variant')} == {
        'prompt': 'the <*>', 'audio_tokens': 2, 'preset': 'miniature', 'variant': 'av'}
    for key, value in seen.steps[-1]['after'].items():
        part, _, rest = key.partition('.')
        assert torch.equal(saved[part][rest], value)
    trainer = saved['trainer']
    assert trainer['step'] == trainer['last_step'] == 2 and trainer['settings']['tau'] == 0.5
    assert trainer['optimiser']['state'][0]['step'] == 2


KEPT = {    # setting: (what the run began with, what it is resumed with)
    'preset': ('miniature', 'paper'), 'variant': ('av_llm', 'av'), 'seed': (1, 2),
    'batch_size': (4, 6), 'lr': (0.1, 0.2), 'weight_decay': (0.1, 0.2), 'tau': (0.1, 0.2),
    'lambda_i': (1.0, 2.0), 'lambda_f': (1.0, 2.0), 'lambda_reg': (1.0, 2.0),
    'lambda_c': (1.0, 2.0), 'captions_from': ('both', 'image'),
    'same_answers': ('negatives', 'masked'), 'p_pos': (0.4, 0.5), 'p_neg': (0.0, 0.1),
    'area': ('release', 'sum'), 'acl_f': ('paper', 'release'), 'image_mask': ('hard', 'soft'),
    'feature_mask': ('feature', 'image'), 'audio_tokens': (1, 2), 'prompt': ('the <*>', 'a <*>'),
    'precision': ('float32', 'bf16'), 'clipseg': (None, 'a'), 'beats': (None, 'a'),
    'negatives': ('local', 'global'), 'accumulate': (1, 2),
    'lr_schedule': ('constant', 'linear'), 'answers': (None, 'abc')}
FREE = {    # they say where, how fast and how long, and not what is learnt
    'out', 'resume', 'overwrite', 'data_root', 'data_root_given', 'workers', 'save_seconds',
    'skip_bad_samples', 'cache_audio', 'cache_share', 'prepared', 'pair_chunk', 'epochs', 'steps',
    'captions'}                             # of which 'answers' is what was read


def parts(w, b):
    """A model's trained parts, their optimiser and a scaler."""
    model = SimpleNamespace(audio_proj=torch.nn.Linear(2, 2), masker_i=model_file.MaskGenI(w, b))
    trained = [*model.audio_proj.parameters(), *model.masker_i.parameters()]
    return model, torch.optim.Adam(trained, 0.1), torch.amp.GradScaler('cpu', init_scale=128.0)


@pytest.fixture
def began(tmp_path):
    """A checkpoint of a run with KEPT's first values, after one step."""
    args = SimpleNamespace(out=tmp_path, **{key: first for key, (first, _) in KEPT.items()})
    model, optimiser, scaler = parts(3, 4)
    for parameter in optimiser.param_groups[0]['params']:
        parameter.grad = torch.ones_like(parameter)
    scaler.scale(torch.ones(1))             # which makes it up
    optimiser.step()
    state = {'step': 5, 'last_step': 9, 'seconds': 3.5, 'skipped': 2, 'untrained': {'cIoU': 1.0},
             'unvalidated': True}
    torch.manual_seed(11)
    random = checkpoints.random_states()
    checkpoints.save_checkpoint(tmp_path, model, optimiser, scaler, args, state, random)
    return SimpleNamespace(args=args, model=model, optimiser=optimiser, state=state)


def test_all_that_a_training_needs_comes_back(began):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(12)
    model, optimiser, scaler = parts(0, 0)
    scaler = torch.amp.GradScaler('cpu')
    state = checkpoints.resume(began.args.out, model, optimiser, scaler, began.args)
    assert torch.equal(torch.rand(3), expected)
    assert state == began.state and scaler.get_scale() == 128.0
    assert [p.item() for p in model.masker_i.parameters()] == pytest.approx([2.9, 3.9])
    assert torch.equal(model.audio_proj.weight, began.model.audio_proj.weight)
    before = began.optimiser.state_dict()['state']
    assert before[0]['step'] == 1
    assert_equal(optimiser.state_dict()['state'], before)


@pytest.mark.parametrize('setting', KEPT)
def test_a_changed_setting_is_refused_by_name(began, setting):
    first, other = KEPT[setting]
    args = SimpleNamespace(**{**vars(began.args), setting: other})
    option = 'other answers' if setting == 'answers' else f'--{setting.replace("_", "-")} '
    with pytest.raises(ValueError, match=option) as error:
        checkpoints.resume(args.out, *parts(0, 0), args)
    if setting != 'answers':
        assert str(first) in str(error.value) and str(other) in str(error.value)


def test_the_checkpoint_before_the_last_stays(began):
    out = began.args.out
    scaler = torch.amp.GradScaler('cpu')
    checkpoints.save_checkpoint(out, began.model, began.optimiser, scaler, began.args,
                                {**began.state, 'step': 6}, checkpoints.random_states())
    steps = [torch.load(out / file, weights_only=True)['trainer']['step']
             for file in ('last.pt', 'previous.pt')]
    assert steps == [6, 5]


def rewrite(path, change):
    saved = torch.load(path, weights_only=True)
    change(saved['trainer'])
    torch.save(saved, path)


def test_a_checkpoint_from_before_an_option_counts_as_made_without_it(began):
    def forget(trainer):
        for setting in ('negatives', 'accumulate', 'lr_schedule'):
            del trainer['settings'][setting]
        trainer['random'] = trainer['random'][0]            # of the first process alone

    rewrite(began.args.out / 'last.pt', forget)
    torch.manual_seed(11)
    expected = torch.rand(1)
    checkpoints.resume(began.args.out, *parts(0, 0), began.args)
    assert torch.equal(torch.rand(1), expected)
    for setting in ('negatives', 'accumulate', 'lr_schedule'):
        args = SimpleNamespace(**{**vars(began.args), setting: KEPT[setting][1]})
        with pytest.raises(ValueError, match=f'--{setting.replace("_", "-")} '):
            checkpoints.resume(args.out, *parts(0, 0), args)


def test_every_option_either_must_stay_or_may_change():
    assert set(vars(train.parse_args([]))) == KEPT.keys() | FREE
    assert checkpoints.settings(train.parse_args([])).keys() == KEPT.keys()


@pytest.mark.parametrize('line, unvalidated, kept', [
    ('{"step": 4}', False, True), ('{"step": 5}', False, False), ('{"step": 6}', False, False),
    ('{"step": 5, "val_loss": 1}', False, True), ('{"step": 5, "val_loss": 1}', True, False),
    ('{"step": 4, "los', False, False), ('4', False, False)])
def test_a_log_loses_what_was_written_after_its_checkpoint(tmp_path, line, unvalidated, kept):
    (tmp_path / 'log.jsonl').write_text('{"step": 0}\n' + line)
    checkpoints.Log(tmp_path / 'log.jsonl', 5, unvalidated, None, enabled=True)
    expected = ['{"step": 0}', line] if kept else ['{"step": 0}']
    assert (tmp_path / 'log.jsonl').read_text().splitlines() == expected


def test_a_resumed_run_goes_on_as_an_undisturbed_one(training, capsys):
    undisturbed = training('--steps', '5', '--lr-schedule', 'constant', folder='undisturbed')
    training('--steps', '2', '--lr-schedule', 'constant', '--resume', folder='parts')
    assert 'nothing to resume' in capsys.readouterr().out
    rest = training('--steps', '5', '--lr-schedule', 'constant', '--resume', '--overwrite',
                    folder='parts')
    assert 'resuming at step 2' in capsys.readouterr().out
    for one, other in zip(rest.forwards, undisturbed.forwards[2:], strict=True):
        for given in ('image', 'wav', 'random'):
            assert torch.equal(one[given], other[given]), given
    assert_equal(rest.saved['audio_proj'], undisturbed.saved['audio_proj'])
    assert_equal(rest.saved['trainer']['optimiser'], undisturbed.saved['trainer']['optimiser'])
    assert rest.saved['trainer']['step'] == 5
    assert [line['step'] for line in rest.log if 'loss' in line] == [0, 1, 2, 3, 4]
    # the scores from before the training are those of the first start
    assert len(rest.held_out) == 1 and rest.summary['untrained']['cIoU'] == 11.0


def test_a_resumed_run_s_rate_reaches_0_at_its_new_end_and_its_seconds_add_up(training, capsys):
    first = training('--steps', '2', folder='run')
    rewrite(first.args.out / 'last.pt', lambda trainer: trainer.update(seconds=1000.0))
    rest = training('--steps', '4', '--resume', '--overwrite', folder='run')
    assert [step['lr'] for step in rest.steps] == pytest.approx([0.001, 0.0005])
    assert 1000 <= rest.summary['seconds'] < 1100 and rest.saved['trainer']['seconds'] > 1000
    assert 'reach 0 after step 2: now it does after step 4' in capsys.readouterr().out

"""What a checkpoint holds, what comes back of it, and which settings must be those of the run."""

import re
from types import SimpleNamespace

import pytest
import torch

import checkpoint
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
    'skip_bad_samples', 'cache_audio', 'cache_share', 'pair_chunk', 'epochs', 'steps', 'device',
    'captions'}                             # of which 'answers' is what was read


def parts(w, b):
    """A model's trained parts, their optimiser and a scaler."""
    model = SimpleNamespace(audio_proj=torch.nn.Linear(2, 2), masker_i=model_file.MaskGenI(w, b))
    trained = [*model.audio_proj.parameters(), *model.masker_i.parameters()]
    return model, torch.optim.Adam(trained, 0.1), torch.amp.GradScaler('cpu', init_scale=128.0)


def started(folder, resume=False):
    """A Run that leaves its folder free, as the end of its process would."""
    run = checkpoint.Run(folder, resume)
    run.lock.release()
    return run


@pytest.fixture
def began(tmp_path):
    """A checkpoint of a run with KEPT's first values, after one step."""
    settings = {key: first for key, (first, _) in KEPT.items()}
    model, optimiser, scaler = parts(3, 4)
    for parameter in optimiser.param_groups[0]['params']:
        parameter.grad = torch.ones_like(parameter)
    scaler.scale(torch.ones(1))             # which creates its scale
    optimiser.step()
    state = {'step': 5, 'last_step': 9, 'seconds': 3.5, 'skipped': 2, 'untrained': {'cIoU': 1.0}}
    run = started(tmp_path)

    def save(step):
        content = train.checkpoint_of(SimpleNamespace(**settings), model, optimiser, scaler,
                                      {**state, 'step': step, 'settings': settings})
        run.save(content)

    save(5)
    return SimpleNamespace(settings=settings, model=model, optimiser=optimiser, state=state,
                           save=save, resume=started(tmp_path, resume=True).resume)


def test_all_that_a_training_needs_comes_back(began):
    model, optimiser, _ = parts(0, 0)
    scaler = torch.amp.GradScaler('cpu')
    assert began.resume(model, optimiser, scaler, began.settings) == began.state
    assert scaler.get_scale() == 128.0
    assert [p.item() for p in model.masker_i.parameters()] == pytest.approx([2.9, 3.9])
    assert torch.equal(model.audio_proj.weight, began.model.audio_proj.weight)
    before = began.optimiser.state_dict()['state']
    assert before[0]['step'] == 1
    assert_equal(optimiser.state_dict()['state'], before)


def test_a_changed_setting_is_refused_by_name(began):
    for setting, (first, other) in KEPT.items():
        words = f'--{setting.replace("_", "-")} {first}, not {other}'
        words = 'other answers' if setting == 'answers' else words
        with pytest.raises(ValueError, match=re.escape(words)):
            began.resume(*parts(0, 0), {**began.settings, setting: other})


def test_the_checkpoint_before_the_last_stays(began, tmp_path):
    began.save(6)
    steps = [torch.load(tmp_path / file, weights_only=True)['trainer']['step']
             for file in ('last.pt', 'previous.pt')]
    assert steps == [6, 5]


def test_every_option_either_must_stay_or_may_change():
    assert set(vars(train.parse_args([]))) == (KEPT.keys() - {'answers'}) | FREE
    assert set(train.SETTINGS) == KEPT.keys() - {'answers'}


def test_a_log_loses_what_was_written_after_its_checkpoint(tmp_path):
    kept = ['{"step": 0}', '{"step": 4}', '{"step": 5, "val_loss": 1}']
    lost = ['{"step": 5}', '{"step": 6}', '{"step": 6, "val_loss": 1}', '4', '{"step": 4, "los']
    log = tmp_path / 'log.jsonl'
    log.write_text('\n'.join(kept + lost), encoding='utf-8')
    with started(tmp_path).steps_from(5, 0.0, 4):
        assert log.read_text(encoding='utf-8').splitlines() == kept


def test_a_run_that_failed_within_an_epoch_goes_on_as_an_undisturbed_one(training, capsys):
    def fail(seen, one):
        if len(seen.forwards) == 5:
            raise OSError('no memory')

    # three steps an epoch; this fails in the first batch of the third
    flags = '--steps 5 --batch-size 2 --accumulate 2 --save-seconds 0'.split()
    undisturbed = training(*flags, folder='undisturbed')
    with pytest.raises(OSError, match='no memory'):
        training(*flags, '--resume', folder='parts', hook=fail)
    assert 'nothing to resume' in capsys.readouterr().out
    rest = training(*flags, '--resume', folder='parts')
    assert 'resuming at step 2' in capsys.readouterr().out
    for one, other in zip(rest.forwards, undisturbed.forwards[4:], strict=True):
        for given in ('image', 'wav', 'random'):
            assert torch.equal(one[given], other[given]), given
    assert_equal(rest.saved['audio_proj'], undisturbed.saved['audio_proj'])
    assert_equal(rest.saved['masker_i'], undisturbed.saved['masker_i'])
    assert_equal(rest.saved['trainer']['optimiser'], undisturbed.saved['trainer']['optimiser'])
    assert rest.saved['trainer']['step'] == 5
    assert [line['step'] for line in rest.log if 'loss' in line] == [0, 1, 2, 3, 4]
    # the scores from before the training are those of the first start
    assert len(rest.held_out) == 1 and rest.summary['untrained']['cIoU'] == 11.0


def test_a_resumed_run_s_rate_reaches_0_at_its_new_end_and_its_seconds_add_up(training, capsys):
    last = training('--steps', '2').args.out / 'last.pt'
    saved = torch.load(last, weights_only=True)
    saved['trainer']['seconds'] = 1000.0
    torch.save(saved, last)
    rest = training('--steps', '4', '--resume', '--overwrite')
    assert [step['lr'] for step in rest.steps] == pytest.approx([0.001, 0.0005])
    assert 1000 <= rest.summary['seconds'] < 1100 and rest.saved['trainer']['seconds'] > 1000
    assert rest.saved['trainer']['last_step'] == 4
    assert 'reach 0 after step 2: now it does after step 4' in capsys.readouterr().out

"""What a checkpoint holds, what comes back of it, and which settings must be those of the run."""

from types import SimpleNamespace

import pytest
import torch

import train
from conftest import assert_equal
from tiny import tiny, tiny_root, training, write_root      # noqa: F401


def test_a_checkpoint_holds_the_weights_and_how_they_were_made(training):
    seen = training('--steps', '2', '--prompt', 'the <*>', '--audio-tokens', '2', '--tau', '0.5')
    saved = seen.saved
    assert {key: saved[key] for key in ('prompt', 'audio_tokens', 'preset', 'variant')} == {
        'prompt': 'the <*>', 'audio_tokens': 2, 'preset': 'miniature', 'variant': 'av'}
    for key, value in seen.steps[-1]['after'].items():
        part, _, rest = key.partition('.')
        assert torch.equal(saved[part][rest], value)
    trainer = saved['trainer']
    assert trainer['step'] == trainer['last_step'] == 2
    assert trainer['settings'].keys() == KEPT | {'answers', 'pairs'}
    for name in KEPT:
        assert trainer['settings'][name] == getattr(seen.args, name)
    assert trainer['settings']['tau'] == 0.5
    assert trainer['optimiser']['state'][0]['step'] == 2


KEPT = {    # they say what is learnt: a resumed run must have the same
    'preset', 'variant', 'seed', 'batch_size', 'lr', 'weight_decay', 'tau', 'lambda_i',
    'lambda_f', 'lambda_reg', 'lambda_c', 'captions_from', 'same_answers', 'p_pos', 'p_neg',
    'area', 'acl_f', 'image_mask', 'feature_mask', 'audio_tokens', 'prompt', 'precision',
    'clipseg', 'beats', 'negatives', 'accumulate', 'lr_schedule'}
FREE = {    # they say where, how fast and how long, and not what is learnt
    'out', 'resume', 'overwrite', 'data_root', 'data_root_given', 'workers', 'save_seconds',
    'skip_bad_samples', 'cache_audio', 'cache_share', 'pair_chunk', 'epochs', 'steps', 'device',
    'captions'}                             # of which 'answers' is what was read


def test_every_option_either_must_stay_or_may_change():
    assert set(vars(train.parse_args([]))) == KEPT | FREE
    assert train.MAY_CHANGE == FREE


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


def test_a_run_that_began_on_a_gpu_goes_on_with_the_optimiser_of_this_device(training):
    last = training('--steps', '2').args.out / 'last.pt'
    saved = torch.load(last, weights_only=True)
    saved['trainer']['optimiser']['param_groups'][0]['fused'] = True
    torch.save(saved, last)
    rest = training('--steps', '4', '--resume', '--overwrite')
    assert [one.param_groups[0]['fused'] for one in rest.optimisers] == [None]


def test_a_run_past_its_last_step_is_not_resumed(training):
    training('--steps', '3')
    flags = ['--resume', '--overwrite', '--steps']
    with pytest.raises(ValueError, match='last.pt is of step 3, past the last one, 2: ask for mor'):
        training(*flags, '2')
    assert training(*flags, '3').steps == []                # which scores it again


def test_a_new_slope_of_the_rate_is_said():
    said = []
    run = SimpleNamespace(say=said.append, last_pt='last.pt')
    for schedule, last_step in (('linear', 2), ('linear', 4), ('constant', 2)):
        train.check_resumed(run, {'step': 1, 'last_step': 4}, last_step, schedule)
    assert said == ['the learning rate was to reach 0 after step 4: now it does after step 2']


def test_a_run_resumes_with_the_pairs_that_it_began_with(training, tmp_path):
    training('--steps', '1')
    root = write_root(tmp_path / 'other')
    lines = (root / 'vggsound/train.csv').read_text().splitlines()
    (root / 'vggsound/train.csv').write_text('\n'.join(lines[:-1]))
    with pytest.raises(ValueError, match='was trained with other pairs: give it the same'):
        training('--steps', '2', '--resume', '--overwrite', root=root)

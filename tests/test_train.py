"""Training: it learns, and it resumes to the bit. Several processes and signals: test_processes.py."""

import json
import subprocess
import sys
import time

import pytest
import torch

import checkpoints
import data
import losses
import train
from conftest import ROOT, assert_equal, failed_in_one_sentence, saved_step
from miniature import world


def start(*arguments):
    return subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *map(str, arguments)], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_short_miniature_training_learns_to_localise(tmp_path, script):
    data_root = world.build(tmp_path / 'world', seed=9, splits={'train': 800, 'val': 32, 'vggss': 60, 'is4': 60})
    done = script('train.py', '--data-root', data_root, '--out', tmp_path / 'run', '--steps', 150)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    before, after, oracle = (summary[k] for k in ('untrained', 'trained', 'oracle'))
    assert summary['n'] == {'boxes': 60, 'masks': 180, 'multi': 120, 'pairs': 60, 'silence': 60}
    # two sounding objects in a frame: the untrained model cannot tell them apart, the trained one points at both
    assert after['both_right'] > before['both_right'] + 30 and after['mIoU_multi'] > before['mIoU_multi'] + 15
    assert after['mIoU_multi'] > 0.6 * oracle['mIoU_multi']
    log = [json.loads(line) for line in (tmp_path / 'run/log.jsonl').read_text().splitlines()]
    assert [e for e in log if 'loss' in e][-1]['loss'] < 0.7 * log[0]['loss'] and any('val_loss' in e for e in log)
    for name in ('last.pt', 'loss.png', 'before_after.png'):
        assert (tmp_path / 'run' / name).stat().st_size > 1000
    assert 'untrained' in done.stdout and 'oracle' in done.stdout       # the table
    # and the finished run is safe from a second start
    again = script('train.py', '--data-root', data_root, '--out', tmp_path / 'run', '--steps', 150)
    assert again.returncode == 1 and '--overwrite' in again.stderr


def test_a_run_killed_three_times_ends_in_the_same_bits(tmp_path, small_world, script, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')      # bits are promised on a CPU: CUDA sums in any order
    common = ['--data-root', small_world, '--steps', 60, '--batch-size', 4, '--save-seconds', 0]
    assert script('train.py', *common, '--out', tmp_path / 'whole').returncode == 0
    whole, folder = torch.load(tmp_path / 'whole/last.pt', weights_only=True), tmp_path / 'killed'
    for kill in range(3):                               # after a few steps of each start, wherever it then is
        process = start(*common, '--out', folder, '--resume')
        before = saved_step(folder)
        while process.poll() is None and saved_step(folder) < before + 2 + 5 * kill:
            time.sleep(0.005)
        assert process.poll() is None, 'finished before it could be killed'
        process.kill()
        process.wait()
    assert 0 < saved_step(folder) < 60
    assert script('train.py', *common, '--out', folder, '--resume').returncode == 0
    resumed = torch.load(folder / 'last.pt', weights_only=True)
    assert_equal(resumed['audio_proj'], whole['audio_proj'])
    assert_equal(resumed['masker_i'], whole['masker_i'])
    assert_equal(resumed['trainer']['optimiser']['state'], whole['trainer']['optimiser']['state'])
    assert_equal(resumed['trainer']['random'], whole['trainer']['random'])
    one, other = (strip_times(f / 'log.jsonl') for f in (folder, tmp_path / 'whole'))
    assert one == other                                 # no step twice, none missing, every validation there


def strip_times(path):
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != 'pairs_per_second'} for entry in entries]


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, small_world, script):
    common = ['--data-root', small_world, '--batch-size', 4, '--save-seconds', 0, '--out', tmp_path, '--resume']
    assert script('train.py', *common, '--steps', 4).returncode == 0
    (tmp_path / 'summary.json').unlink()
    (tmp_path / 'last.pt').write_bytes((tmp_path / 'last.pt').read_bytes()[:1000])
    done = script('train.py', *common, '--steps', 6)
    assert done.returncode == 0 and 'trying the one before it' in done.stdout
    assert torch.load(tmp_path / 'last.pt', weights_only=True)['trainer']['step'] == 6
    for name in ('last.pt', 'previous.pt'):
        (tmp_path / name).write_bytes(b'garbage')
    (tmp_path / 'summary.json').unlink()
    failed_in_one_sentence(script('train.py', *common, '--steps', 6), tmp_path / 'last.pt', 'no good', '--overwrite')


def test_a_disk_that_has_gone_ends_the_run_before_it_uses_up_its_steps():
    args, state = train.parse_args(['--skip-bad-samples']), {'skipped': 0}
    gone, fine = {'errors': ['x.jpg cannot be read'], 'id': []}, {'errors': [], 'id': ['a', 'b']}
    assert [train.usable(batch, state, args) for batch in [*9 * [gone], fine, *9 * [gone]]] == [*9 * [0], 2, *9 * [0]]
    with pytest.raises(ValueError, match='10 batches in a row .* 19 pairs are skipped'):
        train.usable(gone, state, args)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'log.jsonl').mkdir()
    log = checkpoints.Log(tmp_path / 'other.jsonl', 0, False, None, enabled=True)
    log.path = tmp_path / 'log.jsonl'
    with pytest.raises(OSError, match=f'cannot write {tmp_path}/log.jsonl .*--resume'):
        log.write({'step': 0})


@pytest.mark.parametrize('save_seconds, last', [('0', 'last.pt'), ('1000', 'none yet')])
def test_a_loss_that_is_not_finite_stops_with_its_step_pairs_and_last_checkpoint(tmp_path, small_world, monkeypatch,
                                                                                 save_seconds, last):
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    area, calls = losses.area_regulariser, []

    def breaks_at_the_fourth_step(*arguments):
        calls.append(1)
        return area(*arguments) * (float('nan') if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, 'area_regulariser', breaks_at_the_fourth_step)
    with pytest.raises(ValueError, match=r'the loss is nan .* at step 3 on the pairs train\d+_000000, .*' + last):
        train.train(train.parse_args(['--data-root', str(small_world), '--out', str(tmp_path), '--steps', '9',
                                      '--batch-size', '4', '--save-seconds', save_seconds]))
    assert not (tmp_path / 'last.pt').exists() if last == 'none yet' else saved_step(tmp_path) == 3     # never a spoilt one


@pytest.mark.parametrize('flags', [['--lr', 'nan'], ['--tau', '0'], ['--lambda-i', '-1'], ['--p-pos', '5'],
                                   ['--seed', '-1'], ['--steps', '0'], ['--batch-size', '1'], ['--workers', '-1']])
def test_options_out_of_range_are_named(flags, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags)
    assert flags[0] in capsys.readouterr().err


def test_overwriting_gives_up_the_old_run_only_for_something_new(tmp_path, small_world, monkeypatch):
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    (tmp_path / 'summary.json').write_text('old')
    options = ['--data-root', str(small_world), '--out', str(tmp_path), '--steps', '1', '--batch-size', '4',
               '--overwrite']
    area = losses.area_regulariser
    monkeypatch.setattr(losses, 'area_regulariser', lambda *arguments: area(*arguments) * float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        train.train(train.parse_args(options))
    assert (tmp_path / 'summary.json.old').read_text() == 'old'


def test_terms_of_weight_zero_are_left_out_and_the_flags_reach_the_equations():
    args = train.parse_args(['--lambda-i', '0', '--p-pos', '0.6', '--area', 'mean', '--lambda-reg', '2'])
    areas = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    alignment = type('Alignment', (), dict(A=torch.eye(2), v_I=None, M_F=torch.ones(2, 2, 1, 1),
                                           v_D=torch.eye(2).view(2, 2, 1, 1), areas=areas, first=0))
    terms = train.loss_terms(alignment, args)
    assert set(terms) == {'acl_f', 'reg'} and terms['reg'].item() == pytest.approx(0.1)
    total = losses.total_loss(terms, train.weights_of(args))
    assert total.item() == pytest.approx(terms['acl_f'].item() + 0.2)


def logged_losses(folder):
    entries = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    return [e['loss'] for e in entries if 'loss' in e]


def test_cached_audio_prepared_pairs_and_chunks_train_as_the_plain_run_does(tmp_path, small_world, monkeypatch, capsys):
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    monkeypatch.setattr(train, 'finish', lambda *a: None)
    monkeypatch.setattr(checkpoints, 'LOG_EVERY', 1)
    common = ['--data-root', str(small_world), '--steps', '4', '--batch-size', '4']
    data.main(['prepare', '--data-root', str(small_world), '--out', str(tmp_path / 'pairs')])
    for name, flags in (('plain', []), ('prepared', ['--prepared', str(tmp_path / 'pairs')]),
                        ('chunks', ['--pair-chunk', '4']), ('cached', ['--cache-audio', str(tmp_path / 'all')]),
                        ('share', ['--cache-audio', str(tmp_path / 'half'), '--cache-share', '0.5', '--workers', '1'])):
        train.train(train.parse_args([*common, '--out', str(tmp_path / name), *flags]))
    said = capsys.readouterr().out
    assert 'BEATs features: 96 rows' in said and 'BEATs features: 48 rows' in said and '96 of 96 pairs' in said
    plain = logged_losses(tmp_path / 'plain')
    assert len(plain) == 4 and logged_losses(tmp_path / 'prepared') == plain        # 16-bit mono sounds: to the bit
    for name in ('chunks', 'cached', 'share'):                                      # float16 features, four steps on
        assert logged_losses(tmp_path / name) == pytest.approx(plain, rel=2e-3), name
    train.train(train.parse_args([*common, '--out', str(tmp_path / 'again'), '--cache-audio', str(tmp_path / 'all')]))
    assert logged_losses(tmp_path / 'again') == logged_losses(tmp_path / 'cached')


def test_an_unfinished_or_foreign_cache_is_named(tmp_path, small_world, script):
    common = ['--data-root', small_world, '--out', tmp_path / 'run', '--steps', 1, '--batch-size', 4]
    failed_in_one_sentence(script('train.py', *common, '--prepared', tmp_path / 'none'), tmp_path / 'none', 'build it first')
    failed_in_one_sentence(script('data.py', 'prepare', '--data-root', tmp_path / 'nowhere'), 'nowhere')


def test_two_runs_never_write_one_folder(tmp_path, small_world, script):
    hold = subprocess.Popen([sys.executable, '-c', 'import checkpoints, types, pathlib, sys, time; lock = checkpoints.'
                             'claim_folder(types.SimpleNamespace(out=pathlib.Path(sys.argv[1]), overwrite=False, '
                             'resume=False)); print(1, flush=True); time.sleep(600)', str(tmp_path)], cwd=ROOT,
                            stdout=subprocess.PIPE)
    hold.stdout.readline()
    options = ['--data-root', small_world, '--out', tmp_path, '--steps', 1, '--batch-size', 4, '--resume']
    failed_in_one_sentence(script('train.py', *options), tmp_path, 'another process')
    hold.kill()                                             # the lock goes with the process
    hold.wait()
    assert script('train.py', *options).returncode == 0


def test_accumulated_gradients_are_the_mean_of_their_batches_and_resume_to_the_bit(tmp_path, small_world, monkeypatch):
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    monkeypatch.setattr(train, 'finish', lambda *a: None)
    monkeypatch.setattr(checkpoints, 'LOG_EVERY', 1)
    seen, rates, step = [], [], torch.optim.Adam.step

    def keep(self, closure=None):
        rates.append(self.param_groups[0]['lr'] / 1e-12)
        seen.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group['params']]))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, 'step', keep)
    # a rate that moves nothing, so that the two batches of a step meet the same weights in either run
    run = lambda name, *flags: train.train(train.parse_args([
        '--data-root', str(small_world), '--batch-size', '4', '--lr', '1e-12', '--out', str(tmp_path / name), *flags]))
    run('single', '--steps', '4')
    logged = [json.loads(line) for line in (tmp_path / 'single/log.jsonl').read_text().splitlines()]
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25])             # --lr-schedule linear, the miniature's
    assert [entry['lr'] / 1e-12 for entry in logged if 'lr' in entry] == pytest.approx(rates)
    run('double', '--steps', '1', '--accumulate', '2')
    run('double', '--steps', '2', '--accumulate', '2', '--resume')
    single, double = seen[:4], seen[4:]
    assert len(double) == 2
    for k in (0, 1):
        mean = (single[2 * k] + single[2 * k + 1]) / 2
        assert (double[k] - mean).norm() <= 1e-4 * mean.norm()
    of = logged_losses(tmp_path / 'single')
    assert logged_losses(tmp_path / 'double') == pytest.approx([(of[0] + of[1]) / 2, (of[2] + of[3]) / 2], rel=1e-5)

"""Training: it learns, it resumes to the bit, and it reduces gradients over processes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoints
import data
import losses
import processes
import train
from conftest import ROOT, failed_in_one_sentence
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


def wait_for_steps(folder, *running):
    """Until the log of a training that these processes run has its first line."""
    until = time.time() + 300
    while not (folder / 'log.jsonl').exists() or not (folder / 'log.jsonl').read_text():
        assert all(process.poll() is None for process in running) and time.time() < until
        time.sleep(0.05)


def saved_step(folder):
    for name in ('last.pt', 'previous.pt'):
        if (folder / name).exists():
            return torch.load(folder / name, weights_only=True)['trainer']['step']
    return 0


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


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


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
import model
import train
seen = {}
def keep(self, closure=None, step=torch.optim.Adam.step):
    seen['gradient'] = torch.cat([p.grad.flatten() for group in self.param_groups for p in group['params']])
    return step(self, closure)
torch.optim.Adam.step = keep
forward = model.SoundLocalizer.forward
def remember(self, image, wav, *more, **options):
    if self.training:
        seen.setdefault('ids', []).append(float(wav.abs().sum()))
        seen['model'] = self
    return forward(self, image, wav, *more, **options)
model.SoundLocalizer.forward = remember
train.finish = lambda *a: None
train.held_out = lambda *a, **k: ({}, {})
train.dist.destroy_process_group = lambda: None
train.train(train.parse_args(sys.argv[1:]))
state = torch.cat([p.detach().flatten() for p in seen['model'].parameters() if p.requires_grad])
for mine in (state, seen['gradient']):
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both), 'the processes have drifted apart'
data = [None, None]
dist.all_gather_object(data, seen['ids'])
assert not set(data[0]) & set(data[1]), 'both processes saw the same pairs'
print('agree', flush=True)
sys.stdout.flush()
__import__('os')._exit(0)       # see processes.exit_now
"""


@pytest.mark.parametrize('flags', [[], ['--lambda-i', '0', '--lambda-reg', '0'], ['--image-mask', 'soft'],
                                   ['--negatives', 'global', '--skip-bad-samples']])
def test_two_processes_see_different_pairs_and_share_gradients_and_weights(tmp_path, small_world, flags):
    root = small_world
    if '--skip-bad-samples' in flags:                       # the processes then lose different numbers of pairs
        root = shutil.copytree(small_world, tmp_path / 'world')
        ids = data.VGGSound(root, 'train', 96, 2.0).ids
        first_batch = data.epoch_batches(len(ids), 8, 0, 0, 0, 2)[0]        # of the first process
        (root / f'vggsound/frames/{ids[first_batch[0]]}.jpg').write_bytes(b'torn')
    (tmp_path / 'two.py').write_text(TWO_PROCESSES)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', tmp_path / 'two.py',
               '--data-root', root, '--steps', 3, '--batch-size', 8, '--out', tmp_path / 'run', *flags]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=400,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 0 and done.stdout.count('agree') == 2, done.stderr
    assert ('skipped (1 so far)' in done.stdout + done.stderr) == ('--skip-bad-samples' in flags)


@pytest.mark.parametrize('flags', [
    ['--lambda-i', '0'], ['--lambda-f', '0', '--lambda-reg', '0'], ['--lambda-i', '0', '--lambda-reg', '0'],
    ['--image-mask', 'soft'], ['--image-mask', 'feature'], ['--feature-mask', 'image'], ['--area', 'sum'],
    ['--area', 'mean', '--p-pos', '0.2', '--p-neg', '0.2'], ['--acl-f', 'release'], ['--audio-tokens', '4'],
    ['--prompt', 'An image of a <*>'], ['--precision', 'bf16']])
def test_every_ablation_flag_takes_a_step(tmp_path, small_world, monkeypatch, flags):
    # the scores at both ends are not what is asked here
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({'ours': {}, 'oracle': {}}, {}))
    monkeypatch.setattr(train, 'before_after_sheet', lambda *a, **k: None)
    args = train.parse_args(['--data-root', str(small_world), '--out', str(tmp_path / 'run'), '--steps', '2',
                             '--batch-size', '4', *flags])
    train.train(args)
    saved = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert saved['prompt'] == args.prompt and saved['audio_tokens'] == args.audio_tokens
    assert all(value.isfinite().all() for value in saved['audio_proj'].values())


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


@pytest.mark.parametrize('processes, number', [
    (1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT),
    # of torchrun alone: its processes have groups of their own, and hear of it by SIGTERM
    pytest.param(2, signal.SIGKILL, marks=pytest.mark.skipif(sys.platform != 'linux', reason='Linux tells of a dead parent'))])
def test_a_signal_to_all_ends_the_step_saves_and_the_run_goes_on(tmp_path, small_world, script, processes, number):
    out, launcher = tmp_path / 'run', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *(launcher if processes == 2 else []), str(ROOT / 'train.py'), '--data-root', str(small_world),
               '--batch-size', '4', '--out', str(out), '--save-seconds', '1000']
    before = signal.signal(signal.SIGINT, signal.default_int_handler)       # tests may run deaf to it, by a script's &
    process = subprocess.Popen([*command, '--steps', '100000', '--workers', '1'], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL, start_new_session=True,
                               env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})
    signal.signal(signal.SIGINT, before)
    try:
        wait_for_steps(out, process)
        os.killpg(process.pid, number)                      # loading processes too, as clusters and terminals do
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    step, name = saved_step(out), checkpoints.NAMES.get(number, 'SIGTERM')
    assert step > 0 and said.count(f'stopped by {name}; step {step} is saved') == 1 and '--resume' in said, said
    if processes == 1:                                      # torchrun has a code and words of its own
        assert process.returncode == 128 + number and 'Traceback' not in said
    if (processes, number) == (1, signal.SIGTERM):
        done = script('train.py', *command[2:], '--steps', step + 1, '--resume')
        assert f'resuming at step {step}' in done.stdout and saved_step(out) == step + 1, done.stderr


def test_the_first_ctrl_c_waits_for_the_step_and_the_second_does_not(capfd):
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers = {number: signal.getsignal(number) for number in before}
    try:
        with pytest.raises(KeyboardInterrupt), checkpoints.asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked == [signal.SIGINT] and 'Ctrl-C once more' in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGINT)
        assert {number: signal.getsignal(number) for number in before} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Struck(torch.utils.data.Dataset):
    """A dataset whose loading process is sent SIGTERM at every sample, by itself and so not by its trainer."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return self.dataset[index]


def test_a_validation_that_is_broken_off_costs_neither_the_epoch_nor_itself(tmp_path, small_world, monkeypatch):
    validate, arguments = train.validate, ['--data-root', str(small_world), '--batch-size', '32', '--out', str(tmp_path)]

    def break_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    monkeypatch.setattr(train, 'finish', lambda *a: None)
    monkeypatch.setattr(train, 'validate', break_off)
    with pytest.raises(KeyboardInterrupt):
        train.train(train.parse_args(arguments))
    assert saved_step(tmp_path) == 3                        # of 3 in the epoch
    saved = torch.load(tmp_path / 'last.pt', weights_only=True)
    saved['trainer']['random'] = saved['trainer']['random'][0]      # as earlier runs kept it
    torch.save(saved, tmp_path / 'last.pt')
    monkeypatch.setattr(train, 'validate', lambda model, dataset, *more: validate(model, Struck(dataset), *more))
    for _ in range(2):                                      # the second time it has been made
        train.train(train.parse_args([*arguments, '--resume', '--workers', '1']))
    log = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [(line['step'], line['epoch'], line['val_n']) for line in log if 'val_loss' in line] == [(3, 0, 16)]
    assert torch.equal(torch.load(tmp_path / 'last.pt', weights_only=True)['trainer']['random'][0][0],
                       saved['trainer']['random'][0])       # a validation leaves no trace in the random numbers


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return str(server.getsockname()[1])


@contextlib.contextmanager
def start_two(*arguments, program='train.py'):
    """Two processes of one training without torchrun, which would itself end the one when the other ends."""
    common = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'OMP_NUM_THREADS': '1',
              'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    both = [subprocess.Popen([sys.executable, str(ROOT / program), *map(str, mine)], cwd=ROOT, stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, text=True, env={**common, 'RANK': str(rank)})
            for rank, mine in enumerate(arguments)]
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.wait()


@pytest.mark.parametrize('lost', [0, 1])
def test_when_one_process_is_killed_the_other_says_so_and_ends(tmp_path, small_world, lost):
    arguments = ['--data-root', small_world, '--batch-size', 4, '--steps', 100000, '--out', tmp_path / 'run']
    with start_two(arguments, arguments) as both:
        wait_for_steps(tmp_path / 'run', *both)
        both[lost].kill()
        _, said = both[1 - lost].communicate(timeout=60)
    assert both[1 - lost].returncode == 1 and 'Traceback' not in said
    assert f'another of the 2 processes has ended, so process {1 - lost} stops too' in said and '--resume' in said


def test_two_processes_resume_to_the_bit_each_with_its_own_random_numbers(tmp_path, small_world):
    # one start for three trainings: 4 steps at once, and 2 and then 2
    (tmp_path / 'three.py').write_text("""
import os, sys, train
train.held_out, train.finish = lambda *a: ({}, {}), lambda *a: None
for port, name, *more in [part.split(',') for part in sys.argv[2:]]:
    os.environ['MASTER_PORT'] = port
    train.train(train.parse_args(['--data-root', sys.argv[1], '--batch-size', '4', '--lr-schedule', 'constant', '--out', name,
                                  *more]))
""")
    runs = [f'{free_port()},{tmp_path / name},--steps,{more}'
            for name, more in (('whole', 4), ('parts', 2), ('parts', '4,--resume'))]
    with start_two([small_world, *runs], [small_world, *runs], program=tmp_path / 'three.py') as both:
        said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    whole, parts = (torch.load(tmp_path / name / 'last.pt', weights_only=True) for name in ('whole', 'parts'))
    assert_equal(parts['audio_proj'], whole['audio_proj'])
    first, second = whole['trainer']['random']
    assert not torch.equal(first[0], second[0])
    assert_equal(parts['trainer']['random'], whole['trainer']['random'])


def test_processes_that_find_different_checkpoints_say_so(tmp_path, small_world, monkeypatch):
    monkeypatch.setattr(train, 'held_out', lambda *a, **k: ({}, {}))
    monkeypatch.setattr(train, 'finish', lambda *a: None)
    common = ['--data-root', str(small_world), '--batch-size', '4', '--out', str(tmp_path / '0')]
    train.train(train.parse_args([*common, '--steps', '2']))
    with start_two(*([*common[:4], '--steps', 4, '--resume', '--out', tmp_path / str(rank)] for rank in (0, 1))) as both:
        said = [process.communicate(timeout=300)[1] for process in both]
    for rank, found in enumerate(('step 2', 'no checkpoint')):
        assert both[rank].returncode == 1 and 'Traceback' not in said[rank], said[rank]
        assert f'train.py: process {rank} finds {found} in {tmp_path / str(rank)}, and not all' in said[rank]


@pytest.mark.skipif(not Path('/proc/thread-self/children').exists(), reason='finds the process in /proc')
def test_when_a_loading_process_is_killed_the_training_says_so_and_can_go_on(tmp_path, small_world, script):
    options = ['--data-root', small_world, '--batch-size', 4, '--workers', 1, '--save-seconds', 0, '--out', tmp_path]
    process = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *map(str, options), '--steps', '100000'], cwd=ROOT,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_for_steps(tmp_path, process)
        until, killed = time.time() + 300, []
        while process.poll() is None and time.time() < until:   # each epoch has a loading process of its own
            if saved_step(tmp_path) >= 2:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):        # ended just now
                    for child in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split():
                        os.kill(int(child), signal.SIGKILL)
                        killed.append(child)
            time.sleep(0.05)
    finally:
        process.kill()
    said = [line for line in process.communicate()[1].splitlines() if line.startswith('train.py: ')]
    assert killed and process.returncode == 1 and len(said) == 1, (process.returncode, said)
    assert 'a loading process died' in said[0] and '--resume goes on' in said[0]
    step = saved_step(tmp_path)
    assert script('train.py', *options, '--steps', step + 1, '--resume').returncode == 0 and saved_step(tmp_path) == step + 1


def test_only_what_a_lost_process_causes_is_said_to_be_one(monkeypatch):
    gone = RuntimeError('[pair.cc:547] Connection closed by peer [127.0.0.1]:38829')
    assert processes.lost_process(gone) is None                     # alone, there is none to lose
    monkeypatch.setattr(processes, 'rank_and_processes', lambda: (1, 2))
    assert 'another of the 2 processes has ended, so process 1 stops too' in processes.lost_process(gone)
    for other in ('', 'NCCL error: Duplicate GPU detected', 'gloo: op.preamble.length <= op.nbytes'):
        assert processes.lost_process(RuntimeError(other)) is None


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

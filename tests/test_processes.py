"""Several processes of one training, and signals: they share gradients, miss one another, save before they leave."""

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
import processes
import train
from conftest import ROOT, assert_equal, saved_step, wait_for_steps

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


HAMMERED = '''
import os, signal, time, torch, captions, evaluate, train
from beats import PositionConv
from processes import start_processes
start_processes()
heard = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
    signal.signal(number, lambda number, frame: heard.append(number))
trainer, end = os.getpid(), time.time() + 4
hammer = os.fork()
while not hammer and time.time() < end and os.getppid() == trainer:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        os.kill(trainer, number)
    time.sleep(0.0005)
if not hammer:
    os._exit(0)
conv, x = PositionConv(64, 64, 4), torch.randn(4, 64, 60)
with torch.no_grad():
    expected = conv(x)
    while time.time() < end:
        assert torch.equal(conv(x), expected)
os.waitpid(hammer, 0)
print(len(heard))
'''


def test_signals_that_strike_the_position_convolution_leave_memory_whole():
    done = subprocess.run([sys.executable, '-c', HAMMERED], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHONFAULTHANDLER': '',
                               'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr

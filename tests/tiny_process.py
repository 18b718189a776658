"""Trainings of toy size in processes of their own, which may be killed and sent signals.

    python tests/tiny_process.py killed FOLDER
    torchrun --standalone --nproc_per_node=2 tests/tiny_process.py two FOLDER

FOLDER/data is the data root of tiny.py.
"""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
                                          signal.SIGUSR1, signal.SIGCHLD})      # as train.py does

import copy  # noqa: E402
import dataclasses  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401        once, not in each child's first step of Adam
import torch.distributed as dist  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent))

import checkpoint  # noqa: E402
import data  # noqa: E402
import launch  # noqa: E402
import losses  # noqa: E402
import model as model_file  # noqa: E402
import tiny  # noqa: E402
import train  # noqa: E402
from conftest import send_from_a_third_process  # noqa: E402

ADAM_STEP = torch.optim.Adam.step


def use_toys():
    """The miniature's preset with the toy backbones; every step is logged; no scores."""
    clipseg, tokenizer = tiny.tiny_clipseg()
    beats = tiny.tiny_beats()           # either seeds torch when it is first made
    small = dataclasses.replace(model_file.PRESETS['miniature'], image_size=tiny.SIZE,
                                seconds=tiny.SECONDS)
    model_file.PRESETS['miniature'] = small
    model_file.load_clipseg = lambda path: (copy.deepcopy(clipseg), tokenizer)
    model_file.load_beats = lambda path: copy.deepcopy(beats)
    train.held_out = lambda *given, **more: ({}, {})
    train.before_after_sheet = train.curves.loss_curve = lambda *given: None
    checkpoint.LOG_EVERY = 1


def run(folder, out, *flags):
    """-> train's exit code"""
    args = train.parse_args(['--data-root', str(folder / 'data'), '--out', str(folder / out),
                             '--device', 'cpu', '--batch-size', '4', '--save-seconds', '0', *flags])
    return train.train(args)


def at_step(number, do):
    """Let do() happen before the number-th step from now is taken."""
    calls = []

    def step(self, closure=None):
        calls.append(1)
        if len(calls) == number:
            do()
        return ADAM_STEP(self, closure)

    torch.optim.Adam.step = step


def at_call(owner, name, number, do):
    """Let do() happen in the place of the number-th call from now."""
    original, calls = getattr(owner, name), []

    def call(*given):
        calls.append(1)
        return do() if len(calls) == number else original(*given)

    setattr(owner, name, call)


def send(number, whom):
    """A signal as clusters send it; returns when this process has received it."""
    send_from_a_third_process(number, whom)
    until = time.time() + 60
    while not checkpoint.asked:
        assert time.time() < until
        time.sleep(0.01)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# ---- one process, killed again and again

def in_a_child(prepare, folder, *flags):
    """A training in a forked process. -> its exit code, or minus the signal that ended it"""
    child = os.fork()
    if not child:
        prepare()
        launch.run_script('train.py', lambda: run(folder, *flags), '')
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(folder):
    flags = ['--epochs', '4']                                       # of 3 steps
    assert in_a_child(lambda: None, folder, 'whole', *flags) == 0
    for prepare in (lambda: at_step(3, die),
                    lambda: at_call(os, 'replace', 4, die),         # last.pt, of two a step
                    lambda: at_call(os, 'fsync', 3, die)):
        assert in_a_child(prepare, folder, 'parts', '--resume', *flags) == -signal.SIGKILL
    assert in_a_child(lambda: None, folder, 'parts', '--resume', *flags) == 0
    # a signal to the whole group, loading processes too
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        def stop_at_the_second_step(number=number):
            checkpoint.watch_signals()
            at_step(2, lambda: send(number, -os.getpgid(0)))

        code = in_a_child(stop_at_the_second_step, folder, 'stopped', '--resume', '--workers', '1',
                          *flags)
        assert code == 128 + number, code
    assert in_a_child(lambda: None, folder, 'stopped', '--resume', *flags) == 0
    # a loading process
    get = data.VGGSound.__getitem__
    data.VGGSound.__getitem__ = lambda pairs, k: die() if pairs.epoch else get(pairs, k)
    code = in_a_child(lambda: None, folder, 'loader', '--workers', '1', *flags)
    assert code == 1, code


# ---- two processes

def refused(*words_and_flags):
    words, *flags = words_and_flags
    try:
        run(*flags)
    except ValueError as error:
        assert words in str(error), error
        return
    raise AssertionError(f'not refused: {words}')


def two(folder):
    launch.start_processes('cpu')
    checkpoint.watch_signals()
    rank, processes = launch.rank_and_processes()
    assert processes == 2
    assert_gathered(rank)
    other = folder / f'other{rank}'
    shutil.copytree(folder / 'data', other / 'data')
    if rank:
        (other / f'data/vggsound/audio/{tiny.name(3)}.wav').unlink()
    refused(f'process {rank} finds {12 - rank} samples with files, and not all', other, 'run',
            '--skip-bad-samples')

    for name, flags in (('local', []), ('global', ['--negatives', 'global'])):
        flags = ['--epochs', '2', *flags]
        assert run(folder, f'whole_{name}', *flags) == 0
        # a signal to one of them stops both after the same step
        at_step(4, lambda: send(signal.SIGTERM, os.getpid()) if rank else None)
        assert run(folder, f'parts_{name}', *flags) == 128 + signal.SIGTERM
        torch.optim.Adam.step = ADAM_STEP
        checkpoint.asked.clear()
        assert run(folder, f'parts_{name}', '--resume', *flags) == 0
        assert_shared(folder, flags)
    out = ['parts_local', 'nowhere'][rank]
    found = ['step 6', 'no checkpoint'][rank]
    refused(f'process {rank} finds {found} in', folder, out, '--resume', '--overwrite', '--epochs',
            '2')

    (folder / f'right{rank}').touch()
    dist.barrier()
    at_step(2, lambda: die() if rank else None)
    run(folder, 'lost', '--steps', '100000')


def assert_gathered(rank):
    """Lists, rows and gradients come in the order of ranks, and numbers are compared."""
    assert launch.gather_lists([f'{rank}{k}' for k in range(rank + 1)]) == ['00', '10', '11']
    assert launch.largest([9, -2][rank]) == 9
    assert launch.largest([0.25, 0.75][rank]) == 0.75
    launch.agree(7, 'all have seven')
    try:
        launch.agree([7, 8][rank], 'not all have seven')
        raise SystemExit('an agreement was found')
    except ValueError as error:
        assert str(error) == 'not all have seven'

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank
    x.requires_grad_()
    gathered = losses.all_gather(x)
    assert gathered.tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
    numbers = losses.all_gather(torch.tensor([rank, -1]))
    assert numbers.tolist() == [0, -1, 1, -1] and numbers.dtype == torch.int64
    assert losses.all_gather(x.half()).dtype == torch.float32
    assert losses.first_own_row(2) == 2 * rank
    weights = torch.arange(8.0).view(4, 2) * (rank + 1)     # what this process asks of all rows
    (gathered * weights).sum().backward()
    assert x.grad.tolist() == [[[0, 3], [6, 9]], [[12, 15], [18, 21]]][rank]    # once and twice


def assert_shared(folder, flags):
    """Both processes see other pairs and end with the same gradients and weights."""
    ids, models = [], []
    collate, make = data.collate, train.load_model
    data.collate = lambda samples: ids.extend(s['id'] for s in samples) or collate(samples)
    train.load_model = lambda *a, **k: models.append(make(*a, **k)) or models[-1]
    run(folder, 'again', *flags, '--overwrite')
    data.collate, train.load_model = collate, make
    trained = [p for p in models[0][0].parameters() if p.requires_grad]
    gradients = torch.cat([p.grad.flatten() for p in trained])
    weights = torch.cat([p.detach().flatten() for p in trained])
    for mine in (gradients, weights):
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        assert torch.equal(*both), 'the processes have drifted apart'
    mine = set(ids[:6])                     # of the first epoch: 3 steps of 2
    both = launch.gather_lists([mine])
    assert len(mine) == 6 and not both[0] & both[1], both


if __name__ == '__main__':
    use_toys()
    scenario = {'killed': killed, 'two': two}[sys.argv[1]]
    launch.run_script('tiny_process.py', lambda: scenario(Path(sys.argv[2])), 'interrupted')

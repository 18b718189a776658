"""checkpoint.py: the signals that stop a run. Its folder: test_run_folder.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoint
from conftest import ROOT


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(checkpoint, 'asked', [])
    return checkpoint.asked


def test_the_signals_stay_blocked_while_the_world_is_drawn_and_its_processes_can_be_ended(tmp_path):
    # One process is killed while the other sleeps, which the pool then ends by SIGTERM. (Three
    # pieces of eight jobs: with two, Python may watch for the end of the first process only.)
    code = ('import signal, checkpoint\n'
            'from miniature import world\n'
            'if __name__ == "__main__":\n'
            '    signal.pthread_sigmask(signal.SIG_BLOCK, checkpoint.BLOCKED)\n'
            '    checkpoint.watch_signals()\n'
            '    jobs = ["import os; os._exit(1)"] * 8 + ["import time; time.sleep(1000)"] * 16\n'
            '    try:\n'
            '        world.in_parallel(exec, jobs, "drawing", 2)\n'
            '    except OSError as error:\n'
            '        print(error)\n'
            '    assert checkpoint.BLOCKED <= signal.pthread_sigmask(signal.SIG_BLOCK, ())\n')
    (tmp_path / 'pool.py').write_text(code)
    done = subprocess.run([sys.executable, tmp_path / 'pool.py'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'a process that was drawing has ended' in done.stdout


class Ended(BaseException):
    pass


def hear(monkeypatch, numbers, steps):
    """_watch on these signals, `steps` of them during the steps. -> what it did after each"""
    done, signals = [], iter(numbers)

    def sigwait(held):
        assert held == checkpoint.BLOCKED
        if len(done) == steps:
            checkpoint.taking_steps.clear()
        done.append('')
        try:
            return next(signals)
        except StopIteration:
            raise Ended from None

    def end(code):
        done[-1] = f'ended {code}'
        raise Ended

    def interrupt():
        done[-1] = 'interrupted'

    monkeypatch.setattr(signal, 'sigwait', sigwait, raising=False)
    monkeypatch.setattr(checkpoint._thread, 'interrupt_main', interrupt)
    monkeypatch.setattr(os, '_exit', end)
    if steps:
        checkpoint.taking_steps.set()
    try:
        checkpoint.wait_for_signals()
    except Ended:
        pass
    finally:
        checkpoint.taking_steps.clear()
    return done[:len(numbers)]


def test_signals_wait_for_the_end_of_a_step_and_a_second_ctrl_c_does_not(monkeypatch, asked,
                                                                         capsys):
    TERM, INT = signal.SIGTERM, signal.SIGINT
    assert hear(monkeypatch, [INT], 0) == ['interrupted'] and not asked
    assert hear(monkeypatch, [TERM], 0) == ['ended 143'] and not asked
    assert hear(monkeypatch, [TERM, TERM, INT], 3) == ['', '', 'ended 130']
    assert asked == [TERM, TERM] and checkpoint.stop_asked() == TERM
    assert capsys.readouterr().err.count('stopping after this step') == 2
    asked.clear()
    assert hear(monkeypatch, [INT, INT], 2) == ['', 'ended 130'] and asked == [INT]
    asked.clear()
    assert hear(monkeypatch, [INT, INT], 1) == ['', 'interrupted']      # the pictures were drawn


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='not on Windows')
def test_train_py_blocks_what_it_waits_for_before_anything_starts_a_thread():
    """The first statement after the docstring and `import signal`, in the process of a script."""
    path = Path(checkpoint.__file__).with_name('train.py')
    head = path.read_text(encoding='utf-8').partition('\nimport argparse')[0]
    assert 'import torch' not in head and head.count('\nimport ') == 1
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        exec(compile(head, 'train.py', 'exec'), {'__name__': '__main__'})
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert blocked >= checkpoint.BLOCKED | {signal.SIGCHLD}
    exec(compile(head, 'train.py', 'exec'), {'__name__': 'train'})      # imported: it blocks none
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

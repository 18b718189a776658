"""What a signal must not do to a process that computes."""

import os
import subprocess
import sys

from conftest import ROOT

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

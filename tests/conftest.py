"""Shared by the tests: the repository on the path, two threads, a small world, the golden folder, what a run has saved."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)
os.environ['HF_HUB_OFFLINE'] = '1'      # a test that asks the hub for something is wrong, or about its absence

from miniature import world  # noqa: E402

SMALL = {'train': 96, 'val': 16, 'vggss': 16, 'is4': 8, 'ext_vggss': 6, 'flickr': 4, 'ext_flickr': 6, 'vpo_ss': 4, 'vpo_ms': 6,
         'avs_s4': 2, 'avs_ms3': 2, 'ade20k': 6, 'vgg_instruments': 6, 'vgg_duet': 8}


@pytest.fixture(scope='session')
def small_world(tmp_path_factory):
    """A data root with a few dozen pairs, in the layout of the real datasets. Copy it before you damage it."""
    return world.build(tmp_path_factory.mktemp('data') / 'world', seed=5, splits=SMALL, processes=2)


@pytest.fixture(scope='session')
def golden():
    """The folder of golden files: $ACL_GOLDEN, or the one in tests/."""
    return Path(os.environ.get('ACL_GOLDEN') or ROOT / 'tests/golden')


@pytest.fixture
def script():
    """Run a script of the repository as a user would: script('train.py', '--steps', 3) -> finished process."""
    def run(name, *arguments, **more):
        return subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], capture_output=True, text=True,
                              cwd=more.pop('cwd', ROOT), timeout=400, **more)
    return run


def failed_in_one_sentence(process, *words):
    """The script said what is wrong in one sentence that holds these words, without a traceback, and exit code 1."""
    said = [line for line in process.stderr.splitlines() if line.startswith(('train.py:', 'evaluate.py:', 'captions.py:', 'bench.py:',
                                                                             'data.py:'))]
    assert process.returncode == 1, process.stderr
    assert 'Traceback' not in process.stderr and len(said) == 1, process.stderr
    for word in words:
        assert str(word) in said[0], said[0]


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

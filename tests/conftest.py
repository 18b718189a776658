"""Shared by the tests: one thread, no hub, a small world, scripts, signals, comparisons."""

import os
import re
import subprocess
import sys
from pathlib import Path

# for the processes that tests start, too
os.environ['OMP_NUM_THREADS'] = '1'     # tensors so small only wait for a second thread
os.environ['HF_HUB_OFFLINE'] = '1'      # a test that asks the hub is wrong, or about its absence

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)

from miniature import world  # noqa: E402

SMALL = {'train': 96, 'val': 16, 'vggss': 16, 'is4': 8, 'ext_vggss': 6, 'flickr': 4,
         'ext_flickr': 6, 'vpo_ss': 4, 'vpo_ms': 6, 'avs_s4': 2, 'avs_ms3': 2, 'ade20k': 6,
         'vgg_instruments': 6, 'vgg_duet': 8}


@pytest.hookimpl(tryfirst=True)     # before pytest-xdist looks
def pytest_cmdline_main(config):
    """The complete suite runs in several processes, a file in one of them; named tests in one.

    So do -k, and --pdb, --trace and -s, which need this terminal.
    """
    given = config.option
    in_one = given.keyword or given.usepdb or given.trace or given.capture == 'no'
    complete = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not in_one
    is_worker = 'PYTEST_XDIST_WORKER' in os.environ
    if complete and not is_worker and config.pluginmanager.has_plugin('xdist'):
        if config.option.numprocesses is None:
            config.option.numprocesses = min(4, os.cpu_count() or 1)
            config.option.dist = 'loadfile'


@pytest.fixture(scope='session')
def small_world(tmp_path_factory):
    """A data root with a few dozen pairs, in the layout of the real datasets.

    Copy it before you damage it.
    """
    folder = tmp_path_factory.mktemp('data') / 'world'
    return world.build(folder, seed=5, splits=SMALL, processes=2)


@pytest.fixture(scope='session')
def golden():
    """The folder of golden files: $ACL_GOLDEN, or the one in tests/."""
    return Path(os.environ.get('ACL_GOLDEN') or ROOT / 'tests/golden')


@pytest.fixture
def script():
    """Run a script as a user would: script('train.py', '--steps', 3) -> the finished process."""
    def run(name, *arguments, **more):
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=more.pop('cwd', ROOT),
                              timeout=400, **more)
    return run


def failed_in_one_sentence(process, *words):
    """The script said what is wrong in one sentence with these words, no traceback, exit code 1."""
    own = re.compile(r'(\w+\.py|speed\.\w+|miniature\.\w+): ')
    said = [line for line in process.stderr.splitlines() if own.match(line)]
    assert process.returncode == 1, process.stderr
    assert 'Traceback' not in process.stderr and len(said) == 1, process.stderr
    for word in words:
        assert str(word) in said[0], said[0]


def send_from_a_third_process(number, whom):
    """A signal of which neither this process nor the one that receives it is the sender."""
    third = os.fork()
    if not third:
        os.kill(whom, number)
        os._exit(0)
    os.waitpid(third, 0)


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

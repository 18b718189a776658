"""Two processes of one training under torchrun: tests/tiny_process.py says what each does."""

import subprocess
import sys

import pytest
import torch

from conftest import ROOT, assert_equal
from tiny import write_root


@pytest.mark.skipif(sys.platform != 'linux', reason='sends signals')
def test_two_processes_share_gradients_and_signals_and_none_outlives_the_other(tmp_path):
    write_root(tmp_path / 'data')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
               str(ROOT / 'tests/tiny_process.py'), 'two', str(tmp_path)]
    # that it returns is part of the test: the second process kills itself at the end
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (tmp_path / 'right0').exists() and (tmp_path / 'right1').exists(), done.stderr
    assert done.returncode == 1 and 'exitcode  : -9' in done.stderr
    assert done.stderr.count('stopped by SIGTERM; step 4 is saved in') == 2     # local and global
    assert done.stdout.count('resuming at step 4') == 2
    saved = [torch.load(tmp_path / f'{name}/last.pt', weights_only=True) for name in (
        'whole_local', 'parts_local', 'whole_global', 'parts_global')]
    for one, other in ((0, 1), (2, 3)):
        assert saved[one]['trainer']['step'] == 6
        for key in ('audio_proj', 'masker_i'):
            assert_equal(saved[one][key], saved[other][key])
    assert not torch.equal(saved[0]['masker_i']['b'], saved[2]['masker_i']['b'])

"""Several processes: what they gather is in the order of ranks."""

import os
import subprocess
import sys

import pytest

import checkpoint
from conftest import ROOT


@pytest.mark.parametrize('gpus, backend, device', [(True, 'cpu:gloo,cuda:nccl', 'cuda:3'),
                                                   (False, 'gloo', 'cpu')])
def test_each_process_of_torchrun_joins_with_its_own_device(monkeypatch, gpus, backend, device):
    chosen, joined = [], []
    monkeypatch.setenv('LOCAL_RANK', '3')
    monkeypatch.setattr(checkpoint.torch.cuda, 'is_available', lambda: gpus)
    monkeypatch.setattr(checkpoint.torch.cuda, 'set_device', chosen.append)
    monkeypatch.setattr(checkpoint.dist, 'init_process_group',
                        lambda backend, timeout: joined.append((backend, timeout.total_seconds())))
    monkeypatch.delenv('RANK', raising=False)
    assert str(checkpoint.start_processes()) == device and not joined
    monkeypatch.setenv('RANK', '3')
    assert str(checkpoint.start_processes()) == device
    assert joined == [(backend, 12 * 3600)] and [str(one) for one in chosen] == ['cuda:3'] * 2 * gpus


TOGETHER = """
import sys
import torch
import torch.distributed as dist
from checkpoint import agree, gather_lists, largest, rank_and_processes
from losses import everyone, first_of_mine

rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method=f'file://{sys.argv[2]}', rank=rank, world_size=2)
assert rank_and_processes() == (rank, 2)
assert gather_lists([f'{rank}{k}' for k in range(rank + 1)]) == ['00', '10', '11']
assert largest([9, -2][rank]) == 9 and largest([0.25, 0.75][rank]) == 0.75
agree(7, 'all have seven')
try:
    agree([7, 8][rank], 'not all have seven')
    raise SystemExit('an agreement was found')
except ValueError as error:
    assert str(error) == 'not all have seven'

x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank
x.requires_grad_()
gathered = everyone(x)
assert gathered.tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
numbers = everyone(torch.tensor([rank, -1]))
assert numbers.tolist() == [0, -1, 1, -1] and numbers.dtype == torch.int64
assert everyone(x.half()).dtype == torch.float32
assert first_of_mine(2) == 2 * rank
weights = torch.arange(8.0).view(4, 2) * (rank + 1)         # what this process asks of all rows
(gathered * weights).sum().backward()
assert x.grad.tolist() == [[[0, 3], [6, 9]], [[12, 15], [18, 21]]][rank]    # once and twice
dist.barrier()
"""


def test_two_processes_gather_in_the_order_of_ranks_and_share_extremes_and_gradients(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', TOGETHER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path / 'store')], env=environment,
                                stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in running:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said

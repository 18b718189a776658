"""Global negatives: two processes with half the pairs each are one process with all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import losses
import train
from conftest import ROOT
from model import load_model
from tiny import SIZE, shrink, tiny         # noqa: F401

CASES = [({}, 'negatives'), ({'acl_f': 'release', 'area': 'mean'}, 'masked')]
PAIRS = 12


def take_steps(rank, processes, settings, same_answers):
    """Six steps without dropout. -> {'curve', and of the first step each term and each gradient}"""
    torch.manual_seed(0)
    model, _ = load_model('miniature')
    image, wav = torch.randn(PAIRS, 3, SIZE, SIZE), torch.rand(PAIRS, 8000) - 0.5
    noise = [torch.rand(PAIRS, N, SIZE, SIZE).clamp(1e-6) for N in (PAIRS, 1)]
    C, rows = torch.randn(3, 16), torch.tensor([0, 2, -1, 1] * (PAIRS // 4))
    mine = slice(rank * PAIRS // processes, (rank + 1) * PAIRS // processes)
    parallel = train.data_parallel(model)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-3)
    found = {'curve': []}
    for step in range(6):
        out = parallel(image[mine], wav[mine], noise=[uniform[mine] for uniform in noise],
                       negatives='global')
        terms = losses.loss_terms(out, **settings)
        terms['acl_c'] = losses.acl_c_of_answered(C, rows[mine], out.A,
                                                  same_answers=same_answers)
        loss = sum(terms.values())
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            found |= {f'term {key}': term.detach() for key, term in terms.items()}
            found |= {key: p.grad.clone() for key, p in model.named_parameters()
                      if p.grad is not None}
        optimiser.step()
        found['curve'].append(loss.item())
    return found


def one_of_two(rank, folder):
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    shrink(pytest.MonkeyPatch())
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store', 2), rank=rank,
                            world_size=2)
    found = [take_steps(rank, 2, *case) for case in CASES]
    torch.save(found, f'{folder}/found{rank}.pt')
    dist.barrier()
    os._exit(0)                             # see launch.run_script


def test_two_processes_with_global_negatives_give_one_process_s_gradients_and_loss_curve(
        tiny, tmp_path):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
                   'PYTHONPATH': os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    started = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)],
                                env=environment) for rank in (0, 1)]
    of_one = [take_steps(0, 1, *case) for case in CASES]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for rank in (0, 1):
        of_two = torch.load(tmp_path / f'found{rank}.pt', weights_only=True)
        for found, alone in zip(of_two, of_one, strict=True):
            check(found, alone)


def check(found, alone):
    assert found.keys() == alone.keys() and {'term acl_c', 'masker_i.w'} <= found.keys()
    curve, expected = torch.tensor(found.pop('curve')), torch.tensor(alone['curve'])
    for name, value in found.items():
        # the softmax over time ignores feature_reduce.bias: its gradient is rounding alone
        if not name.endswith('feature_reduce.bias'):
            assert (value - alone[name]).norm() <= 1e-3 * alone[name].norm(), name
    assert curve[0] == pytest.approx(expected[0].item(), rel=1e-5)
    # a thousandth: Adam makes as large a step of a gradient that is rounding as of any other
    assert ((curve - expected).abs() < 1e-3 * expected).all()
    assert expected[-1] < expected[0] - 0.1


if __name__ == '__main__':
    one_of_two(int(sys.argv[1]), sys.argv[2])

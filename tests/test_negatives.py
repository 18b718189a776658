"""Global negatives: two processes with half the pairs each are one process with all of them."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT

# One file for both sides: alone it takes all pairs; under torchrun each process takes its half, and its rows of the noise.
STEP = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import losses
import train
from model import load_model
from negatives import everyone
from processes import rank_and_processes

out, B, flags = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)
torch.manual_seed(0)
model, _ = load_model('miniature')                                  # in eval mode: no dropout
args = train.parse_args(['--variant', 'av_llm', '--negatives', 'global', *flags])
image, wav = torch.randn(B, 3, 96, 96), torch.rand(B, 32000) - 0.5
noise = torch.rand(B, B, 96, 96).clamp(1e-6), torch.rand(B, 1, 96, 96).clamp(1e-6)
C, answers = torch.randn(3, 128), torch.tensor([0, 2, -1, 1] * (B // 4))
if 'RANK' in __import__('os').environ:
    dist.init_process_group('gloo')
rank, processes = rank_and_processes()
mine = slice(rank * B // processes, (rank + 1) * B // processes)
parallel = DistributedDataParallel(model, broadcast_buffers=False) if processes > 1 else model
optimiser, curve = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-3), []
for step in range(6):
    found = parallel(image[mine], wav[mine], args.image_mask, args.feature_mask, noise=[part[mine] for part in noise],
                     negatives=args.negatives)
    terms = train.loss_terms(found, args, C, answers[mine], everyone)
    loss = losses.total_loss(terms, train.weights_of(args))
    optimiser.zero_grad()
    loss.backward()
    if step == 0:
        first = {**{f'term {k}': v.detach() for k, v in terms.items()},
                 **{k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}}
    optimiser.step()
    curve.append(loss.item())
torch.save({'curve': torch.tensor(curve), **first}, f'{out}.{rank}of{processes}')
del parallel                    # see processes.exit_now
if processes > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize('B, flags', [(16, []), (4, ['--acl-f', 'release', '--area', 'mean'])])
def test_two_processes_with_global_negatives_give_one_process_s_gradients_and_loss_curve(tmp_path, B, flags):
    (tmp_path / 'step.py').write_text(STEP)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    two = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    for launcher in ([], two):
        done = subprocess.run([sys.executable, *launcher, str(tmp_path / 'step.py'), str(tmp_path / 'found'), str(B), *flags],
                              capture_output=True, text=True, timeout=400, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    alone, *both = [torch.load(tmp_path / f'found.{name}', weights_only=True) for name in ('0of1', '0of2', '1of2')]
    for found in both:
        assert found.keys() == alone.keys() and 'term acl_c' in found and 'masker_i.w' in found
        for name, value in alone.items():
            if name.endswith('feature_reduce.bias'):        # the softmax over time ignores it: rounding is all there is
                continue
            assert (found[name] - value).norm() <= 1e-3 * value.norm(), name
        assert found['curve'][0] == pytest.approx(alone['curve'][0].item(), rel=1e-5)
        # a thousandth: Adam makes as large a step of a gradient that is all rounding as of any other
        assert ((found['curve'] - alone['curve']).abs() < 1e-3 * alone['curve']).all()
        assert alone['curve'][-1] < alone['curve'][0] - 0.1

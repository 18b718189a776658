"""--negatives global: pairs of all processes as each other's negatives (section 3.5; Eq. 1, 3, 4, 6).

P processes hold b pairs each, N = P * b in all. Every process keeps its b images and grounds them under all N audios, so
that of Eq. 3 and 4 it has b rows of N; gathered, these are the N x N of one process with all pairs. What crosses: A
and v_I (b, D), the rows of S^F and of the areas (b, N); no image, no mask.

The gradients are those of one process. Each of the P processes computes the whole loss; everyone() sums, backwards, what
each of them asks of a row, P times the gradient, and DistributedDataParallel's mean over processes takes the P away.

Paper: batch 16 on two GPUs was 8 and 8, each among its own (--negatives local, the default).
"""

import torch
import torch.distributed as dist


class Gather(torch.autograd.Function):
    """x (b, ...) of each process -> (P * b, ...) of all, in the order of ranks; b must be the same everywhere."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)                                     # (P * b, ...)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()                       # (P * b, ...): what this process asks of all rows
        dist.all_reduce(total)                                      # what all of them ask
        return total.chunk(dist.get_world_size())[dist.get_rank()]  # (b, ...): of the rows that are this process's own


def everyone(x):
    """x (b, ...) -> (N, ...) of all processes, with gradients, in float32; integers stay; alone, x itself."""
    if not dist.is_initialized():
        return x
    return Gather.apply(x.float() if x.is_floating_point() else x)


def first_of_mine(b):
    """The row of everyone's N at which this process's b begin."""
    return dist.get_rank() * b if dist.is_initialized() else 0

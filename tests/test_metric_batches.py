"""Scores are equal to the bit for any batch size, order and number of processes."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import metrics as M  # noqa: E402
from evaluate import merge_across_ranks  # noqa: E402
from test_thresholds import HEAT, LEFT  # noqa: E402

N = 12


def samples():
    """Heatmaps and ground truths (N, 20, 24), also empty, full and tied; confidences; groups."""
    generator = torch.Generator().manual_seed(3)
    # many pixels lie on thresholds
    heat = (torch.rand(N, 20, 24, generator=generator) * 20).round() / 20
    truth = torch.zeros(N, 20, 24)
    for i, (size, sounding) in enumerate(zip(range(2, 2 + N), [1, 1, 0, 1] * 3)):
        truth[i, 2:2 + size, 3:3 + size] = sounding
        heat[i, 2:2 + size, 5:5 + size] = (heat[i, 2:2 + size, 5:5 + size] + .4).clamp(max=1)
    heat[3], truth[5] = 0, 1
    return heat, truth, torch.rand(N, generator=generator), [f'image{i // 2}' for i in range(N)]


def everything(order, size, threshold='fixed:0.5'):
    """Every metric, fed the samples of `order`, `size` at a time."""
    heat, truth, confidence, groups = samples()
    kinds = [M.SingleSource, M.Segmentation, M.Robustness, M.Interactive, M.MultiSource]
    kinds += [M.Extended] if threshold != 'sweep' else []
    fed = [kind(threshold) for kind in kinds]
    for start in range(0, len(order), size):
        part = order[start:start + size]
        pairs = [torch.stack([x, x.flip(2)], 1) for x in (heat[part], truth[part])]
        names = [M.CONDITIONS[i % 4] for i in part]
        batch = {'boxes': truth[part], 'mask': truth[part], 'sources': pairs[1],
                 'group': [groups[i] for i in part], 'group_size': [2 for i in part],
                 'confidence': confidence[part], 'condition': names}
        for metric in fed:
            if isinstance(metric, M.Extended):
                sounding = [truth[i].any() for i in part]
                batch['condition'] = ['sounding' if one else 'silent' for one in sounding]
            maps = pairs[0] if isinstance(metric, M.MultiSource) else heat[part]
            metric.update(maps, *[batch[key] for key in metric.needs])
    return fed


def results(fed):
    # As text every digit counts, and NaN equals NaN.
    return [str(metric.compute()) for metric in fed]


@pytest.mark.parametrize('threshold', ['fixed:0.5', 'top50', 'adaptive', 'sweep'])
def test_neither_batch_size_nor_order_nor_merging_shows(threshold):
    whole = results(everything(list(range(N)), N, threshold))
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1)).tolist()
    assert results(everything(list(range(N)), 1, threshold)) == whole
    assert results(everything(shuffled, 5, threshold)) == whole
    first = everything(list(range(0, N, 2)), 4, threshold)
    second = everything(list(range(1, N, 2)), 3, threshold)
    for one, other in zip(first, second):
        one.merge(other)
    assert results(first) == whole


def one_of_two_ranks(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank,
                                         world_size=2)
    fed = [merge_across_ranks(metric) for metric in everything(list(range(rank, N, 2)), 3)]
    torch.save(results(fed), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    method = 'fork' if hasattr(os, 'fork') else 'spawn'
    multiprocessing.start_processes(one_of_two_ranks, (str(tmp_path),), 2, start_method=method)
    whole = results(everything(list(range(N)), N))
    for rank in (0, 1):
        assert torch.load(tmp_path / f'{rank}.pt', weights_only=True) == whole


def test_memory_does_not_grow_with_the_maps():
    """As much is kept of a 4 times larger map: of each sample a number, or 255."""
    small, large = M.Segmentation(), M.Segmentation()
    small.update(HEAT, LEFT)
    large.update(HEAT.repeat(1, 2, 2), LEFT.repeat(1, 2, 2))
    for name in M.Segmentation.kept:
        shape = np.shape(getattr(small, name))
        assert shape == np.shape(getattr(large, name)) and shape[1:] in ((), (255,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_the_gpu_agrees():
    heat, truth, confidence, groups = samples()
    for kind, threshold in ((M.SingleSource, 'fixed:0.5'), (M.SingleSource, 'sweep'),
                            (M.SingleSource, 'top50'), (M.Segmentation, 'fixed:0.5')):
        here, there = kind(threshold), kind(threshold)
        here.update(heat, truth)
        there.update(heat.cuda(), truth.cuda())
        assert str(here.compute()) == str(there.compute())
    here, there = M.MultiSource(), M.MultiSource()
    here.update(heat.view(-1, 2, 20, 24), truth.view(-1, 2, 20, 24))
    there.update(heat.cuda().view(-1, 2, 20, 24), truth.cuda().view(-1, 2, 20, 24))
    assert str(here.compute()) == str(there.compute())

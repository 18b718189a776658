"""From heatmap to region, and its overlap with the ground truth: policies, ties, IoU by hand."""

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import metrics as M  # noqa: E402
from released_evaluators import VGGSS, ExtendedSets, binarise, min_max  # noqa: E402


def maps(*rows):
    """One map from its rows of numbers. (1, H, W)"""
    return torch.tensor([rows], dtype=torch.float32)


# A 2 x 4 frame used below: the object is the left half (4 pixels). At 0.5 the heatmap takes 3 of
# them and 1 more.
HEAT = maps([.9, .8, .6, .1], [.7, .2, .1, .0])
LEFT = maps([1, 1, 0, 0], [1, 1, 0, 0])


def test_policies_by_hand():
    heat, left = HEAT[0], LEFT[0]
    assert binarise(heat, 'fixed:0.5').long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    # Sorted: 0 .1 .1 .2 .6 .7 .8 .9; place 4 holds 0.6, and >= takes the upper four.
    assert binarise(heat, 'top50').long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    # Adaptive is strictly above place 8 - 4: one pixel fewer than the ground truth has.
    assert binarise(heat, 'adaptive', left).long().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    areas = binarise(heat, 'sweep').sum((1, 2)).tolist()
    assert areas == [7, 7, 5, 5, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 2, 2, 1, 1, 0]


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match='otsu'):
        binarise(HEAT[0], 'otsu')


def test_at_and_above_the_threshold():
    flat, two = torch.full((2, 2), 0.5), torch.tensor([[1, 1], [0, 0]])
    assert binarise(flat, 'fixed:0.5').all() and binarise(flat, 'top50').all()
    assert not binarise(flat, 'fixed:0.5', strict=True).any()
    assert not binarise(flat, 'adaptive', two).any()


def test_adaptive_without_ground_truth_takes_the_upper_half():
    four = torch.tensor([[.1, .2], [.3, .4]])
    assert binarise(four, 'adaptive', 0 * four).long().tolist() == [[0, 0], [0, 1]]     # > .3


def test_the_first_median_serves_a_batch_of_the_release_only():
    batch, truth = torch.cat([HEAT, HEAT / 2]), torch.cat([LEFT, LEFT])
    cuts = [float(M.thresholds_for(heat, 'top50')) for heat in batch]
    assert cuts == pytest.approx([.6, .3])
    ours, single = M.SingleSource('top50'), VGGSS('top50')
    extended = ExtendedSets('top50')
    ours.update(batch, truth)
    single.update(batch, truth)
    extended.update(batch, truth, [.5, .5], ['sounding', 'sounding'])
    assert ours.iou == pytest.approx([.6, .6])
    assert single.iou == extended.iou == pytest.approx([.6, 0])         # nothing reaches 0.6


def test_min_max_leaves_a_constant_map():
    both = torch.cat([HEAT / 2 + .25, torch.full((1, 2, 4), .3)])
    assert torch.allclose(min_max(both)[0], HEAT[0] / .9) and torch.equal(min_max(both)[1], both[1])


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('thresholds', [M.SWEEP, M.F_THRESHOLDS], ids=['sweep', 'F'])
def test_one_pass_over_thresholds_equals_one_comparison_each(thresholds, strict):
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(3, 13, 17, generator=generator)
    ties = torch.randint(0, len(thresholds), (13, 17), generator=generator)
    heat[0] = thresholds[ties]
    heat[1, :6], heat[1, 6:] = 0, 1
    consensus = torch.randint(0, 3, heat.shape, generator=generator) / 2    # 0, 0.5 and 1
    cut = thresholds[:, None, None]
    for one, truth in zip(heat, consensus):
        inside, outside, total = M.overlap(one, truth, thresholds, strict)
        above = one > cut if strict else one >= cut                         # (T, H, W)
        assert torch.equal(inside, (above * truth).sum((1, 2)).double())
        assert torch.equal(outside, (above & (truth == 0)).sum((1, 2)).double())
        assert total == truth.sum()
        single = [M.overlap(one, truth, t[None], strict)[:2] for t in thresholds]
        assert torch.equal(torch.stack([inside, outside]), torch.tensor(single).double().T)


def iou(prediction, truth, empty=0.0):
    metric = M.SingleSource()
    metric.empty = empty
    metric.update(prediction, truth)
    return metric.iou


def test_iou_by_hand():
    none, full, one = torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.zeros(1, 2, 4)
    one[0, 0, 0] = 1
    assert iou(HEAT, LEFT) == pytest.approx([3 / 5])
    assert iou(none, LEFT) == [0] and iou(full, LEFT) == [.5]
    assert iou(LEFT, none) == [0] and iou(none, none) == [0]
    assert math.isnan(iou(none, none, empty=math.nan)[0])
    assert iou(one, one) == [1] and iou(one, LEFT) == [.25]


def test_two_overlapping_boxes_are_their_union():
    boxes = maps([1, 1, 0, 0], [1, 1, 0, 0]) + maps([0, 1, 1, 0], [0, 1, 1, 0])
    assert iou(LEFT, boxes.clamp(max=1)) == pytest.approx([4 / 6])

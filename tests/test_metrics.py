"""metrics.py on cases small enough to compute by hand, and what must hold for any input."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import metrics as M  # noqa: E402
from released_evaluators import (VGGSS, AlignmentInteractive, ExtendedSets,  # noqa: E402
                                 SceneAverage, batch_scores, binarise, group_of, min_max)


def maps(*rows):
    """One map from its rows of numbers. (1, H, W)"""
    return torch.tensor([rows], dtype=torch.float32)


# A 2 x 4 frame used below: the object is the left half (4 pixels). At 0.5 the heatmap takes 3 of
# them and 1 more.
HEAT = maps([.9, .8, .6, .1], [.7, .2, .1, .0])
LEFT = maps([1, 1, 0, 0], [1, 1, 0, 0])


# ------------------------------------------------------------------------------------------------
# Thresholding policy and overlap
# ------------------------------------------------------------------------------------------------

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


# ------------------------------------------------------------------------------------------------
# Single source
# ------------------------------------------------------------------------------------------------

def test_single_source_by_hand():
    metric = M.SingleSource()
    metric.update(torch.cat([HEAT, HEAT, torch.zeros(1, 2, 4)]), torch.cat([LEFT, 1 - LEFT, LEFT]))
    # 3/5; mirrored: 1 inside, 3 outside, 1/7; empty prediction: 0. Adaptive, 3 pixels: 3/4, 0, 0.
    assert metric.iou == pytest.approx([3 / 5, 1 / 7, 0])
    assert metric.iou_adaptive == pytest.approx([3 / 4, 0, 0])
    scores = metric.compute()
    assert scores['cIoU'] == pytest.approx(100 / 3)
    assert scores['cIoU_adap'] == pytest.approx(100 / 3)
    # Shares: 3/3 at 0, 2/3 at .05 and .10, 1/3 at .15 .. .55. 3/5 is below the level 12 * 0.05,
    # which in floating point is 0.6000000000000001, here as in the released code.
    assert scores['AUC'] == pytest.approx(100 * .05 * (.5 * 1 + 2 * 2 / 3 + 9 / 3))
    assert scores['AUC_adap'] == pytest.approx(100 * .05 * (.5 * 1 + 15 / 3))


def test_exactly_the_k_highest_pixels_by_the_papers_letter():
    flat = torch.full((1, 2, 4), .5)
    both = torch.cat([HEAT, flat])
    for k in range(1, 8):               # of equal pixels the first in reading order
        metric, truth = M.SingleSource(reading='paper'), (torch.arange(8) < k).float().view(1, 2, 4)
        metric.update(flat, truth)
        metric.update(flat, truth.flip(1, 2))
        assert metric.iou_adaptive == [1, max(0, 2 * k - 8) / min(2 * k, 8)]
    letter, release = M.SingleSource(reading='paper'), M.SingleSource()
    for metric in (letter, release):
        metric.update(both, torch.cat([LEFT, LEFT]))
    # four pixels, three of them inside; the flat map's first row, two inside; the release takes
    # three and none
    assert letter.iou_adaptive == pytest.approx([3 / 5, 2 / 6])
    assert release.iou_adaptive == pytest.approx([3 / 4, 0])
    for kind in (M.SingleSource, M.MultiSource, M.Extended, M.Segmentation):
        metric = kind('adaptive', reading='paper')
        one_source = isinstance(metric, M.MultiSource)
        confidence = [[.5], ['sounding']] if isinstance(metric, M.Extended) else []
        metric.update(*((m[:, None] if one_source else m) for m in (HEAT, LEFT)), *confidence)
        assert metric.iou == pytest.approx([3 / 5])


def test_precision_recall_and_f_coincide_on_exactly_k_pixels():
    metric = M.Segmentation(reading='paper')
    metric.update(HEAT, LEFT)
    assert metric.f_adaptive == pytest.approx([3 / 4])
    assert metric.iou_adaptive == pytest.approx([3 / 5])


def test_iou_of_exactly_one_half_is_not_greater_than_one_half():
    single, both = M.SingleSource(reading='paper'), M.Interactive(reading='paper')
    single.update(torch.ones(1, 2, 4), LEFT)  # full prediction
    both.update(torch.ones(2, 2, 4), torch.cat([LEFT, LEFT]), ['a', 'a'], [2, 2])
    assert single.iou == both.iou[:1] == [0.5]
    assert single.compute()['cIoU'] == 0 and both.compute()['IIoU'] == 0
    both = M.Interactive()
    both.update(torch.ones(2, 2, 4), torch.cat([LEFT, LEFT]), ['a', 'a'], [2, 2])
    assert both.compute()['IIoU'] == 100
    # of the three highest pixels two are right: 2 of 4
    three, heat = maps([1, 1, 0, 0], [1, 0, 0, 0]), maps([.9, .8, .7, .1], [.1, .1, .1, .1])
    for metric, name in ((M.SingleSource(reading='paper'), 'cIoU_adap'),
                         (M.Interactive(reading='paper'), 'IIoU_adap')):
        metric.update(heat, three, *([['a'], [1]] if name.startswith('I') else []))
        assert metric.iou_adaptive == [0.5] and metric.compute()[name] == 0


def test_iou_of_exactly_one_half_counts():
    metric = M.SingleSource()
    metric.update(torch.ones(1, 2, 4), LEFT)  # full prediction
    assert metric.iou == [.5] and metric.compute()['cIoU'] == 100


def test_consensus_map():
    metric = M.SingleSource()
    metric.update(maps([.9, .8], [.7, .1]), maps([1, .5], [0, 0]))
    assert metric.iou == pytest.approx([1.5 / (1.5 + 1)])
    assert metric.iou_adaptive == pytest.approx([1 / 1.5])  # 2 non-zero pixels: 1 is taken


def test_empty_ground_truth():
    released, ours = VGGSS(), M.SingleSource()
    for metric in (released, ours):
        metric.update(torch.cat([torch.zeros_like(HEAT), HEAT]), torch.zeros(2, 2, 4))
    assert math.isnan(released.iou[0]) and released.iou[1] == 0 and ours.iou == [0, 0]
    assert released.compute()['AUC'] == pytest.approx(1.25)  # NaN fails the level of 0 too
    assert ours.compute()['AUC'] == pytest.approx(2.5) and ours.compute()['cIoU'] == 0


def test_sweep_gives_nineteen():
    metric = M.SingleSource('sweep')
    metric.update(torch.cat([HEAT, HEAT]), torch.cat([LEFT, 1 - LEFT]))
    scores = metric.compute()
    assert len(scores['cIoU']) == len(scores['AUC']) == 19 and isinstance(scores['AUC_adap'], float)
    for place, threshold in enumerate(M.SWEEP.tolist()):
        single = M.SingleSource(f'fixed:{threshold}')
        single.update(torch.cat([HEAT, HEAT]), torch.cat([LEFT, 1 - LEFT]))
        assert single.compute()['cIoU'] == scores['cIoU'][place]
        assert single.compute()['AUC'] == scores['AUC'][place]


def test_broken_input_is_named():
    metric = M.SingleSource()
    metric.update(HEAT, LEFT)
    broken = torch.cat([HEAT, HEAT])
    broken[1, 0, 0] = math.nan
    with pytest.raises(ValueError, match='heatmap number 2 .*NaN'):
        metric.update(broken, torch.cat([LEFT, LEFT]))
    broken[1, 0, 0] = math.inf
    with pytest.raises(ValueError, match='heatmap number 2 .*infinity'):
        metric.update(broken, torch.cat([LEFT, LEFT]))
    with pytest.raises(ValueError, match='ground truth number 1 .*NaN'):
        metric.update(HEAT, LEFT * math.nan)
    with pytest.raises(ValueError, match=r'\(1, 2, 3\)'):
        metric.update(HEAT[..., :3], LEFT)
    assert len(metric.iou) == 1


# ------------------------------------------------------------------------------------------------
# Segmentation
# ------------------------------------------------------------------------------------------------

def test_segmentation_by_hand():
    metric = M.Segmentation()
    metric.update(HEAT, LEFT)
    scores = metric.compute()
    assert scores['mIoU'] == pytest.approx(60) and scores['mIoU_adap'] == pytest.approx(75)
    # Best cut: above .6, precision 1 and recall 3/4. The adaptive mask takes the same three pixels.
    best = 100 * 1.3 * .75 / (.3 + .75)
    assert scores['F'] == pytest.approx(best) and scores['F_adap'] == pytest.approx(best)
    assert metric.area == [.5]
    # Between .2 and .6: 3 inside, 1 outside, so precision = recall = F = 3/4. At 0: the whole
    # frame, 1/2 and 1.
    assert float(metric.f_curve()[100]) == pytest.approx(75)
    assert float(metric.f_curve()[0]) == pytest.approx(100 * 1.3 * .5 / (.3 * .5 + 1))


def test_an_empty_mask_counts_its_background():
    metric = M.Segmentation()
    metric.update(torch.cat([HEAT, HEAT]), torch.cat([LEFT, 0 * LEFT]))
    assert len(metric.f_adaptive) == 1                              # no F without an object
    assert metric.compute()['mIoU'] == pytest.approx((60 + 50) / 2)


def test_empty_prediction_and_no_samples():
    metric = M.Segmentation()
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.zeros(1, 2, 4), LEFT)
    assert metric.compute()['mIoU'] == 0
    # threshold 0 takes the frame
    assert metric.compute()['F'] == pytest.approx(100 * 1.3 * .5 / (.3 * .5 + 1))


def test_samples_are_averaged_and_not_means_of_batches():
    heat, masks = torch.cat([HEAT, HEAT, 1 - HEAT]), LEFT.expand(3, 2, 4)
    metric = M.Segmentation()
    metric.update(heat, masks)
    scores, released = metric.compute(), batch_scores('fixed:0.5', heat, masks, 2)
    assert scores['mIoU'] == pytest.approx((60 + 60 + 100 / 7) / 3)
    assert M.mean([part['mIoU'] for part in released]) == pytest.approx((60 + 100 / 7) / 2)
    assert M.mean([part['F'] for part in released]) > scores['F']


# ------------------------------------------------------------------------------------------------
# Robustness
# ------------------------------------------------------------------------------------------------

def extended(reading):
    """Confidences .9 (found), .8 (silent), .7 (found in the wrong place), .6 (found)."""
    metric = M.Extended(reading=reading)
    metric.iou, metric.confidence = [.6, 0., .2, .9], [.9, .8, .7, .6]
    metric.sounding = [True, False, True, True]
    return metric


def test_extended_by_hand():
    # Along falling confidence: precision 1, 1/2, 1/3, 1/2 (interpolated 1, 1/2, 1/2, 1/2); recall
    # 1/3, 1/3, 1/2, 1
    exact, released = extended('paper').compute(), extended('release').compute()
    assert exact['AP'] == pytest.approx(100 * (1 / 3 + .5 / 6 + .5 / 2))
    # neither .9 nor the first rectangle
    assert released['AP'] == pytest.approx(100 * (.5 / 6 + .5 / 2))
    assert exact['max_F1'] == pytest.approx(200 / 3) and released['max_F1'] == 66.7
    assert released['precision'] == pytest.approx(50) and released['recall'] == pytest.approx(100)
    assert released['LocAcc'] == pytest.approx(200 / 3)


def metric_as(reading, metric):
    """What an Extended has seen, read in another way."""
    other = M.Extended(reading=reading)
    other.merge(metric)
    return other


def test_textbook_ap_counts_a_misplaced_object_as_a_miss_too():
    # recall of the three that sound: 1/3, 1/3, 1/3, 2/3; precision as above
    assert extended('paper').compute()['AP_textbook'] == pytest.approx(100 * (1 / 3 + .5 / 3))
    assert 'AP_textbook' not in extended('release').compute()


def test_ten_perfect_samples_score_80():
    for reading, score in (('release', 80), ('paper', 100)):
        metric = M.Extended(reading=reading)
        metric.iou, metric.sounding = [1.] * 10, [True] * 10
        metric.confidence = [i / 10 for i in range(10)]
        assert metric.compute()['AP'] == pytest.approx(score)


def test_extended_from_maps_and_ties():
    metric = M.Extended(reading='paper')
    heat, truth = torch.cat([HEAT, HEAT, torch.ones_like(HEAT)]), torch.cat([LEFT, 0 * LEFT, LEFT])
    metric.update(heat, truth, torch.tensor([.5, .5, .5]), ['sounding', 'silent', 'sounding'])
    assert metric.sounding == [True, False, True] and metric.iou == pytest.approx([.6, 0, .5])
    scores = metric.compute()
    # one point; of the three detections one has IoU > 0.5, and by the release's >= two have
    assert scores['AP'] == pytest.approx(100 / 3) and scores['precision'] == pytest.approx(100 / 3)
    precision, _ = metric_as('release', metric).precision_recall([.5])
    assert float(precision) == pytest.approx(2 / 3)
    assert scores['LocAcc'] == pytest.approx(50)  # > 0.5 in both readings
    lost = M.Extended()  # a box clipped away still sounds
    lost.update(heat[:1], 0 * LEFT, [.5], ['sounding'])
    assert lost.sounding == [True] and lost.compute()['LocAcc'] == 0


def test_top_quarter_mean():
    assert M.top_quarter_mean(HEAT).tolist() == pytest.approx([.85])


def test_robustness_by_hand():
    metric = M.Robustness()
    metric.update(torch.cat([HEAT, 0 * HEAT]), torch.cat([LEFT, LEFT]), ['positive', 'silence'])
    assert metric.iou == pytest.approx([.6, 0])
    metric.update(HEAT, 1 - LEFT, ['noise'])
    scores = metric.compute()
    assert scores['mIoU_positive'] == pytest.approx(60) and scores['mIoU_silence'] == 0
    assert scores['FPR_silence'] == 0 and scores['FPR_noise'] == .5 and scores['G_FPR'] == .25
    assert math.isnan(scores['mIoU_offscreen'])
    clean = 100 - (0 + 100 / 7) / 2
    assert scores['G_mIoU'] == pytest.approx(2 * 60 * clean / (60 + clean))
    assert scores['F_silence'] == pytest.approx(100 * 1.3 * .5 / (.3 * .5 + 1))


@pytest.mark.parametrize('positive, negatives, printed', [
    (59.8, (.2, .4, .9), 74.677), (61.8, (.4, .1, .9), 76.249), (41.1, (7.8, 7.6, 8.6), 56.803),
    (43.6, (8.1, 9.4, 9.4), 58.945), (69.0, (22.6,) * 3, 72.972), (69.6, (22.6,) * 3, 73.298),
    (46.3, (16.9,) * 3, 59.495), (48.4, (16.9,) * 3, 61.181)])
def test_global_scores_of_table_5(positive, negatives, printed):
    assert M.global_score(positive, M.mean(list(negatives))) == pytest.approx(printed, abs=.1)


def test_robustness_under_sweep():
    metric = M.Robustness('sweep')
    metric.update(torch.cat([HEAT, HEAT]), torch.cat([LEFT, 1 - LEFT]), ['positive', 'noise'])
    scores = metric.compute()
    assert len(scores['G_mIoU']) == len(scores['G_FPR']) == 19 and isinstance(scores['G_F'], float)


# ------------------------------------------------------------------------------------------------
# Interactive
# ------------------------------------------------------------------------------------------------

def test_interactive_by_hand():
    metric = M.Interactive()
    assert group_of('accordion_female_10438_accordion') == 'accordion_female_10438'
    metric.update(torch.cat([HEAT, HEAT, HEAT]), torch.cat([LEFT, 1 - LEFT, LEFT]), ['a', 'a', 'b'],
                  [2, 2, 1])
    scores = metric.compute()  # worst: 1/7 in a, 3/5 in b
    assert scores['IIoU'] == 50 and scores['IIoU_adap'] == 50
    assert scores['IAUC'] == pytest.approx(100 * .05 * (.5 * 1 + 2 * 1 + 9 / 2))


def test_interactive_takes_what_is_above_the_threshold_and_single_source_what_is_at_it():
    single, both = M.SingleSource(), M.Interactive()
    single.update(torch.full((1, 2, 4), .5), LEFT)
    both.update(torch.full((1, 2, 4), .5), LEFT, ['a'], [1])
    assert (single.iou, both.iou) == ([.5], [0])


def test_nan_fails_its_group_or_spreads():
    heat, truth = torch.cat([0 * HEAT, HEAT]), torch.cat([0 * LEFT, LEFT])
    ours, released = M.Interactive(), AlignmentInteractive()
    for metric in (ours, released):
        metric.update(heat, truth, ['a', 'b'], [1, 1])
    assert ours.compute()['IIoU'] == 50 and math.isnan(released.compute()['IIoU'])


def test_interactive_under_sweep():
    metric = M.Interactive('sweep')
    metric.update(torch.cat([HEAT, HEAT]), torch.cat([LEFT, LEFT]), ['a', 'a'], [2, 2])
    assert len(metric.compute()['IIoU']) == 19


# ------------------------------------------------------------------------------------------------
# Mixtures
# ------------------------------------------------------------------------------------------------

def test_pixel_ap_by_hand():
    scores, truth = torch.tensor([[.9, .8], [.7, .6]]), torch.tensor([[1, 0], [1, 0]])
    assert M.pixel_ap(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert M.pixel_ap(torch.full((2, 2), .3), truth) == pytest.approx(.5)       # all tied: one step
    tied = torch.tensor([[.9, .9], [.1, .1]])
    assert M.pixel_ap(tied, truth) == pytest.approx(.5 * .5 + .5 * .5)
    assert math.isnan(M.pixel_ap(scores, 0 * truth))


def test_mixtures_find_the_pairing():
    metric = M.MultiSource()
    truth = torch.stack([LEFT, 1 - LEFT], 1)                                        # (1, 2, H, W)
    metric.update(truth.flip(1) * .9, truth * .25)  # non-zero is source
    scores = metric.compute()
    assert all(scores[key] == pytest.approx(100) for key in scores)
    assert metric.iou == [1, 1]


def test_mixtures_by_hand():
    metric, scene = M.MultiSource(), SceneAverage()
    below = maps([0, .3, .3, .3], [0, .3, .3, .3])                          # nothing at 0.5
    heat = torch.stack([HEAT, below], 1)
    truth = torch.stack([LEFT, 1 - LEFT], 1)
    for m in (metric, scene):
        m.update(heat, truth)
    # HEAT on the left: .9 .8 .7 right, .6 wrong, .2 right: (1 + 1 + 1 + 4/5) / 4. The other: 4 of 6
    # tied.
    assert metric.cap == pytest.approx([((3 + 4 / 5) / 4 + 4 / 6) / 2])
    assert metric.piap == pytest.approx([1.0])  # every pixel is of some source
    assert metric.iou == pytest.approx([3 / 5, 0]) and scene.iou == pytest.approx([.3])
    assert metric.compute()['CIoU@10'] == 50 and scene.compute()['CIoU@10'] == 100
    assert metric.compute()['CIoU@50'] == 50 and scene.compute()['CIoU@50'] == 0


def test_a_source_without_pixels_is_left_out():
    metric = M.MultiSource()
    metric.update(torch.stack([HEAT, HEAT], 1), torch.stack([LEFT, 0 * LEFT], 1))
    metric.update(torch.stack([HEAT, HEAT], 1), torch.zeros(1, 2, 2, 4))
    assert len(metric.iou) == 1 and math.isnan(metric.cap[1]) and math.isnan(metric.piap[1])
    scores = metric.compute()
    assert scores['CAP'] == pytest.approx(95) and scores['PIAP'] == pytest.approx(95)


# ------------------------------------------------------------------------------------------------
# Batches, order, processes
# ------------------------------------------------------------------------------------------------

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
        names = [('positive', *M.NEGATIVES)[i % 4] for i in part]
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
    fed = everything(list(range(rank, N, 2)), 3)
    for metric in fed:
        metric.merge_across_ranks()
    torch.save(results(fed), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    method = 'fork' if hasattr(os, 'fork') else 'spawn'
    multiprocessing.start_processes(one_of_two_ranks, (str(tmp_path),), 2, start_method=method)
    whole = results(everything(list(range(N)), N))
    for rank in (0, 1):
        assert torch.load(tmp_path / f'{rank}.pt', weights_only=True) == whole


def test_memory_does_not_grow_with_the_maps():
    """As much is kept of a 4 times larger map: numbers per sample and sums."""
    small, large = M.Segmentation(), M.Segmentation()
    small.update(HEAT, LEFT)
    large.update(HEAT.repeat(1, 2, 2), LEFT.repeat(1, 2, 2))
    for name in M.Segmentation.kept:
        one, other = getattr(small, name), getattr(large, name)
        if torch.is_tensor(one):
            assert one.shape == other.shape
        else:
            assert len(str(one)) < 99 and len(str(other)) < 99


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


def test_a_frame_that_lacks_a_sound_says_nothing_interactively():
    truth, wrong = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    metric = M.Interactive()
    metric.update(truth.repeat(2, 1, 1), truth.repeat(2, 1, 1), ['a', 'a'], [2, 2])
    metric.update(truth, truth, ['b'], [2])  # right, but its other sound was never heard
    assert metric.compute()['IIoU'] == 100 and len(metric.worst(metric.iou)) == 1
    metric.update(wrong, truth, ['b'], [2])
    assert metric.compute()['IIoU'] == 50

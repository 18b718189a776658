"""metrics.py on cases small enough to compute by hand, a section for each table."""

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import metrics as M  # noqa: E402
from released_evaluators import (VGGSS, AlignmentInteractive, SceneAverage,  # noqa: E402
                                 batch_scores, group_of)
from test_thresholds import HEAT, LEFT, maps  # noqa: E402


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
    for value in (math.nan, math.inf):
        broken[1, 0, 0] = value
        with pytest.raises(ValueError, match='a heatmap or a ground truth holds NaN or infinity'):
            metric.update(broken, torch.cat([LEFT, LEFT]))
    with pytest.raises(ValueError, match='a heatmap or a ground truth holds NaN'):
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
    assert exact['AP'] == pytest.approx(100 * (1 / 3 + .5 / 6 + .5 / 2), rel=1e-12)     # doubles
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


def test_a_frame_that_lacks_a_sound_says_nothing_interactively():
    truth, wrong = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    metric = M.Interactive()
    metric.update(truth.repeat(2, 1, 1), truth.repeat(2, 1, 1), ['a', 'a'], [2, 2])
    metric.update(truth, truth, ['b'], [2])  # right, but its other sound was never heard
    assert metric.compute()['IIoU'] == 100 and len(metric.worst(metric.iou)) == 1
    metric.update(wrong, truth, ['b'], [2])
    assert metric.compute()['IIoU'] == 50


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


def test_three_maps_in_cyclic_order_are_paired_with_their_sources():
    metric = M.MultiSource()
    sources = torch.eye(3).view(1, 3, 1, 3)
    metric.update(sources.roll(-1, 1), sources)         # map 0 is that of source 1
    assert metric.pairings == [[2, 0, 1]] and metric.iou == [1, 1, 1]


def test_a_source_without_pixels_is_left_out():
    metric = M.MultiSource()
    metric.update(torch.stack([HEAT, HEAT], 1), torch.stack([LEFT, 0 * LEFT], 1))
    metric.update(torch.stack([HEAT, HEAT], 1), torch.zeros(1, 2, 2, 4))
    assert len(metric.iou) == 1 and math.isnan(metric.cap[1]) and math.isnan(metric.piap[1])
    scores = metric.compute()
    assert scores['CAP'] == pytest.approx(95) and scores['PIAP'] == pytest.approx(95)

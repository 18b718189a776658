"""The released evaluators' own readings, as variants of metrics.py's classes.

metrics.py scores every table by one set of rules. Each released evaluator departs from them
somewhere (the `Paper [n]` comments there say where); these variants compute what it computes, so
that test_golden_metrics.py can compare number by number.
"""

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import metrics as M  # noqa: E402


def group_of(name):
    """The image of an IS4 or VPO sample: its name without the last part, 'a_b_c' -> 'a_b'."""
    return name.rsplit('_', 1)[0]


def binarise(heatmaps, policy='fixed:0.5', ground_truth=None, strict=False):
    """heatmaps (B, H, W) -> predicted regions (B, H, W) bool; 'sweep' gives (B, 19, H, W)."""
    cut = M.thresholds_for(heatmaps, policy, ground_truth)[..., None, None]
    maps = heatmaps[:, None]                                                # (B, 1, H, W)
    above = maps > cut if strict or policy == 'adaptive' else maps >= cut   # (B, T, H, W)
    return above if policy == 'sweep' else above[:, 0]


def min_max(heatmaps):
    """Each map (B, H, W) stretched to 0..1; a constant map stays as it is."""
    low, high = heatmaps.amin((1, 2), keepdim=True), heatmaps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (heatmaps - low) / (high - low), heatmaps)


# ------------------------------------------------------------------------------------------------
# VGG-SS, Flickr and the extended sets: the first sample's median serves its whole batch
# ------------------------------------------------------------------------------------------------

class FirstMedian:
    def counts(self, policy, heatmaps, ground_truth):
        if policy != 'top50':
            return super().counts(policy, heatmaps, ground_truth)
        cut = M.thresholds_for(heatmaps, policy)                            # (B, 1)
        return M.overlap(heatmaps, ground_truth, cut[:1].expand_as(cut), self.strict)


class VGGSS(FirstMedian, M.SingleSource):
    empty = math.nan                                                        # 0/0


class ExtendedSets(FirstMedian, M.Extended):
    pass


# ------------------------------------------------------------------------------------------------
# The alignment code: > the threshold, maps stretched first, NaN spreads over the results
# ------------------------------------------------------------------------------------------------

class AlignmentSingle(M.SingleSource):
    strict, empty = True, math.nan


class AlignmentInteractive(M.Interactive):
    empty = math.nan

    def compute(self):
        scores = super().compute()
        for suffix, iou in (('', self.iou), ('_adap', self.iou_adaptive)):
            if any(math.isnan(value) for value in iou):
                scores[f'IIoU{suffix}'] = scores[f'IAUC{suffix}'] = math.nan
        return scores


# ------------------------------------------------------------------------------------------------
# AVSBench: means of batches. The release takes F's maximum at the end, AVSBench inside each batch
# ------------------------------------------------------------------------------------------------

def batch_scores(threshold, heatmaps, masks, size):
    """The scores of each batch of `size` samples by itself."""
    scores = []
    for heat, mask in zip(heatmaps.split(size), masks.split(size)):
        metric = M.Segmentation(threshold)
        metric.update(heat, mask)
        scores.append(metric.compute())
    return scores


# ------------------------------------------------------------------------------------------------
# SLAVC and AVGN: 0/0 is NaN; AVGN's PIAP takes the cut prediction for the truth, the truth for the
# score. Hu et al. (2020): a scene's IoUs are averaged before they are compared with the level
# ------------------------------------------------------------------------------------------------

class SLAVC(M.Extended):
    empty = math.nan


def avgn_piap(heatmaps, ground_truth, policy):
    """heatmaps, ground_truth (B, k, H, W) -> (B,)"""
    merged, union = heatmaps.amax(1), ground_truth.amax(1)                  # (B, H, W) each
    return M.pixel_ap(union, binarise(merged, policy, union).float()).nan_to_num(0.0)


class SceneAverage(M.MultiSource):
    def update(self, heatmaps, sources):
        for heat, source in zip(heatmaps, sources):
            of_all, self.iou = self.iou, []
            super().update(heat[None], source[None])
            self.iou = of_all + ([M.mean(self.iou)] if self.iou else [])

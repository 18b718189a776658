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


def binarise(heatmap, policy='fixed:0.5', ground_truth=None, strict=False):
    """A heatmap (H, W) -> the predicted region (H, W) bool; 'sweep' gives (19, H, W)."""
    cut = M.thresholds_for(heatmap, policy, ground_truth)[:, None, None]    # (T, 1, 1)
    above = heatmap > cut if strict or policy == 'adaptive' else heatmap >= cut     # (T, H, W)
    return above.squeeze(0)


def min_max(heatmaps):
    """Each map (B, H, W) stretched to 0..1; a constant map stays as it is."""
    low, high = heatmaps.amin((1, 2), keepdim=True), heatmaps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (heatmaps - low) / (high - low), heatmaps)


# ------------------------------------------------------------------------------------------------
# VGG-SS, Flickr and the extended sets: the first sample's median serves its whole batch
# ------------------------------------------------------------------------------------------------

class FirstMedian:
    def update(self, heatmaps, *more):
        self.median = M.thresholds_for(heatmaps[0], 'top50')                # (1,)
        super().update(heatmaps, *more)

    def overlap_under(self, policy, heatmap, ground_truth):
        if policy != 'top50':
            return super().overlap_under(policy, heatmap, ground_truth)
        return M.overlap(heatmap, ground_truth, self.median, self.strict)


class VGGSS(FirstMedian, M.SingleSource):
    empty = math.nan                                                        # 0/0


class ExtendedSets(FirstMedian, M.Extended):
    pass


# ------------------------------------------------------------------------------------------------
# Senocak et al.'s code: > the threshold, maps stretched first, NaN spreads over the results
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


def avgn_piap(heatmap, ground_truth, policy):
    """heatmap, ground_truth (H, W), each the maximum over a scene's sources."""
    ap = M.pixel_ap(ground_truth, binarise(heatmap, policy, ground_truth))
    return 0.0 if math.isnan(ap) else ap


class SceneAverage(M.MultiSource):
    def add(self, maps, sources):
        before = len(self.iou)
        super().add(maps, sources)
        of_scene = self.iou[before:]
        self.iou[before:] = [M.mean(of_scene)] if of_scene else []

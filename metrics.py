"""Evaluation metrics of section 4.1: from heatmaps and ground truths to the numbers of Tables 1 to 8.

Every metric is a class that is fed batch by batch and keeps numbers per sample or running sums, never heatmaps:

    metric = SingleSource(threshold='fixed:0.5')
    metric.update(heatmaps, ground_truth)         # (B, H, W) in 0..1, as often as there are batches
    metric.merge_across_ranks()                   # under torchrun; does nothing in one process
    metric.compute()                              # {'cIoU': 49.5, 'AUC': ..., 'cIoU_adap': ..., 'AUC_adap': ...}

Results are in per cent, but for FPR and G_FPR, which the paper prints as fractions. They depend neither on the
batch size nor on the order of the samples nor on the number of processes, to the last bit: counts of pixels are
whole numbers (halves, under a consensus map) and means over samples are exactly rounded sums. The released
evaluators are not so; where they differ, a comment that starts with "Paper:" says how, and an option brings their
reading back.

Sections: thresholding policy, overlap, single source, segmentation, robustness (two kinds), interactive, mixtures.
Shapes: B images, H W pixels, P = H * W, T thresholds, N samples seen. Pixel work runs on the heatmaps' device, the
arithmetic on its counts on the CPU in float64.
"""

import itertools
import math
from collections import Counter

import numpy as np
import torch
import torch.distributed as dist

SWEEP = torch.arange(1, 20) / 20                    # 0.05, 0.10 .. 0.95: the 19 thresholds that the release prints
F_THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255)    # F-score's thresholds (AVSBench's released code)
BETA_SQUARED = 0.3                                  # F-score weighs precision over recall (Zhou et al., 2022)
AUC_POINTS = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64)    # IoU 0, 0.05 .. 1


# ------------------------------------------------------------------------------------------------
# Thresholding policy: from a heatmap to the predicted region
# ------------------------------------------------------------------------------------------------
# Tables 1 to 8 cut each heatmap into sounding region and rest. There are four ways to do it, as --threshold names
# them:
#
#   fixed:0.5   the pixels at 0.5 and above (any number may stand there). This method's own: its heatmaps are the
#               probabilities sigmoid(M_G + b/w), for which 0.5 means "as likely as not".
#   top50       the upper half of the pixels, whatever their values: the classic rule of the field, for maps
#               without a scale. It cannot do justice to a source smaller than half the frame.
#   adaptive    as many of the highest pixels as the ground truth has: what every "w/ Adap." column uses. The size
#               is given away, so it scores place and shape only.
#   sweep       the 19 fixed thresholds 0.05 .. 0.95 at once: what the release prints. Results become lists of 19.
#
# Paper: it describes top50 and names no threshold for its own rows; the release prints all 19. That 0.5 is the one
# of the tables is our inference: Table 5 gives earlier methods an FPR of exactly 0.50, so they are cut at their
# upper half, and this method less, so it is cut at a fixed value.
# Paper: the VGG-SS, extended-set, SLAVC and AVGN evaluators take >= the threshold, the interactive and the
# AVSBench ones > it (strict=True). It matters where many pixels share one value.
#
# Paper: an explicit paper does not win in four places, as its tables are made by the released
# evaluators. Each class follows these (reading='release'), or the paper's letter (reading='paper',
# evaluate.py --reading paper):
#   cIoU and IIoU count a sample with IoU "greater than 0.5"; the evaluators take >= 0.5.
#   LocAcc is "identical to cIoU", yet its evaluator takes > 0.5; under the letter both do.
#   "w/ Adap." keeps "the top K pixels"; the evaluators keep K - 1, and fewer among ties.
#   AP and max-F1 vary the confidence "over all samples"; the evaluator leaves most of them out
#   (class Extended).

def thresholds_for(heatmaps, policy='fixed:0.5', n_gt=None, first_of_batch=False):
    """Where each heatmap is cut. heatmaps (B, H, W), n_gt (B,) pixels in the ground truth, for 'adaptive' only.

    Returns (B, 1), one threshold per map, or (19,), shared by all maps, for 'sweep'.

    Paper: with no threshold given, the release's VGG-SS, Flickr and extended evaluators compute the median of the
    first sample of a batch and reuse it for the whole batch; first_of_batch=True does that, for 'top50'.
    """
    B, P = len(heatmaps), heatmaps[0].numel()
    if policy == 'sweep':
        return SWEEP.to(heatmaps.device)                                            # (19,)
    if policy.startswith('fixed:'):
        return torch.full((B, 1), float(policy[len('fixed:'):]), device=heatmaps.device)
    if policy == 'top50':
        cut = kth_smallest(heatmaps, torch.full((B,), P // 2))                      # (B, 1)
        return cut[:1].expand(B, 1) if first_of_batch else cut
    if policy == 'adaptive':
        # No ground truth at all falls back to the upper half, as in the alignment code.
        n_gt = n_gt.cpu()
        return kth_smallest(heatmaps, torch.where(n_gt == 0, P // 2, P - n_gt))     # (B, 1)
    raise ValueError(f'unknown threshold {policy!r}: fixed:T (T a number), top50, adaptive or sweep')


def binarise(heatmaps, policy='fixed:0.5', n_gt=None, strict=False):
    """heatmaps (B, H, W) -> predicted regions (B, H, W) bool; 'sweep' gives (B, 19, H, W).

    'adaptive' is always strict: it takes the pixels above the K-th highest, K - 1 of them, and fewer among ties.
    """
    cut = thresholds_for(heatmaps, policy, n_gt)[..., None, None]                   # (B, 1, 1, 1) or (19, 1, 1)
    maps = heatmaps[:, None]                                                        # (B, 1, H, W)
    above = maps > cut if strict or policy == 'adaptive' else maps >= cut           # (B, T, H, W)
    return above if policy == 'sweep' else above[:, 0]


def highest_pixels(heatmaps, k):
    """Exactly the k (B,) highest pixels of each map: 'adaptive' by the paper's letter.

    (B, H, W) -> (B, H, W) of 0 and 1. Among equal pixels the first in reading order are taken.
    """
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)        # (B, P)
    rank = order.argsort(dim=1)                                                 # (B, P) highest: 0
    return (rank < k.to(rank.device)[:, None]).view_as(heatmaps).to(heatmaps.dtype)


def kth_smallest(heatmaps, k):
    """The value that would stand at place k (B,), counted from 0, if each map's pixels were sorted. (B, 1)"""
    flat = heatmaps.flatten(1)                                                      # (B, P)
    if flat.device.type == 'cpu':    # selecting takes a fortieth of the time of torch.sort on one thread
        picked = [float(np.partition(row, i)[i]) for row, i in zip(flat.numpy(), k.tolist())]
        return torch.tensor(picked, dtype=flat.dtype)[:, None]
    return flat.sort(1).values.gather(1, k.to(flat.device)[:, None])


def min_max(heatmaps):
    """Each map (B, H, W) stretched to 0..1; a constant map stays as it is (the alignment code does this first)."""
    low, high = heatmaps.amin((1, 2), keepdim=True), heatmaps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (heatmaps - low) / (high - low), heatmaps)


# ------------------------------------------------------------------------------------------------
# Overlap of prediction and ground truth: what all pixel metrics are made of
# ------------------------------------------------------------------------------------------------

def overlap(heatmaps, ground_truth, thresholds, strict=False):
    """How much of each cut heatmap lies inside, and how much outside, the ground truth.

    heatmaps, ground_truth: (B, H, W); thresholds (B, 1) or (T,) as thresholds_for gives them, ascending and evenly
    spaced. Returns inside (B, T), the sum of the ground truth under the prediction, outside (B, T), the number of
    predicted pixels where the ground truth is zero, and total (B, 1), the sum of the ground truth. float64, CPU.
    """
    if len(heatmaps) > 8:    # the work arrays of more leave the CPU's cache, which costs twice the time
        cuts = thresholds.split(8) if thresholds.dim() == 2 else itertools.repeat(thresholds)
        parts = [overlap(*part, strict) for part in zip(heatmaps.split(8), ground_truth.split(8), cuts)]
        return tuple(torch.cat(column) for column in zip(*parts))
    # Comparing in place gives 0. and 1. without an array of bools between: half the time on one CPU thread.
    x, g = heatmaps.flatten(1), ground_truth.flatten(1)                             # (B, P) each
    empty = g.clone().eq_(0)                                                        # (B, P)
    if thresholds.dim() == 2:
        above = x.clone().gt_(thresholds) if strict else x.clone().ge_(thresholds)  # (B, P)
        inside, outside = (above * g).sum(1, keepdim=True), (above * empty).sum(1, keepdim=True)
    else:
        inside, outside = pass_counts(x, g, empty, thresholds, strict).unbind(1)    # (B, T) each
    total = g.sum(1, keepdim=True)                                                  # (B, 1)
    return inside.cpu().double(), outside.cpu().double(), total.cpu().double()


def pass_counts(x, g, empty, thresholds, strict):
    """All thresholds in one pass over the pixels: x, g, empty (B, P), thresholds (T,) -> inside, outside (B, 2, T)

    How many of the thresholds does each pixel pass? As they are evenly spaced, arithmetic finds the nearest one:
    the pixel passes all below it and none above, so one comparison settles it. A histogram of the answers does the
    rest.
    """
    T = len(thresholds)
    steps = (T - 1) / (thresholds[-1] - thresholds[0])
    # Small whole numbers are exact in float32, which takes half the memory traffic of int64.
    passed = ((x - thresholds[0]) * steps).round_().clamp_(0, T - 1)                # (B, P) nearest, 0 .. T - 1
    limit = thresholds.index_select(0, passed.int().flatten()).view_as(x)           # (B, P)
    passed += limit.lt_(x) if strict else limit.le_(x)                              # (B, P) 0 .. T
    # Two histograms side by side: inside, weighted by the ground truth, and outside, where each pixel counts 1.
    place = passed.add_(empty, alpha=T + 1).long()                                  # (B, P) 0 .. 2 T + 1
    histogram = x.new_zeros(len(x), 2 * (T + 1)).scatter_add_(1, place, g + empty)
    # A pixel that passed n thresholds counts for the first n: sum from the far end, drop "passed none".
    return histogram.view(-1, 2, T + 1).flip(-1).cumsum(-1).flip(-1)[..., 1:]       # (B, 2, T)


def overlap_by(policy, heatmaps, ground_truth, n_gt, strict=False, reading='release',
               first_of_batch=False):
    """overlap() of heatmaps (B, H, W) cut by a policy. -> inside, outside (B, T), total (B, 1)

    n_gt (B,): pixels in the ground truth; the other arguments are those of the classes below.
    """
    if policy == 'adaptive' and reading == 'paper':
        region = highest_pixels(heatmaps, n_gt)
        half = torch.full((len(region), 1), 0.5, device=region.device)
        return overlap(region, ground_truth, half)
    cut = thresholds_for(heatmaps, policy, n_gt, first_of_batch)                # (B, 1) or (19,)
    return overlap(heatmaps, ground_truth, cut, strict or policy == 'adaptive')


def mask_iou(prediction, ground_truth, empty=0.0):
    """prediction (B, H, W) bool, ground_truth (B, H, W) bool, or fractional for a consensus map -> IoU (B,)

    sum(prediction * ground truth) / (sum(ground truth) + predicted pixels where the ground truth is zero), and
    `empty` where both are empty.
    """
    cut = torch.full((len(prediction), 1), 0.5, device=prediction.device)
    return ratio(*overlap(prediction.float(), ground_truth.float(), cut), empty)[:, 0]


def ratio(inside, outside, total, empty):
    """IoU (B, T) from the overlap's three counts; `empty` stands for 0/0."""
    return torch.where(total + outside > 0, inside / (total + outside), empty)


def checked(heatmaps, ground_truth, seen):
    """Both as float32 (B, H, W), or an error that names the sample; `seen` is how many came before this batch."""
    if heatmaps.dim() != 3 or heatmaps.shape != ground_truth.shape:
        raise ValueError(f'heatmaps and ground truth must both be (B, H, W), not {tuple(heatmaps.shape)} and '
                         f'{tuple(ground_truth.shape)}')
    heatmaps, ground_truth = heatmaps.detach().float(), ground_truth.to(heatmaps.device).float()
    for name, maps in (('heatmap', heatmaps), ('ground truth', ground_truth)):
        broken = ~torch.isfinite(maps.sum((1, 2)))                                  # (B,) one NaN spoils the sum
        if broken.any():
            raise ValueError(f'{name} number {seen + int(broken.nonzero()[0])} (in order of update, from 0) holds '
                             'NaN or infinity')
    return heatmaps, ground_truth


def mean(values):
    """Mean of a list, leaving out NaN; NaN if nothing is left. Lists of lists ('sweep') give one mean per column.

    fsum rounds once, at the end, so that the order of the samples cannot show.
    """
    if values and isinstance(values[0], list):
        return [mean(list(column)) for column in zip(*values)]
    values = [value for value in values if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.nan


def percent(value):
    return [100 * v for v in value] if isinstance(value, list) else 100 * value


class Streaming:
    """What metrics share: the fields in `kept` are all they remember. Lists append, numbers add.

    len(metric): how many samples it has seen.
    """

    kept = ()

    def __len__(self):
        return len(self.iou)

    def merge(self, other):
        """Take in what another accumulator of the same kind has seen."""
        for name in self.kept:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def merge_across_ranks(self):
        """Under torchrun: afterwards every process holds the samples of all. Call it once, before compute()."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, {name: getattr(self, name) for name in self.kept})
            for name in self.kept:
                merged = ranks[0][name]
                for other in ranks[1:]:
                    merged = merged + other[name]
                setattr(self, name, merged)
        return self


# ------------------------------------------------------------------------------------------------
# Single sound source localization: cIoU, AUC, and both adaptive (Tables 1 and 2)
# ------------------------------------------------------------------------------------------------

def success_share(iou, level=0.5, strict=False):
    """cIoU: the share, in per cent, of samples with IoU >= level (strict: > level).

    iou: list of N floats, of which NaN fails. Rows of 19, as 'sweep' makes them, give a list of 19 shares.
    """
    if iou and isinstance(iou[0], list):
        return [success_share(list(column), level, strict) for column in zip(*iou)]
    return 100 * mean([float(value > level if strict else value >= level) for value in iou])


def area_under_success(iou):
    """AUC: the area, in per cent, under the share of samples with IoU >= t, over t = 0, 0.05 .. 1 (trapezoids)."""
    if iou and isinstance(iou[0], list):
        return [area_under_success(list(column)) for column in zip(*iou)]
    shares = torch.tensor([success_share(iou, float(t)) for t in AUC_POINTS], dtype=torch.float64)   # (21,)
    return float(torch.trapezoid(shares, AUC_POINTS))


class SingleSource(Streaming):
    """cIoU, AUC, cIoU_adap, AUC_adap. Per sample: `.iou` and `.iou_adaptive`, in order of update.

    Under 'sweep', `.iou` holds a list of 19 floats per sample, and cIoU and AUC are lists of 19.
    strict: > instead of >= (see above). normalise: each map stretched to 0..1 first, as the alignment code does.
    reading: 'release' or 'paper', see above.
    Paper: where ground truth and prediction are both empty, the VGG-SS evaluator divides 0 by 0 and gets NaN,
    which fails even the AUC's level of 0 (empty=math.nan); the extended-set evaluator gets 0, the default here.
    """

    kept = ('iou', 'iou_adaptive')

    def __init__(self, threshold='fixed:0.5', strict=False, normalise=False, empty=0.0,
                 first_of_batch=False, reading='release'):
        self.threshold, self.strict, self.normalise = threshold, strict, normalise
        self.empty, self.first_of_batch, self.reading = empty, first_of_batch, reading
        self.iou, self.iou_adaptive = [], []

    def update(self, heatmaps, ground_truth):
        """heatmaps (B, H, W) in 0..1; ground_truth (B, H, W): boxes of 0 and 1, or a consensus map between."""
        heatmaps, ground_truth = checked(heatmaps, ground_truth, len(self.iou))
        heatmaps = min_max(heatmaps) if self.normalise else heatmaps
        n_gt = (ground_truth > 0).sum((1, 2))                                       # (B,)
        counts = overlap_by(self.threshold, heatmaps, ground_truth, n_gt, self.strict, self.reading,
                            self.first_of_batch)
        iou = ratio(*counts, self.empty)                                            # (B, T)
        self.iou += iou.tolist() if self.threshold == 'sweep' else iou[:, 0].tolist()
        counts = overlap_by('adaptive', heatmaps, ground_truth, n_gt, reading=self.reading)
        self.iou_adaptive += ratio(*counts, self.empty)[:, 0].tolist()

    def success(self, iou):
        """cIoU of a list of IoUs, in per cent, by the reading."""
        return success_share(iou, strict=self.reading == 'paper')

    def compute(self):
        return {'cIoU': self.success(self.iou), 'AUC': area_under_success(self.iou),
                'cIoU_adap': self.success(self.iou_adaptive),
                'AUC_adap': area_under_success(self.iou_adaptive)}


# ------------------------------------------------------------------------------------------------
# Audio-visual segmentation: mIoU, F-score, and both adaptive (Table 6)
# ------------------------------------------------------------------------------------------------

def f_score(inside, outside, total):
    """(B, T) each, or (B, 1) for total -> F (B, T) with beta^2 = 0.3; 0 where nothing right is predicted."""
    predicted = inside + outside
    precision = torch.where(predicted > 0, inside / predicted, 0.0)
    recall = torch.where(total > 0, inside / total, 0.0)
    below = BETA_SQUARED * precision + recall
    return torch.where(below > 0, (1 + BETA_SQUARED) * precision * recall / below, 0.0)


class Segmentation(Streaming):
    """mIoU, F, mIoU_adap, F_adap. Per sample: `.iou`, `.iou_adaptive`, and `.area`, the share of pixels predicted.

    F is, at each of 255 thresholds, the mean over the samples that have any ground truth, then the maximum over
    the thresholds; the threshold policy does not enter.
    Paper: "w/ Adap." has no public code for segmentation; here it is the same top-K mask as above.
    Where exactly K pixels are taken (reading='paper'), precision, recall and F coincide.

    Paper: an empty mask (MS3 has some) counts its background in the release: IoU = share of pixels not predicted
    (empty='background'; 'skip' leaves such samples out of mIoU, as they are out of F).
    Paper: the release averages the means of its batches, so that a smaller last batch weighs more
    (batch_means=True), and the original AVSBench takes F's maximum inside each batch, then the mean over batches
    (f_max='batch').
    """

    kept = ('iou', 'iou_adaptive', 'area', 'f_sum', 'f_count', 'f_adaptive', 'batch_iou', 'batch_f')

    def __init__(self, threshold='fixed:0.5', strict=True, empty='background', batch_means=False,
                 f_max='dataset', reading='release'):
        self.threshold, self.strict, self.empty, self.reading = threshold, strict, empty, reading
        self.batch_means, self.f_max = batch_means, f_max
        self.iou, self.iou_adaptive, self.area, self.f_adaptive = [], [], [], []
        self.batch_iou, self.batch_f = [], []
        # Sums of F in units of 2^-40: whole numbers add up to the same in any order.
        self.f_sum, self.f_count = torch.zeros(len(F_THRESHOLDS), dtype=torch.int64), 0

    def update(self, heatmaps, masks):
        """heatmaps (B, H, W) in 0..1, masks (B, H, W): non-zero is object."""
        heatmaps, masks = checked(heatmaps, masks, len(self.iou))
        masks = (masks > 0).float()
        n_gt, pixels = masks.sum((1, 2)).long(), masks[0].numel()                   # (B,)
        with_object = n_gt.cpu() > 0                                                # (B,)

        counts = overlap_by(self.threshold, heatmaps, masks, n_gt, self.strict, self.reading)
        iou, area = self.mask_iou_from(*counts, pixels), (counts[0] + counts[1]) / pixels            # (B, T) each
        self.iou += iou.tolist() if self.threshold == 'sweep' else iou[:, 0].tolist()
        self.area += area.tolist() if self.threshold == 'sweep' else area[:, 0].tolist()
        self.batch_iou.append(mean(iou.tolist()))

        counts = overlap_by('adaptive', heatmaps, masks, n_gt, reading=self.reading)
        self.iou_adaptive += self.mask_iou_from(*counts, pixels)[:, 0].tolist()
        self.f_adaptive += f_score(*counts)[with_object, 0].tolist()

        f = f_score(*overlap(heatmaps, masks, F_THRESHOLDS.to(heatmaps.device)))[with_object]        # (<= B, 255)
        self.f_sum = self.f_sum + (f * 2**40).round().long().sum(0)
        self.f_count += len(f)
        if len(f):
            self.batch_f.append(float(f.mean(0).max()))

    def mask_iou_from(self, inside, outside, total, pixels):
        """The overlap's counts -> IoU (B, T), with an empty mask treated as `empty` says."""
        of_empty = (pixels - outside) / pixels if self.empty == 'background' else math.nan
        return torch.where(total > 0, inside / (total + outside), of_empty)

    def f_curve(self):
        """Mean F at each of the 255 thresholds, in per cent. (255,)"""
        return 100 * self.f_sum.double() / 2**40 / self.f_count

    def compute(self):
        miou = percent(mean(self.batch_iou if self.batch_means else self.iou))
        if isinstance(miou, list) and self.threshold != 'sweep':
            miou = miou[0]                                                          # batch means are rows of T = 1
        f = percent(mean(self.batch_f)) if self.f_max == 'batch' else float(self.f_curve().max())
        return {'mIoU': miou, 'mIoU_adap': percent(mean(self.iou_adaptive)),
                'F': f, 'F_adap': percent(mean(self.f_adaptive))}


# ------------------------------------------------------------------------------------------------
# Audio-visual robustness I: AP, max-F1, LocAcc on the extended sets (Tables 3 and 4, Figure 7)
# ------------------------------------------------------------------------------------------------

def top_quarter_mean(heatmaps):
    """SLAVC's own confidence: the mean of the highest quarter of each map's pixels. (B, H, W) -> (B,)

    Paper: this method's confidence is "derived from a global audio-visual similarity"; in the released code it is
    cos(v_F[i, i], A_i), which only the model can give. This one serves other methods' heatmaps.
    """
    flat = heatmaps.float().flatten(1)                                              # (B, P)
    return flat.topk(flat.shape[1] // 4, dim=1).values.mean(1)


class Extended(Streaming):
    """AP, max_F1, precision and recall at max-F1, LocAcc. Per sample: `.iou`, `.confidence`, `.sounding`.

    At a confidence threshold c, a sample with confidence >= c is a detection. It is right if something sounds in
    the frame and IoU >= 0.5, and else wrong; a sounding sample below c is a miss. LocAcc looks at sounding samples
    only. Paper: a sounding sample detected in the wrong place is a false positive, but not a miss as well.

    (Table 4's recall of 86.04 above its LocAcc of 80.80 proves it: if misplaced ones were misses,
    recall could not exceed the share of sounding samples that are found.)

    Paper: the evaluator behind Tables 3 and 4 leaves out the highest confidence, takes only every (N // 200)-th of
    the others, omits the curve's first rectangle (ten perfect samples score 80), looks for max-F1 at every
    (N // 10)-th confidence only, and rounds it to 0.1. All of that is kept, as the tables are made of it;
    reading='paper' uses every confidence, the whole area, and IoU > 0.5 ("exceeds 0.5"). It adds
    AP_textbook, object detection's own AP, in which a sounding object detected in the wrong place
    is a miss too.
    """

    kept = ('iou', 'confidence', 'sounding')

    def __init__(self, threshold='fixed:0.5', strict=False, empty=0.0, first_of_batch=False,
                 reading='release'):
        if threshold == 'sweep':
            raise ValueError('the extended sets sweep the confidence: they need one heatmap threshold, not sweep')
        self.threshold, self.strict, self.empty = threshold, strict, empty
        self.first_of_batch, self.reading = first_of_batch, reading
        self.iou, self.confidence, self.sounding = [], [], []

    def update(self, heatmaps, ground_truth, confidence, sounding=None):
        """heatmaps, ground_truth (B, H, W); confidence (B,); sounding (B,) bool, True where a source is in sight.

        Without `sounding`, a sample sounds if its ground truth has any pixel. (A clipped box may leave none.)
        """
        heatmaps, ground_truth = checked(heatmaps, ground_truth, len(self.iou))
        confidence = torch.as_tensor(confidence)                                    # (B,)
        if not confidence.isfinite().all():
            number = len(self.iou) + int((~confidence.isfinite()).nonzero()[0])
            raise ValueError(f'confidence number {number} (in order of update, from 0) is NaN or '
                             'infinity')
        n_gt = (ground_truth > 0).sum((1, 2))                                       # (B,)
        counts = overlap_by(self.threshold, heatmaps, ground_truth, n_gt, self.strict, self.reading,
                            self.first_of_batch)
        self.iou += ratio(*counts, self.empty)[:, 0].tolist()
        self.confidence += confidence.tolist()
        self.sounding += torch.as_tensor(n_gt > 0 if sounding is None else sounding).bool().tolist()

    def precision_recall(self, thresholds, textbook=False):
        """Confidence thresholds (T,) float64 -> precision, recall (T,): the points of Figure 7.

        textbook: a sounding sample that is detected in the wrong place is a miss too.
        """
        confidence, order = torch.tensor(self.confidence, dtype=torch.float64).sort(stable=True)     # (N,) each
        sounding = torch.tensor(self.sounding)[order]                                                # (N,)
        iou = torch.tensor(self.iou, dtype=torch.float64)[order]                    # (N,)
        right = sounding & (iou > 0.5 if self.reading == 'paper' else iou >= 0.5)   # (N,)
        # `first` is the lowest detection: everything from it on is a detection, everything before is not.
        first = torch.searchsorted(confidence, thresholds.contiguous())             # (T,) 0 .. N
        below = torch.nn.functional.pad(torch.stack([sounding, right]).cumsum(1), (1, 0))   # (2, N + 1)
        detected = len(order) - first                                               # (T,)
        hits = below[1, -1] - below[1, first]                                       # (T,)
        misses = below[0, -1] - hits if textbook else below[0, first]               # (T,)
        precision = torch.where(detected > 0, hits / detected, 1.0)
        recall = torch.where(hits + misses > 0, hits / (hits + misses), 1.0)
        return precision.double(), recall.double()

    def average_precision(self, textbook=False):
        """The area under the interpolated precision-recall curve, 0..1; textbook: as above."""
        levels = torch.tensor(self.confidence, dtype=torch.float64).sort(descending=True).values     # (N,)
        if self.reading == 'release':
            levels = levels[1:][::max(1, len(levels) // 200)]
        precision, recall = self.precision_recall(levels, textbook)         # recall grows along it
        highest_ahead = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
        if self.reading == 'release':
            return float((highest_ahead[:-1] * recall.diff()).sum())
        return float((highest_ahead * recall.diff(prepend=recall.new_zeros(1))).sum())

    def f1_curve(self):
        """F1, precision, recall (T,) at the confidences among which max-F1 is sought, from the lowest on."""
        levels = torch.tensor(self.confidence, dtype=torch.float64).sort().values                    # (N,)
        if self.reading == 'release':
            levels = levels[::max(1, len(levels) // 10)]
        precision, recall = self.precision_recall(levels)
        both = precision + recall
        return torch.where(both > 0, 2 * precision * recall / both, 0.0), precision, recall

    def compute(self):
        by_paper = self.reading == 'paper'
        if not self.iou:
            names = ['AP', 'max_F1', 'precision', 'recall', 'LocAcc']
            return dict.fromkeys([*names, 'AP_textbook'] if by_paper else names, math.nan)
        scores = {'AP': 100 * self.average_precision()}
        if by_paper:
            scores['AP_textbook'] = 100 * self.average_precision(textbook=True)
        f1, precision, recall = self.f1_curve()
        best = int(f1.argmax())
        max_f1 = 100 * float(f1[best])
        visible = [iou for iou, sounding in zip(self.iou, self.sounding) if sounding]
        # Paper: LocAcc is said to be cIoU, but its evaluator asks for IoU > 0.5 where cIoU's asks for >= 0.5.
        return {**scores, 'max_F1': max_f1 if by_paper else round(max_f1, 1),
                'precision': 100 * float(precision[best]), 'recall': 100 * float(recall[best]),
                'LocAcc': success_share(visible, strict=True)}


# ------------------------------------------------------------------------------------------------
# Audio-visual robustness II: sounds of nothing in sight (Table 5)
# ------------------------------------------------------------------------------------------------

NEGATIVES = ('silence', 'noise', 'offscreen')


class Robustness:
    """mIoU and F of the positives, and mIoU, F, FPR of each negative condition, and the global G_mIoU, G_F, G_FPR.

    A negative sample keeps the mask of the object in sight, which now makes no sound: the lower the score, the
    better. FPR is the share of all pixels predicted, a fraction. The global scores are the harmonic mean of the
    positive score and 1 - the mean of the negative scores; G_FPR is the mean FPR of the negatives.
    Paper: two of the G-FPR it prints for this method do not follow from its other columns; all G-mIoU and G-F do.
    Paper: F is a maximum over thresholds that begin at 0, so it never falls below the score of predicting the
    whole frame: the 22.6 and 16.9 that Table 5 prints under every negative condition are that floor.
    """

    def __init__(self, threshold='fixed:0.5', **options):
        """options: those of Segmentation."""
        self.conditions = {name: Segmentation(threshold, **options) for name in ('positive', *NEGATIVES)}

    def __len__(self):
        return sum(map(len, self.conditions.values()))

    def update(self, heatmaps, masks, condition):
        """heatmaps, masks (B, H, W); condition: one name for the batch, or a list of B names."""
        names = [condition] * len(heatmaps) if isinstance(condition, str) else list(condition)
        for name in dict.fromkeys(names):
            chosen = torch.tensor([i for i, other in enumerate(names) if other == name])
            self.conditions[name].update(heatmaps[chosen.to(heatmaps.device)], masks[chosen.to(masks.device)])

    def merge(self, other):
        for name, part in self.conditions.items():
            part.merge(other.conditions[name])
        return self

    def merge_across_ranks(self):
        for part in self.conditions.values():
            part.merge_across_ranks()
        return self

    def compute(self):
        """A condition without samples is NaN; the global scores go over the negative conditions that have some."""
        result = {}
        for name, part in self.conditions.items():
            scores = part.compute()
            result[f'mIoU_{name}'], result[f'F_{name}'] = scores['mIoU'], scores['F']
            if name != 'positive':
                result[f'FPR_{name}'] = mean(part.area)
        present = [name for name in NEGATIVES if self.conditions[name].iou]
        for score in ('mIoU', 'F'):
            negative = mean([result[f'{score}_{name}'] for name in present])
            result[f'G_{score}'] = global_score(result[f'{score}_positive'], negative)
        result['G_FPR'] = mean([result[f'FPR_{name}'] for name in present])
        return result


def global_score(positive, negative):
    """Harmonic mean of the positive score and 100 - the negative one, in per cent (or lists of 19: 'sweep')."""
    if isinstance(positive, list) and isinstance(negative, list):
        return [global_score(p, n) for p, n in zip(positive, negative)]
    if isinstance(positive, list) or isinstance(negative, list):
        return math.nan                                                             # one of the two has no samples
    clean = 100 - negative
    return 2 * positive * clean / (positive + clean) if positive + clean != 0 else 0.0


# ------------------------------------------------------------------------------------------------
# Interactive localization: IIoU, IAUC, and both adaptive (Table 7)
# ------------------------------------------------------------------------------------------------

def group_of(name):
    """The image that a sample of IS4 or VPO belongs to: its name without the last part, 'a_b_c' -> 'a_b'."""
    return name.rsplit('_', 1)[0]


class Interactive(SingleSource):
    """IIoU, IAUC, IIoU_adap, IAUC_adap: all sounds of an image have to be found for the image to count.

    A group succeeds at a level if every one of its samples does, so its IoU is that of its worst sample.
    Paper: the alignment code takes > the threshold (strict, the default here) and stretches each map to 0..1 first
    (normalise=True), which has no place before a fixed threshold on probabilities.
    Paper: VPO-MS has groups of a single sample; they count as groups, as in the alignment code.
    Paper: one NaN (0/0 without ground truth) makes all four results NaN in the alignment code
    (empty=math.nan, nan_spreads=True); here such a sample fails.
    sizes {group: samples it should have}: a group of which some were not seen says nothing and is left out.
    """

    kept = SingleSource.kept + ('groups',)

    def __init__(self, threshold='fixed:0.5', strict=True, nan_spreads=False, sizes=None, **options):
        super().__init__(threshold, strict, **options)
        self.nan_spreads, self.groups, self.sizes = nan_spreads, [], sizes or {}

    def update(self, heatmaps, ground_truth, groups):
        """heatmaps, ground_truth (B, H, W) as for SingleSource; groups: B names, equal within one image."""
        super().update(heatmaps, ground_truth)
        self.groups += list(groups)

    def worst(self, iou):
        """IoU of each sample (N floats or rows of 19) -> IoU of each group's worst sample."""
        if iou and isinstance(iou[0], list):
            return [list(row) for row in zip(*[self.worst(list(column)) for column in zip(*iou)])]
        lowest = {}
        for group, value in zip(self.groups, iou):
            value = -1.0 if math.isnan(value) else value                            # fails at every level, 0 too
            lowest[group] = min(value, lowest.get(group, value))
        seen = Counter(self.groups)
        return [value for group, value in lowest.items() if seen[group] == self.sizes.get(group, seen[group])]

    def compute(self):
        result = {}
        for suffix, iou in (('', self.iou), ('_adap', self.iou_adaptive)):
            spoilt = self.nan_spreads and any(np.isnan(value).any() for value in iou)
            result['IIoU' + suffix] = math.nan if spoilt else self.success(self.worst(iou))
            result['IAUC' + suffix] = math.nan if spoilt else area_under_success(self.worst(iou))
        return result


# ------------------------------------------------------------------------------------------------
# Localization in mixtures: CAP, PIAP, CIoU@10/30/50, AUC (Table 8)
# ------------------------------------------------------------------------------------------------

def pixel_ap(scores, truth):
    """Average precision of pixels ranked by score: scores, truth (B, H, W) -> (B,) float64, NaN without truth.

    The sum over recall steps of the precision there, not interpolated; equal scores enter together, as one step.
    """
    ranked, order = scores.flatten(1).sort(dim=1, descending=True)              # (B, P) each
    hits = (truth.flatten(1) > 0).long().gather(1, order).cumsum(1)                 # (B, P) hits among the first
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]                                  # the last of its equals
    upto = torch.where(last, hits, 0).cummax(1).values                              # hits at the latest such step
    before = torch.nn.functional.pad(upto[:, :-1], (1, 0))                          # and at the one before it
    new, hits, last = (hits - before).cpu(), hits.cpu(), last.cpu()
    precision = hits / torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)      # (B, P)
    total = hits[:, -1]                                                             # (B,)
    area = (precision * new * last).cumsum(1)[:, -1]                                # (B,) added in rank order
    return torch.where(total > 0, area / total.clamp(min=1), math.nan)


class MultiSource(Streaming):
    """CAP, PIAP, CIoU@10, CIoU@30, CIoU@50, AUC. `.cap` and `.piap` per scene, `.iou` per source, `.scene_iou`.

    A scene has k sources, each with its ground truth, and k predicted maps that do not say which is whose.
    CAP: mean pixel AP over the sources, under the pairing of maps and sources that maximises it. CIoU and AUC use
    that pairing too. PIAP: pixel AP of the maximum of all maps against the union of all ground truths.

    Paper: it averages CIoU over "all objects in the scene". Read as a share of objects found (average='objects');
    in Hu et al. (2020) a scene's IoUs are averaged first and then held against the level (average='scene').
    Paper: no public code computes CAP. AVGN's code for PIAP swaps its arguments and ranks nothing: it takes the
    cut prediction for the truth and the ground truth for the score (piap='avgn').
    """

    kept = ('cap', 'piap', 'iou', 'scene_iou')

    def __init__(self, threshold='fixed:0.5', strict=False, average='objects', piap='heatmap',
                 reading='release'):
        self.threshold, self.strict, self.reading = threshold, strict, reading
        self.average, self.piap_reading = average, piap
        self.cap, self.piap, self.iou, self.scene_iou = [], [], [], []

    def __len__(self):
        return len(self.cap)                                # scenes; .iou is of sources

    def update(self, heatmaps, ground_truth):
        """heatmaps, ground_truth (B, k, H, W); non-zero is source. A source without any pixel is left out."""
        B, k, H, W = ground_truth.shape
        seen = len(self.cap) * k
        flat, each = checked(heatmaps.flatten(0, 1), ground_truth.flatten(0, 1), seen)  # (B * k, H, W) each
        each = (each > 0).float()
        maps, truth = flat.view(B, k, H, W), each.view(B, k, H, W)

        # Every map against every source, and the best of all ways to give each source a map of its own.
        ap = torch.stack([torch.stack([pixel_ap(maps[:, m], truth[:, s]) for s in range(k)], 1)
                          for m in range(k)], 1)                                    # (B, k maps, k sources)
        pairings = torch.tensor(list(itertools.permutations(range(k))))             # (k!, k) a map for each source
        scores = ap[:, pairings, torch.arange(k)].nanmean(2)                        # (B, k!)
        best, way = scores.nan_to_num(-1).max(1)                                    # (B,) each
        self.cap += torch.where(best < 0, math.nan, best).tolist()

        merged, union = maps.amax(1), truth.amax(1)                                 # (B, H, W) each
        if self.piap_reading == 'avgn':
            cut = binarise(merged, self.threshold, union.sum((1, 2)).long(), self.strict)
            self.piap += pixel_ap(union, cut.float()).nan_to_num(0.0).tolist()
        else:
            self.piap += pixel_ap(merged, union).tolist()

        self.pairing = pairings[way]                                                # (B, k) of the latest batch
        own = maps[torch.arange(B)[:, None], self.pairing].flatten(0, 1)            # (B * k, H, W)
        n_gt = each.sum((1, 2)).long()                                              # (B * k,)
        counts = overlap_by(self.threshold, own, each, n_gt, self.strict, self.reading)
        iou = torch.where(counts[2] > 0, ratio(*counts, 0.0), math.nan).view(B, k, -1)               # (B, k, T)
        for scene in iou:
            found = [row if self.threshold == 'sweep' else row[0] for row in scene.tolist()
                     if not math.isnan(row[0])]
            self.iou += found
            if found:
                self.scene_iou.append(mean(found))

    def compute(self):
        iou = self.iou if self.average == 'objects' else self.scene_iou
        # Paper: AVGN's evaluator takes CIoU@k as IoU > k and its AUC as IoU >= t.
        return {'CAP': percent(mean(self.cap)), 'PIAP': percent(mean(self.piap)),
                **{f'CIoU@{level}': success_share(iou, level / 100, strict=True) for level in (10, 30, 50)},
                'AUC': area_under_success(iou)}

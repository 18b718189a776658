"""Evaluation metrics of section 4.1: from heatmaps and ground truths to the numbers of Tables 1 to 8.

    metric = SingleSource('fixed:0.5', reading='release')
    metric.update(heatmaps, *[batch[key] for key in metric.needs])    # (B, H, W) in 0..1, per batch
    metric.merge_across_ranks()             # under torchrun; does nothing in one process
    metric.compute()                        # {'cIoU': 49.5, 'AUC': ..., 'cIoU_adap': ..., ...}

Results are in per cent, except FPR and G_FPR, which the paper prints as fractions. They do not
depend on the batch size, the order of the samples or the number of processes, to the last bit:
counts of pixels are whole numbers (halves under a consensus map) and means over samples are
exactly rounded sums. The released evaluators differ from each other and from the paper: a comment
that starts with "Paper" says where, and tests/released_evaluators.py reproduces them.

Sections: thresholding policy, overlap, single source, segmentation, robustness (two kinds),
interactive, mixtures, held-out frames. Shapes: B images, H W pixels, P = H * W, T thresholds,
N samples seen. Pixels are counted on the heatmaps' device; the rest is float64 on the CPU.
"""

import itertools
import math
from collections import Counter

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import pad

SWEEP = torch.arange(1, 20) / 20                    # 0.05, 0.10 .. 0.95, as the release prints
F_THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255)    # of the F-score (AVSBench's released code)
BETA_SQUARED = 0.3                                  # F: precision over recall (Zhou et al., 2022)
AUC_POINTS = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64)    # IoU 0, 0.05 .. 1


# ------------------------------------------------------------------------------------------------
# Thresholding policy: from a heatmap to the predicted region
# ------------------------------------------------------------------------------------------------
# Tables 1 to 8 cut each heatmap into a sounding region and the rest. --threshold names how:
#
#   fixed:0.5   the pixels at 0.5 and above (or at any other number). This is for our own heatmaps,
#               the probabilities sigmoid(M_G + b/w): 0.5 means "as likely as not".
#   top50       the upper half of the pixels, whatever their values: the usual rule of the field,
#               for maps without a scale. It fails on a source smaller than half the frame.
#   adaptive    as many of the highest pixels as the ground truth has: every "w/ Adap." column.
#               This gives the size away, so it scores place and shape only.
#   sweep       the 19 thresholds 0.05 .. 0.95 at once: what the release prints. Results become
#               lists of 19.
#
# Paper [46]: it describes top50 and names no threshold for its own rows; the release prints all 19.
# We infer 0.5: Table 5 gives earlier methods an FPR of exactly 0.50, so they are cut at their upper
# half, and gives this method less, so it is cut at a fixed value.
#
# Paper [48]: in four places the tables follow the released evaluators, not the paper's own words.
# Each class follows the evaluators (reading='release') or the words (reading='paper'):
#   cIoU and IIoU count a sample with IoU "greater than 0.5"; the evaluators take >= 0.5.
#   LocAcc is "identical to cIoU", yet its evaluator takes > 0.5; both do in the paper's words.
#   "w/ Adap." keeps "the top K pixels"; the evaluators keep K - 1, and fewer among ties.
#   AP and max-F1 vary the confidence "over all samples"; the evaluator leaves most of them out.

def thresholds_for(heatmaps, policy='fixed:0.5', ground_truth=None):
    """Where to cut each heatmap (B, H, W); 'adaptive' needs the ground truth (B, H, W).

    Returns (B, 1), a threshold for each map, or for 'sweep' (19,), shared by all maps.
    """
    B, half = len(heatmaps), heatmaps[0].numel() // 2
    if policy == 'sweep':
        return SWEEP.to(heatmaps.device)                                    # (19,)
    if policy.startswith('fixed:'):
        return heatmaps.new_full((B, 1), float(policy.removeprefix('fixed:')))
    if policy == 'top50':
        # Paper [49]: without a threshold, the release's VGG-SS, Flickr and extended evaluators
        # reuse the median of the first sample of a batch for the whole batch. Here each has its own.
        return kth_smallest(heatmaps, torch.full((B,), half))               # (B, 1)
    if policy == 'adaptive':
        n_gt = (ground_truth > 0).sum((1, 2)).cpu()                         # (B,)
        # An empty ground truth falls back to the upper half, as in the alignment code.
        return kth_smallest(heatmaps, torch.where(n_gt == 0, half, heatmaps[0].numel() - n_gt))
    raise ValueError(f'unknown threshold {policy!r}: use fixed:T (T a number), top50, adaptive or '
                     'sweep')


def kth_smallest(heatmaps, k):
    """The pixel at place k (B,), counted from 0, of each map's sorted pixels. -> (B, 1)"""
    flat = heatmaps.flatten(1)                                              # (B, P)
    if flat.device.type == 'cpu':           # 40 times as fast as torch.sort on one thread
        picked = [float(np.partition(row, i)[i]) for row, i in zip(flat.numpy(), k.tolist())]
        return torch.tensor(picked, dtype=flat.dtype)[:, None]
    return flat.sort(1).values.gather(1, k.to(flat.device)[:, None])


def highest_pixels(heatmaps, k):
    """1 at the k (B,) highest pixels of each map, else 0: 'adaptive' in the paper's words. (B, H, W)

    Among equal pixels the first in reading order are taken.
    """
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)        # (B, P)
    rank = order.argsort(dim=1)                                             # (B, P) highest: 0
    return (rank < k[:, None]).view_as(heatmaps).to(heatmaps.dtype)


# ------------------------------------------------------------------------------------------------
# Overlap of prediction and ground truth: what all pixel metrics are made of
# ------------------------------------------------------------------------------------------------

def overlap(heatmaps, ground_truth, thresholds, strict=False):
    """How much of each cut heatmap lies inside, and how much outside, the ground truth.

    heatmaps, ground_truth (B, H, W); thresholds (B, 1) or (T,), ascending and evenly spaced.
    strict: cut > instead of >= the threshold. Returns float64 on the CPU: inside (B, T), the sum of
    the ground truth under the prediction; outside (B, T), the number of predicted pixels where the
    ground truth is zero; total (B, 1), the sum of the ground truth.
    """
    if len(heatmaps) > 8:       # larger work arrays leave the CPU's cache and take twice the time
        shared = thresholds.dim() == 1
        cuts = itertools.repeat(thresholds) if shared else thresholds.split(8)
        chunks = zip(heatmaps.split(8), ground_truth.split(8), cuts)
        parts = [overlap(*chunk, strict) for chunk in chunks]
        return [torch.cat(column) for column in zip(*parts)]
    x, g = heatmaps.flatten(1), ground_truth.flatten(1)                     # (B, P) each
    # Comparing in place gives 0. and 1. without an array of bools: half the time on one CPU thread.
    empty = g.clone().eq_(0)                                                # (B, P)
    if thresholds.dim() == 2:
        above = x.clone().gt_(thresholds) if strict else x.clone().ge_(thresholds)  # (B, P)
        inside = (above * g).sum(1, keepdim=True)                           # (B, 1)
        outside = (above * empty).sum(1, keepdim=True)                      # (B, 1)
    else:
        inside, outside = pass_counts(x, g, empty, thresholds, strict).unbind(1)    # (B, T) each
    return [count.cpu().double() for count in (inside, outside, g.sum(1, keepdim=True))]


def pass_counts(x, g, empty, thresholds, strict):
    """All thresholds in one pass: x, g, empty (B, P), thresholds (T,) -> inside, outside (B, 2, T)

    How many of the thresholds does each pixel pass? As they are evenly spaced, arithmetic finds the
    nearest one: the pixel passes all below it and none above, so one comparison is left. (This
    takes a fifth of the time of torch.bucketize at 255 thresholds.) A histogram does the rest.
    """
    T = len(thresholds)
    steps = (T - 1) / (thresholds[-1] - thresholds[0])
    # Small whole numbers are exact in float32, which takes half the memory traffic of int64.
    passed = ((x - thresholds[0]) * steps).round_().clamp_(0, T - 1)        # (B, P) 0 .. T - 1
    nearest = thresholds.index_select(0, passed.int().flatten()).view_as(x)         # (B, P)
    passed += nearest.lt_(x) if strict else nearest.le_(x)                  # (B, P) 0 .. T
    # Two histograms in one: inside, weighted by the ground truth, and outside, each pixel once.
    place = passed.add_(empty, alpha=T + 1).long()                          # (B, P) 0 .. 2 T + 1
    histogram = x.new_zeros(len(x), 2 * (T + 1)).scatter_add_(1, place, g + empty)
    # A pixel that passed n thresholds counts for the first n. Sum from the end, drop "passed none".
    return histogram.view(-1, 2, T + 1).flip(-1).cumsum(-1).flip(-1)[..., 1:]       # (B, 2, T)


def ratio(inside, outside, total, empty=0.0):
    """IoU (B, T) from the counts of overlap; `empty` stands for 0/0."""
    return (inside / (total + outside)).nan_to_num(empty)


def checked(heatmaps, ground_truth, seen):
    """Both as float32 (B, H, W), or an error that names the sample. seen: samples before these."""
    if heatmaps.dim() != 3 or heatmaps.shape != ground_truth.shape:
        raise ValueError('heatmaps and ground truth must both be (B, H, W), not '
                         f'{tuple(heatmaps.shape)} and {tuple(ground_truth.shape)}')
    heatmaps = heatmaps.detach().float()
    ground_truth = ground_truth.to(heatmaps.device).float()
    for name, maps in (('heatmap', heatmaps), ('ground truth', ground_truth)):
        broken = ~torch.isfinite(maps.sum((1, 2)))                          # (B,)
        if broken.any():
            raise ValueError(f'{name} number {seen + int(broken.nonzero()[0])} (in order of '
                             'update, from 0) holds NaN or infinity')
    return heatmaps, ground_truth


def mean(values, scale=1):
    """Mean of a list without its NaN, times scale; NaN if none is left. Rows of 19 give 19 means.

    fsum rounds once, at the end, so that the order of the samples does not matter.
    """
    if values and isinstance(values[0], list):
        return [mean(list(column), scale) for column in zip(*values)]
    values = [value for value in values if not math.isnan(value)]
    return scale * (math.fsum(values) / len(values)) if values else math.nan


class Streaming:
    """What the metrics share. The lists named in `kept` are all they remember, never heatmaps.

    needs: the keys of a batch that update() takes after the heatmaps. len(metric): samples seen.
    last_iou: the IoU of each sample of the latest batch, of a sweep the middle one. Under 'sweep'
    `.iou` holds a list of 19 per sample.
    """

    needs, kept, last_iou = (), ('iou',), None
    # Paper [47]: the VGG-SS, extended-set, SLAVC and AVGN evaluators take the pixels >= the
    # threshold, the interactive and AVSBench ones > it. It matters where many pixels are equal.
    strict = False
    # Paper [50]: where ground truth and prediction are both empty, the VGG-SS evaluator divides 0
    # by 0 and gets NaN, which fails even the AUC's level of 0; the extended-set one gets 0.
    empty = 0.0

    def __init__(self, threshold='fixed:0.5', reading='release'):
        self.threshold, self.reading = threshold, reading
        for name in self.kept:
            setattr(self, name, [])

    def __len__(self):
        return len(self.iou)

    def counts(self, policy, heatmaps, ground_truth):
        """overlap() of heatmaps (B, H, W) cut by a policy. -> inside, outside (B, T), total (B, 1)

        'adaptive' takes the pixels above the K-th highest: K - 1 of them, and fewer among ties.
        """
        if policy == 'adaptive' and self.reading == 'paper':
            region = highest_pixels(heatmaps, (ground_truth > 0).sum((1, 2)))
            return overlap(region, ground_truth, thresholds_for(region))
        cut = thresholds_for(heatmaps, policy, ground_truth)                # (B, 1) or (19,)
        return overlap(heatmaps, ground_truth, cut, self.strict or policy == 'adaptive')

    def remember(self, iou):
        """Keep the IoU (B, T) of a batch."""
        self.iou += iou.squeeze(1).tolist()
        self.last_iou = iou[:, iou.shape[1] // 2].tolist()

    def merge(self, other):
        """Add what another metric of the same kind has seen."""
        for name in self.kept:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def merge_across_ranks(self):
        """Under torchrun: afterwards every rank holds the samples of all. Call it once."""
        if dist.is_available() and dist.is_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, self)
            for other in ranks[1:]:
                ranks[0].merge(other)
            self.__dict__ = ranks[0].__dict__


# ------------------------------------------------------------------------------------------------
# Single sound source localization: cIoU, AUC, and both adaptive (Tables 1 and 2)
# ------------------------------------------------------------------------------------------------

def success_share(iou, level=0.5, strict=False):
    """cIoU: the share, in per cent, of samples with IoU >= level (strict: > level).

    iou: a list of N floats, of which NaN fails. N rows of 19 ('sweep') give a list of 19 shares.
    """
    iou = torch.as_tensor(iou, dtype=torch.float64)                         # (N,) or (N, 19)
    passed = iou > level if strict else iou >= level
    return (100 * (passed.sum(0).double() / len(iou))).tolist()


def area_under_success(iou):
    """AUC: the area, in per cent, under the share of samples with IoU >= t, t = 0, 0.05 .. 1."""
    iou = torch.as_tensor(iou, dtype=torch.float64)                         # (N,) or (N, 19)
    shares = torch.tensor([success_share(iou, float(t)) for t in AUC_POINTS], dtype=torch.float64)
    shares = shares.movedim(0, -1).contiguous()                             # (21,) or (19, 21)
    return torch.trapezoid(shares, AUC_POINTS).tolist()


class SingleSource(Streaming):
    """cIoU, AUC, cIoU_adap, AUC_adap. Per sample: `.iou` and `.iou_adaptive`."""

    needs = ('boxes',)
    kept = ('iou', 'iou_adaptive')

    def update(self, heatmaps, boxes):
        """heatmaps (B, H, W) in 0..1; boxes (B, H, W): 0 and 1, or a consensus map between."""
        heatmaps, boxes = checked(heatmaps, boxes, len(self))
        self.remember(ratio(*self.counts(self.threshold, heatmaps, boxes), self.empty))
        adaptive = ratio(*self.counts('adaptive', heatmaps, boxes), self.empty)     # (B, 1)
        self.iou_adaptive += adaptive[:, 0].tolist()

    def success(self, iou):
        return success_share(iou, strict=self.reading == 'paper')

    def compute(self):
        return {'cIoU': self.success(self.iou), 'AUC': area_under_success(self.iou),
                'cIoU_adap': self.success(self.iou_adaptive),
                'AUC_adap': area_under_success(self.iou_adaptive)}


# ------------------------------------------------------------------------------------------------
# Audio-visual segmentation: mIoU, F-score, and both adaptive (Table 6)
# ------------------------------------------------------------------------------------------------

def f_score(inside, outside, total):
    """The counts of overlap -> F (B, T) with beta^2 = 0.3; 0 where no right pixel is predicted."""
    precision = (inside / (inside + outside)).nan_to_num(0.0)
    recall = (inside / total).nan_to_num(0.0)
    weighted = BETA_SQUARED * precision + recall
    return ((1 + BETA_SQUARED) * precision * recall / weighted).nan_to_num(0.0)


class Segmentation(Streaming):
    """mIoU, F, mIoU_adap, F_adap. Per sample: `.iou`, `.iou_adaptive`, `.area` (share predicted).

    F is, at each of 255 thresholds, the mean over the samples that have any object, then the
    maximum over the thresholds; the threshold policy plays no part.
    Paper [51]: an empty mask (MS3 has some) scores its background in the release: its IoU is the
    share of pixels not predicted.
    Paper [52]: the release averages the means of its batches, so that a smaller last batch weighs
    more, and AVSBench's own code takes F's maximum inside each batch. Here the samples are averaged.
    Paper [53]: "w/ Adap." has no public code for segmentation; here it is the same top-K mask. With
    exactly K pixels (reading='paper') precision, recall and F are equal.
    """

    needs = ('mask',)
    kept = ('iou', 'iou_adaptive', 'area', 'f_adaptive', 'f_sum', 'f_count')
    strict = True                                                           # as AVSBench's

    def __init__(self, threshold='fixed:0.5', reading='release'):
        super().__init__(threshold, reading)
        # Sums of F in units of 2^-40: whole numbers have the same sum in any order.
        self.f_sum = torch.zeros(len(F_THRESHOLDS), dtype=torch.int64)
        self.f_count = 0

    def update(self, heatmaps, masks):
        """heatmaps (B, H, W) in 0..1, masks (B, H, W): non-zero is object."""
        heatmaps, masks = checked(heatmaps, masks, len(self))
        masks, pixels = (masks > 0).float(), masks[0].numel()

        def mask_iou(inside, outside, total):                               # -> (B, T)
            background = (pixels - outside) / pixels
            return torch.where(total > 0, inside / (total + outside), background)

        inside, outside, total = self.counts(self.threshold, heatmaps, masks)
        self.remember(mask_iou(inside, outside, total))
        self.area += ((inside + outside) / pixels).squeeze(1).tolist()

        adaptive = self.counts('adaptive', heatmaps, masks)
        self.iou_adaptive += mask_iou(*adaptive)[:, 0].tolist()
        with_object = total[:, 0] > 0                                       # (B,)
        self.f_adaptive += f_score(*adaptive)[with_object, 0].tolist()

        f = f_score(*overlap(heatmaps, masks, F_THRESHOLDS.to(heatmaps.device)))    # (B, 255)
        self.f_sum = self.f_sum + (f[with_object] * 2**40).round().long().sum(0)
        self.f_count += int(with_object.sum())

    def f_curve(self):
        """Mean F at each of the 255 thresholds, in per cent. (255,)"""
        return 100 * self.f_sum.double() / 2**40 / self.f_count

    def compute(self):
        return {'mIoU': mean(self.iou, 100), 'mIoU_adap': mean(self.iou_adaptive, 100),
                'F': float(self.f_curve().max()), 'F_adap': mean(self.f_adaptive, 100)}


# ------------------------------------------------------------------------------------------------
# Audio-visual robustness I: AP, max-F1, LocAcc on the extended sets (Tables 3 and 4, Figure 7)
# ------------------------------------------------------------------------------------------------

def top_quarter_mean(heatmaps):
    """SLAVC's confidence, for maps of other methods: the mean of the highest quarter of the pixels.

    (B, H, W) -> (B,). This method's own comes from the model (evaluate.py).
    """
    flat = heatmaps.float().flatten(1)                                      # (B, P)
    return flat.topk(flat.shape[1] // 4, dim=1).values.mean(1)


class Extended(Streaming):
    """AP, max_F1, precision and recall at max-F1, LocAcc. Per sample: `.iou`, `.confidence`, `.sounding`.

    At a confidence threshold c, a sample with confidence >= c is a detection. It is right if
    something sounds in the frame and IoU >= 0.5, and else wrong; a sounding sample below c is a
    miss. LocAcc looks at sounding samples only.
    Paper [54]: the evaluator behind Tables 3 and 4 leaves out the highest confidence, takes only
    every (N // 200)-th of the others, omits the curve's first rectangle (ten perfect samples score
    80), looks for max-F1 at every (N // 10)-th confidence only, and rounds it to 0.1. All of that
    is kept, as the tables are made of it. reading='paper' uses every confidence, the whole area and
    IoU > 0.5 ("exceeds 0.5"), and adds AP_textbook.
    Paper [55]: a sounding object detected in the wrong place is a false positive, but not a miss as
    well: Table 4's recall of 86.04 exceeds its LocAcc of 80.80, which would be impossible if it
    were. AP_textbook, object detection's own AP, counts it as both.
    """

    needs = ('boxes', 'confidence', 'condition')
    kept = ('iou', 'confidence', 'sounding')

    def update(self, heatmaps, boxes, confidence, condition):
        """heatmaps, boxes (B, H, W); confidence (B,); condition: 'sounding' if a source is in sight.

        A sounding sample may have no pixel in its boxes (clipped ones), so they do not say it.
        """
        heatmaps, boxes = checked(heatmaps, boxes, len(self))
        broken = [i for i, value in enumerate(confidence) if not math.isfinite(value)]
        if broken:
            raise ValueError(f'confidence number {len(self) + broken[0]} (in order of update, from '
                             '0) is NaN or infinity')
        self.remember(ratio(*self.counts(self.threshold, heatmaps, boxes), self.empty))
        self.confidence += torch.as_tensor(confidence).tolist()
        self.sounding += [name == 'sounding' for name in condition]

    def precision_recall(self, levels, textbook=False):
        """At confidences (T,) float64 -> precision, recall (T,): the points of Figure 7."""
        confidence = torch.tensor(self.confidence, dtype=torch.float64)             # (N,)
        confidence, order = confidence.sort(stable=True)                            # (N,) each
        iou = torch.tensor(self.iou, dtype=torch.float64)[order]                    # (N,)
        sounding = torch.tensor(self.sounding)[order]                               # (N,)
        right = sounding & (iou > 0.5 if self.reading == 'paper' else iou >= 0.5)   # (N,)
        # `first` is the lowest detection: everything from it on is one, nothing before it is.
        first = torch.searchsorted(confidence, levels.contiguous())                 # (T,) 0 .. N
        below = pad(torch.stack([sounding, right]).cumsum(1), (1, 0))               # (2, N + 1)
        hits = below[1, -1] - below[1, first]                                       # (T,)
        misses = below[0, -1] - hits if textbook else below[0, first]               # (T,)
        precision = (hits / (len(order) - first)).nan_to_num(1.0)                   # no detection: 1
        recall = (hits / (hits + misses)).nan_to_num(1.0)
        return precision.double(), recall.double()

    def levels(self):
        """All confidences, the lowest first. (N,) float64"""
        return torch.tensor(self.confidence, dtype=torch.float64).sort().values

    def average_precision(self, textbook=False):
        """The area under the interpolated precision-recall curve, in per cent."""
        levels = self.levels().flip(0)                                      # recall grows along it
        if self.reading == 'release':
            levels = levels[1:][::max(1, len(levels) // 200)]
        precision, recall = self.precision_recall(levels, textbook)
        highest_ahead = precision.flip(0).cummax(0).values.flip(0)          # (T,)
        if self.reading == 'release':
            return 100 * float((highest_ahead[:-1] * recall.diff()).sum())
        return 100 * float((highest_ahead * recall.diff(prepend=recall.new_zeros(1))).sum())

    def f1_curve(self):
        """F1, precision, recall (T,) at the confidences among which max-F1 is sought."""
        levels = self.levels()
        if self.reading == 'release':
            levels = levels[::max(1, len(levels) // 10)]
        precision, recall = self.precision_recall(levels)
        f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        return f1, precision, recall

    def compute(self):
        scores = {'AP': self.average_precision()}
        if self.reading == 'paper':
            scores['AP_textbook'] = self.average_precision(textbook=True)
        f1, precision, recall = self.f1_curve()
        best = int(f1.argmax())
        max_f1 = 100 * float(f1[best])
        visible = [iou for iou, sounding in zip(self.iou, self.sounding) if sounding]
        # Paper [56]: LocAcc is said to be cIoU, but its evaluator asks for IoU > 0.5, cIoU's for
        # IoU >= 0.5.
        return {**scores, 'max_F1': round(max_f1, 1) if self.reading == 'release' else max_f1,
                'precision': 100 * float(precision[best]), 'recall': 100 * float(recall[best]),
                'LocAcc': success_share(visible, strict=True)}


# ------------------------------------------------------------------------------------------------
# Audio-visual robustness II: sounds of nothing in sight (Table 5)
# ------------------------------------------------------------------------------------------------

NEGATIVES = ('silence', 'noise', 'offscreen')


class Robustness(Streaming):
    """mIoU and F of the positives; mIoU, F and FPR of each negative condition; G_mIoU, G_F, G_FPR.

    A negative sample keeps the mask of the object in sight, which now makes no sound: the lower the
    score, the better. FPR is the share of all pixels predicted, a fraction. The global scores are
    the harmonic mean of the positive score and 100 - the mean of the negative ones; G_FPR is the
    mean FPR of the negatives.
    Paper [57]: F is a maximum over thresholds that begin at 0, so it is never below the score of
    predicting the whole frame: this explains the 22.6 and 16.9 that Table 5 prints under every
    negative condition.
    Paper [58]: two of the G-FPR it prints for this method do not follow from its other columns; all
    G-mIoU and G-F do.
    """

    needs = ('mask', 'condition')
    kept = ()

    def __init__(self, threshold='fixed:0.5', reading='release'):
        super().__init__(threshold, reading)
        names = ('positive', *NEGATIVES)
        self.conditions = {name: Segmentation(threshold, reading) for name in names}

    def __len__(self):
        return sum(map(len, self.conditions.values()))

    def update(self, heatmaps, masks, condition):
        """heatmaps, masks (B, H, W); condition: B names."""
        self.last_iou = []
        for heat, mask, name in zip(heatmaps, masks, condition):
            self.conditions[name].update(heat[None], mask[None])
            self.last_iou += self.conditions[name].last_iou

    def merge(self, other):
        for name, part in self.conditions.items():
            part.merge(other.conditions[name])

    def compute(self):
        """A condition without samples is NaN; the global scores are over the others."""
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
    """Harmonic mean of the positive score and 100 - the negative one, in per cent (or lists)."""
    positive = torch.tensor(positive, dtype=torch.float64)                  # () or (19,)
    clean = 100 - torch.tensor(negative, dtype=torch.float64)
    both = positive + clean
    return torch.where(both != 0, 2 * positive * clean / both, 0.0).tolist()


# ------------------------------------------------------------------------------------------------
# Interactive localization: IIoU, IAUC, and both adaptive (Table 7)
# ------------------------------------------------------------------------------------------------

class Interactive(SingleSource):
    """IIoU, IAUC, IIoU_adap, IAUC_adap: an image counts if all of its sounds are localized.

    The samples of an image are a group. It succeeds at a level if every sample does, so its IoU is
    that of its worst sample. A group of which some samples were not seen is left out.
    Paper [59]: the alignment code takes > the threshold, as here. It also stretches each map to
    0..1 first, which makes no sense before a fixed threshold on probabilities.
    Paper [60]: VPO-MS has groups of a single sample; they count, as in the alignment code.
    Paper [61]: one NaN (0/0 without ground truth) makes all four results NaN in the alignment code;
    here such a sample fails.
    """

    needs = ('boxes', 'group', 'group_size')
    kept = SingleSource.kept + ('groups', 'sizes')
    strict = True

    def update(self, heatmaps, boxes, group, group_size):
        """As SingleSource; group: B names; group_size: B numbers, of the samples in its group."""
        super().update(heatmaps, boxes)
        self.groups += list(group)
        self.sizes += list(group_size)

    def worst(self, iou):
        """IoU of each sample (N floats or rows of 19) -> IoU of each group's worst sample."""
        lowest = {}
        for group, value in zip(self.groups, iou):
            lowest[group] = np.minimum(value, lowest.get(group, value))
        seen, sizes = Counter(self.groups), dict(zip(self.groups, self.sizes))
        complete = [group for group in lowest if seen[group] == sizes[group]]
        return [lowest[group].tolist() for group in complete]

    def compute(self):
        fixed, adaptive = self.worst(self.iou), self.worst(self.iou_adaptive)
        return {'IIoU': self.success(fixed), 'IAUC': area_under_success(fixed),
                'IIoU_adap': self.success(adaptive), 'IAUC_adap': area_under_success(adaptive)}


# ------------------------------------------------------------------------------------------------
# Localization in mixtures: CAP, PIAP, CIoU@10/30/50, AUC (Table 8)
# ------------------------------------------------------------------------------------------------

def pixel_ap(scores, truth):
    """AP of pixels ranked by score: scores, truth (B, H, W) -> (B,) float64, NaN without truth.

    The sum over recall steps of the precision there, not interpolated. Equal scores are one step.
    """
    ranked, order = scores.flatten(1).sort(dim=1, descending=True)          # (B, P) each
    hits = (truth.flatten(1) > 0).long().gather(1, order).cumsum(1)         # (B, P) so far
    last = pad(ranked[:, :-1] != ranked[:, 1:], (0, 1), value=True)         # the last of its equals
    upto = torch.where(last, hits, 0).cummax(1).values                      # hits at the latest step
    new = hits - pad(upto[:, :-1], (1, 0))                                  # since the one before
    new, hits, last = new.cpu(), hits.cpu(), last.cpu()
    precision = hits / torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)      # (B, P)
    area = (precision * new * last).cumsum(1)[:, -1]                        # (B,) in rank order
    return area / hits[:, -1]


class MultiSource(Streaming):
    """CAP, PIAP, CIoU@10, CIoU@30, CIoU@50, AUC. `.cap`, `.piap` per scene, `.iou` per source.

    A scene has k sources, each with its ground truth, and k predicted maps in any order. CAP: mean
    pixel AP over the sources, under the pairing of maps and sources that maximises it. CIoU and AUC
    use that pairing too. PIAP: pixel AP of the maximum of all maps against the union of all ground
    truths.
    Paper [62]: it averages CIoU over "all objects in the scene". Here that is the share of objects
    found; Hu et al. (2020) average a scene's IoUs first and compare that with the level.
    Paper [63]: no public code computes CAP. AVGN's code for PIAP swaps its arguments and ranks
    nothing: it takes the cut prediction for the truth and the ground truth for the score.
    """

    needs = ('sources',)
    kept = ('cap', 'piap', 'iou')

    def __len__(self):
        return len(self.cap)                                                # scenes

    def update(self, heatmaps, sources):
        """heatmaps, sources (B, k, H, W); non-zero is source. One without any pixel is left out."""
        B, k, H, W = sources.shape
        maps, each = checked(heatmaps.flatten(0, 1), sources.flatten(0, 1), len(self) * k)
        maps, each = maps.view(B, k, H, W), (each > 0).float()              # each: (B * k, H, W)
        truth = each.view(B, k, H, W)

        # Every map against every source, and the best of all ways to give each source a map.
        ap = [pixel_ap(maps[:, m], truth[:, s]) for m in range(k) for s in range(k)]
        ap = torch.stack(ap, 1).view(B, k, k)                               # (B, k maps, k sources)
        pairings = torch.tensor(list(itertools.permutations(range(k))))     # (k!, k) map of a source
        scores = ap[:, pairings, torch.arange(k)].nanmean(2)                # (B, k!)
        best, way = scores.nan_to_num(-1).max(1)                            # (B,) each
        self.cap += torch.where(best < 0, math.nan, best).tolist()
        self.piap += pixel_ap(maps.amax(1), truth.amax(1)).tolist()

        self.pairing = pairings[way]                                        # (B, k) latest batch
        own = maps[torch.arange(B)[:, None], self.pairing].flatten(0, 1)    # (B * k, H, W)
        counts = self.counts(self.threshold, own, each)
        there = counts[2][:, 0] > 0                                         # (B * k,)
        self.iou += ratio(*counts)[there].squeeze(1).tolist()

    def compute(self):
        # Paper [64]: AVGN's evaluator takes CIoU@k as IoU > k and its AUC as IoU >= t.
        found = {f'CIoU@{k}': success_share(self.iou, k / 100, strict=True) for k in (10, 30, 50)}
        return {'CAP': mean(self.cap, 100), 'PIAP': mean(self.piap, 100), **found,
                'AUC': area_under_success(self.iou)}


# ------------------------------------------------------------------------------------------------
# Held-out frames of two sounding objects: is the right one found? (not in the paper)
# ------------------------------------------------------------------------------------------------

class BothRight(Streaming):
    """both_right: the share, in per cent, of frames in which both sounds find their own object.

    Under each of its two sounds, the mean heat on the sound's own object must exceed the mean heat
    on the other one. There is no threshold. len(metric): frames of which both sounds were seen.
    `.waiting`: (group, heatmap, mask) of samples whose other sound was not seen yet.
    """

    needs = ('mask', 'group')
    kept = ('right', 'waiting')

    def __len__(self):
        return len(self.right)

    def update(self, heatmaps, masks, group):
        """heatmaps (B, H, W); masks (B, H, W) or a list with None, which is left out; B names."""
        samples = zip(group, heatmaps, masks)
        self.waiting += [(name, heat, mask > 0.5) for name, heat, mask in samples
                         if mask is not None]
        self.pair()

    def pair(self):
        """Score the frames of which both samples are there."""
        first = {}
        for name, heat, mask in self.waiting:
            if name not in first:
                first[name] = name, heat, mask
                continue
            _, other_heat, other_mask = first.pop(name)
            here = heat[mask].mean() > heat[other_mask].mean()
            there = other_heat[other_mask].mean() > other_heat[mask].mean()
            self.right.append(100.0 * bool(here and there))
        self.waiting = list(first.values())

    def merge(self, other):
        super().merge(other)
        self.pair()

    def compute(self):
        return {'both_right': mean(self.right)}

"""Evaluation metrics of section 4.1: from heatmaps and ground truths to Tables 1 to 8.

    metric = SingleSource('fixed:0.5', reading='release')
    metric.update(heatmaps, *[batch[key] for key in metric.needs])      # (B, H, W) in 0..1
    metric.merge(other)                     # of another process, which scored other samples
    metric.compute()                        # {'cIoU': 49.5, 'AUC': ..., 'cIoU_adap': ..., ...}

Tables 1, 2: SingleSource; 3, 4: Extended; 5: Robustness; 6: Segmentation; 7: Interactive; 8:
MultiSource. In per cent, but FPR and G_FPR are fractions, as in the paper. Scores are equal to the
bit for any batch size, order and number of processes: pixel counts are whole numbers (halves under
a consensus map), and sums over samples are exact, rounded once. Where a released evaluator differs,
a comment `Paper [n]` says how, and tests/released_evaluators.py computes its number.
Shapes: B maps in a batch, H W pixels, P = H * W, T thresholds (19 for 'sweep', else 1), N samples.
"""

import itertools
import math

import numpy as np
import torch

SWEEP = torch.arange(1, 20) / 20                    # 0.05, 0.10 .. 0.95, as the release prints
F_THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255)    # of the F-score (AVSBench's released code)
BETA_SQUARED = 0.3                                  # F: precision over recall (Zhou et al., 2022)
AUC_POINTS = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64)    # IoU 0, 0.05 .. 1
CONDITIONS = ('positive', 'silence', 'noise', 'offscreen')      # of Table 5


# ---- Thresholding policy: from a heatmap to the predicted region ---------------------------------
# A policy, --threshold, cuts a heatmap into the predicted region and the rest:
#   fixed:0.5   the pixels >= 0.5 (or another number): our heatmaps are probabilities
#   top50       the upper half of the pixels: the usual rule of the field, for maps without a scale
#   adaptive    as many of the highest pixels as the ground truth has: every "w/ Adap." column.
#               It gives the size away, so it scores place and shape only.
#   sweep       the 19 thresholds 0.05 .. 0.95 at once: every score is a list of 19
# Paper [46]: it describes top50 and names no threshold for its own rows; the release prints all 19.
# We infer 0.5: Table 5's FPR is 0.50 for four earlier methods (top50), but lower for this one.
# Paper [48]: the tables contradict the paper's words in four places. --reading chooses:
#                    release (the evaluators)           paper (the words)
#   cIoU, IIoU, AP   IoU >= 0.5                         IoU "greater than 0.5"
#   LocAcc           IoU > 0.5                          "identical to cIoU": the same, > 0.5
#   w/ Adap.         K - 1 pixels, fewer among ties     "the top K pixels", exactly
#   AP, max-F1       some of the confidences            the confidences of "all samples"

def thresholds_for(heatmap, policy, ground_truth=None):
    """A policy's thresholds for a heatmap (H, W); 'adaptive' needs its ground truth. -> (T,)"""
    if policy == 'sweep':
        return SWEEP.to(heatmap.device)
    if policy not in ('top50', 'adaptive'):
        return heatmap.new_tensor([float(policy.removeprefix('fixed:'))])
    # Paper [49]: each map has its own median. The release's VGG-SS, Flickr and extended evaluators
    # take that of a batch's first map for the whole batch.
    # An empty ground truth, K = 0, has the median too, as in Senocak et al.'s code.
    K = int((ground_truth > 0).sum()) if policy == 'adaptive' else 0
    place = heatmap.numel() - K if K else heatmap.numel() // 2
    values = heatmap.flatten().cpu().numpy()            # partition: faster than sorting
    return heatmap.new_tensor([np.partition(values, place)[place]])


def overlap(heatmap, ground_truth, thresholds, strict=False):
    """How much of a heatmap, cut at T thresholds, lies inside and outside the ground truth.

    thresholds (T,): ascending, evenly spaced; strict: > instead of >=. -> inside (T,), the sum of
    the ground truth in the predicted region; outside (T,), its number of pixels without ground
    truth; the sum of the ground truth
    """
    x = heatmap.flatten()                                                   # (P,)
    g = ground_truth.flatten()                                              # (P,)
    compare = torch.gt if strict else torch.ge
    # Comparing straight into 0. and 1. is several times as fast as converting from bool.
    empty = torch.eq(g, 0, out=torch.empty_like(g))                         # (P,)
    T = len(thresholds)
    if T == 1:
        above = compare(x, thresholds, out=torch.empty_like(x))             # (P,)
        counts = torch.stack([above @ g, above @ empty])[:, None]           # (2, 1)
    else:
        # How many thresholds does a pixel pass? All below the nearest one, none above it. The
        # nearest is found by arithmetic, in a tenth of the time of torch.bucketize, then compared.
        steps = (T - 1) / (thresholds[-1] - thresholds[0])
        passed = ((x - thresholds[0]) * steps).round_().clamp_(0, T - 1)    # (P,) 0 .. T - 1
        nearest = thresholds.index_select(0, passed.int())                  # (P,)
        passed += compare(x, nearest, out=nearest)                          # (P,) 0 .. T
        # Two histograms of it: inside, weighted by the ground truth, and outside, each pixel once.
        place = passed.add_(empty, alpha=T + 1).long()                      # (P,) 0 .. 2 T + 1
        histogram = x.new_zeros(2 * (T + 1)).scatter_add_(0, place, g + empty)
        # A pixel that passes n thresholds counts at the first n: sum from the end, drop n = 0.
        counts = histogram.view(2, T + 1).flip(1).cumsum(1).flip(1)[:, 1:]  # (2, T)
    inside, outside = counts.cpu().double()
    return inside, outside, float(g.sum())


# ---- What the metrics share ----------------------------------------------------------------------
def mean(values, scale=1):
    """scale * mean of a list without its NaN; NaN if none is left. Rows of 19 give 19 means."""
    if values and isinstance(values[0], list):
        return [mean(list(column), scale) for column in zip(*values)]
    values = [value for value in values if not math.isnan(value)]
    # fsum rounds once, at the end, so that the order of the samples does not matter.
    return scale * (math.fsum(values) / len(values)) if values else math.nan


class Streaming:
    """What all metrics share: update() adds a batch and keeps some numbers of each sample.

    needs: the keys of a batch whose values update() takes after the heatmaps. kept: the lists that
    hold the numbers, self.iou and so on. A subclass has add(), which scores one sample, and
    compute(). len(): the samples seen.
    """
    needs = ()
    kept = ('iou',)
    # Paper [47]: the VGG-SS, extended-set, SLAVC and AVGN evaluators take the pixels >= the
    # threshold, the interactive and AVSBench ones > it. Table 2 is scored as Table 1.
    strict = False
    # Paper [50]: the IoU of an empty ground truth and an empty prediction. The VGG-SS evaluator
    # gets 0/0 = NaN, a failure even at the AUC's level of 0; the extended-set one gets 0.
    empty = 0.0
    graded = 0      # batches of maps that are not all 0 and 1; "w/ Adap." needs one, to rank pixels

    def __init__(self, threshold='fixed:0.5', reading='release'):
        self.threshold = threshold
        self.reading = reading
        for name in (*self.kept, 'ids'):        # ids: of the samples, where the caller adds them
            setattr(self, name, [])

    def __len__(self):
        return len(getattr(self, self.kept[0]))

    def update(self, heatmaps, ground_truth, *more):
        """heatmaps in 0..1, ground_truth: (B, H, W) each; more: B values of each further need."""
        if heatmaps.dim() < 3 or heatmaps.shape != ground_truth.shape:
            raise ValueError('heatmaps and ground truth must both be (B, H, W), not '
                             f'{tuple(heatmaps.shape)} and {tuple(ground_truth.shape)}')
        heatmaps = heatmaps.detach().float()
        ground_truth = ground_truth.to(heatmaps.device).float()
        if not (heatmaps.sum() + ground_truth.sum()).isfinite():
            raise ValueError('a heatmap or a ground truth holds NaN or infinity')
        self.graded += bool(((heatmaps > 0) & (heatmaps < 1)).any())
        for sample in zip(heatmaps, ground_truth, *more):
            self.add(*sample)

    def overlap_under(self, policy, heatmap, ground_truth):
        """The overlap of a heatmap (H, W) that is cut by a policy."""
        if policy == 'adaptive' and self.reading == 'paper':
            # Exactly the K highest pixels; of equal ones the first
            order = heatmap.flatten().argsort(descending=True, stable=True)         # (P,)
            highest = order[:int((ground_truth > 0).sum())]                         # (K,)
            heatmap = heatmap.new_zeros(len(order)).index_fill_(0, highest, 1)      # (P,)
            policy = 'fixed:0.5'
        cut = thresholds_for(heatmap, policy, ground_truth)                         # (T,)
        return overlap(heatmap, ground_truth, cut, self.strict or policy == 'adaptive')

    def score(self, policy, heatmap, ground_truth):
        """The IoU of a heatmap (H, W) that is cut by a policy: a float, or for 'sweep' 19."""
        inside, outside, total = self.overlap_under(policy, heatmap, ground_truth)
        return (inside / (total + outside)).nan_to_num(self.empty).squeeze(0).tolist()

    def merge(self, other):
        """Add the samples of another metric of the same class."""
        for name in (*self.kept, 'ids'):
            getattr(self, name).extend(getattr(other, name))
        self.graded += other.graded


# ---- Single sound source localization (Tables 1 and 2) and segmentation (Table 6) ----------------
def success_share(iou, level=0.5, strict=False):
    """cIoU: the share of samples with IoU >= level (strict: >), in per cent. Rows of 19 give 19."""
    iou = torch.as_tensor(iou, dtype=torch.float64)                         # (N,) or (N, 19)
    passed = iou > level if strict else iou >= level
    return (100 * (passed.sum(0).double() / len(iou))).tolist()


def area_under_success(iou):
    """AUC: the area, in per cent, under the share of samples with IoU >= t, t = 0, 0.05 .. 1."""
    shares = torch.tensor([success_share(iou, t) for t in AUC_POINTS.tolist()], dtype=torch.float64)
    return torch.trapezoid(shares.movedim(0, -1).contiguous(), AUC_POINTS).tolist()


class SingleSource(Streaming):
    """cIoU, AUC, cIoU_adap, AUC_adap. Boxes are 0 and 1, or a consensus map between."""
    needs = ('boxes',)
    kept = ('iou', 'iou_adaptive')

    def add(self, heatmap, boxes):
        self.iou.append(self.score(self.threshold, heatmap, boxes))
        self.iou_adaptive.append(self.score('adaptive', heatmap, boxes))

    def compute(self):
        scores = {}
        for suffix, iou in (('', self.iou), ('_adap', self.iou_adaptive)):
            scores[f'cIoU{suffix}'] = success_share(iou, strict=self.reading == 'paper')
            scores[f'AUC{suffix}'] = area_under_success(iou)
        return scores


def f_score(inside, outside, total):
    """An overlap -> F (T,) with beta^2 = 0.3; 0 where no right pixel is predicted."""
    precision = (inside / (inside + outside)).nan_to_num(0.0)
    recall = inside / total
    weighted = BETA_SQUARED * precision + recall
    return ((1 + BETA_SQUARED) * precision * recall / weighted).nan_to_num(0.0)


def mask_iou(inside, outside, total, pixels):
    """An overlap -> IoU, a float or 19; of an empty mask the share of pixels not predicted."""
    iou = inside / (total + outside) if total else (pixels - outside) / pixels
    return iou.squeeze(0).tolist()


class Segmentation(Streaming):
    """mIoU, F, mIoU_adap, F_adap; `.area`: the share of pixels predicted.

    Non-zero pixels of a mask are the object. F needs no policy: it is the mean over the samples
    with an object, at the best of 255 thresholds.
    Paper [51]: an empty mask (MS3 has some) scores the share of pixels not predicted, as released.
    Paper [52]: an average over samples. The release averages means of batches, AVSBench maxima.
    Paper [53]: "w/ Adap." has no public code for segmentation; here it is the same top-K mask.
    """
    needs = ('mask',)
    kept = ('iou', 'iou_adaptive', 'area', 'f_adaptive', 'f_curves')
    strict = True                           # as AVSBench's evaluator

    def add(self, heatmap, mask):
        mask = (mask > 0).float()
        inside, outside, total = self.overlap_under(self.threshold, heatmap, mask)
        self.iou.append(mask_iou(inside, outside, total, mask.numel()))
        self.area.append(((inside + outside) / mask.numel()).squeeze(0).tolist())
        inside, outside, total = self.overlap_under('adaptive', heatmap, mask)
        self.iou_adaptive.append(mask_iou(inside, outside, total, mask.numel()))
        if total:
            self.f_adaptive.append(float(f_score(inside, outside, total)))
            f = f_score(*overlap(heatmap, mask, F_THRESHOLDS.to(mask.device)))      # (255,)
            # In units of 2^-40: the sum of floats would depend on the order of the samples.
            self.f_curves.append((f * 2**40).round().long().cpu())

    def f_curve(self):
        """Mean F at each of the 255 thresholds, in per cent. (255,)"""
        total = sum(self.f_curves, torch.zeros(len(F_THRESHOLDS), dtype=torch.int64))   # (255,)
        return 100 * total.double() / 2**40 / len(self.f_curves)

    def compute(self):
        return {'mIoU': mean(self.iou, 100), 'mIoU_adap': mean(self.iou_adaptive, 100),
                'F': float(self.f_curve().max()), 'F_adap': mean(self.f_adaptive, 100)}


# ---- Robustness: the extended sets (Tables 3 and 4, Figure 7) and AVSBench-Robust (Table 5) ------
def top_quarter_mean(heatmaps):
    """SLAVC's confidence, for other methods' maps: the mean of each map's highest quarter. (B,)"""
    flat = heatmaps.float().flatten(1)                                      # (B, P)
    return flat.topk(flat.shape[1] // 4, dim=1).values.mean(1)


class Extended(Streaming):
    """AP, max_F1 with precision and recall there, LocAcc.

    At a level c, the samples with confidence >= c are detections. One is right if something sounds
    in the frame (condition 'sounding'; its boxes may be clipped to nothing) and IoU >= 0.5 (by the
    paper's words >), else wrong; a sounding sample below c is a miss. LocAcc is over sounding ones.
    Paper [54]: the evaluator behind Tables 3 and 4 computes AP without the highest confidence, from
    every (N // 200)-th other and without the curve's first rectangle; max-F1 from every (N // 10)-
    th, rounded to 0.1. reading='paper' takes all confidences.
    Paper [55]: a detection in the wrong place is a false positive, but not a miss as well, or Table
    4's recall could not exceed its LocAcc. AP_textbook (reading='paper') counts it as both.
    """
    needs = ('boxes', 'confidence', 'condition')
    kept = ('iou', 'confidence', 'sounding')

    def add(self, heatmap, boxes, confidence, condition):
        self.iou.append(self.score(self.threshold, heatmap, boxes))
        self.confidence.append(float(confidence))
        self.sounding.append(condition == 'sounding')

    def precision_recall(self, levels, textbook=False):
        """T confidences -> precision, recall (T,) there (Figure 7). textbook: see Extended."""
        levels = torch.as_tensor(levels, dtype=torch.float64)               # (T,)
        confidence, iou = torch.tensor([self.confidence, self.iou], dtype=torch.float64)    # (N,)
        sounding = torch.tensor(self.sounding, dtype=torch.bool)            # (N,)
        right = sounding & (iou > 0.5 if self.reading == 'paper' else iou >= 0.5)
        detected = confidence >= levels[:, None]                            # (T, N)
        hits = (detected & right).sum(1)                                    # (T,)
        found = (detected & sounding).sum(1)                                # (T,)
        misses = sounding.sum() - (hits if textbook else found)
        hits = hits.double()                    # a ratio of integer tensors would be float32
        precision = (hits / detected.sum(1)).nan_to_num(1.0)                # 0/0: 1
        recall = (hits / (hits + misses)).nan_to_num(1.0)
        return precision, recall

    def average_precision(self, textbook=False):
        """The area under the interpolated precision-recall curve, in per cent."""
        levels = sorted(self.confidence, reverse=True)
        if self.reading == 'release':
            levels = levels[1:][::max(1, len(levels) // 200)]
        precision, recall = self.precision_recall(levels, textbook)         # recall grows
        highest = precision.flip(0).cummax(0).values.flip(0)    # at this or higher recall
        start = recall.new_zeros(0 if self.reading == 'release' else 1)     # no first rectangle
        width = recall.diff(prepend=start)
        return 100 * float((highest[:len(width)] * width).sum())

    def f1_curve(self):
        """F1, precision, recall (T,) at the confidences that max-F1 is the maximum over."""
        levels = sorted(self.confidence)
        if self.reading == 'release':
            levels = levels[::max(1, len(levels) // 10)]
        precision, recall = self.precision_recall(levels)
        f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        return f1, precision, recall

    def compute(self):
        curves = torch.stack(self.f1_curve())                               # (3, T)
        max_f1, precision, recall = (100 * curves[:, curves[0].argmax()]).tolist()
        sounding = list(itertools.compress(self.iou, self.sounding))
        scores = {'AP': self.average_precision(), 'max_F1': round(max_f1, 1),
                  'precision': precision, 'recall': recall,
                  # Paper [56]: "identical to cIoU", but its evaluator takes IoU > 0.5, not >= 0.5.
                  'LocAcc': success_share(sounding, strict=True)}
        if self.reading == 'paper':
            scores |= {'AP_textbook': self.average_precision(textbook=True), 'max_F1': max_f1}
        return scores


class Robustness(Streaming):
    """mIoU and F of the positives; mIoU, F and FPR of each negative condition; G_mIoU, G_F, G_FPR.

    A negative sample keeps the mask of the object in sight, which now makes no sound: the lower the
    score, the better. FPR is the share of all pixels predicted. The global scores are over the
    conditions that have samples: global_score of mIoU and F, and the mean FPR.
    Paper [57]: F's thresholds begin at 0, so it is never below the score of predicting the whole
    frame: hence the 22.6 and 16.9 under every negative condition of Table 5.
    Paper [58]: in its rows of this method two G-FPR do not follow from the other columns; all
    G-mIoU and G-F do.
    """
    needs = ('mask', 'condition')

    def __init__(self, threshold='fixed:0.5', reading='release'):
        super().__init__(threshold, reading)
        self.conditions = {name: Segmentation(threshold, reading) for name in CONDITIONS}

    def add(self, heatmap, mask, condition):
        self.conditions[condition].add(heatmap, mask)
        self.iou.append(self.conditions[condition].iou[-1])

    def merge(self, other):
        super().merge(other)
        for name, part in self.conditions.items():
            part.merge(other.conditions[name])

    def compute(self):
        scores = {}
        for name, part in self.conditions.items():
            own = part.compute()
            scores |= {f'mIoU_{name}': own['mIoU'], f'F_{name}': own['F']}
            if name != 'positive':
                scores[f'FPR_{name}'] = mean(part.area)
        present = [name for name in CONDITIONS[1:] if self.conditions[name].iou]
        for kind in ('mIoU', 'F'):
            negative = mean([scores[f'{kind}_{name}'] for name in present])
            scores[f'G_{kind}'] = global_score(scores[f'{kind}_positive'], negative)
        return {**scores, 'G_FPR': mean([scores[f'FPR_{name}'] for name in present])}


def global_score(positive, negative):
    """Harmonic mean of the positive score and 100 - the negative one, in per cent. Lists: of 19."""
    positive = torch.tensor(positive, dtype=torch.float64)                  # () or (19,)
    clean = 100 - torch.tensor(negative, dtype=torch.float64)
    both = positive + clean
    return torch.where(both != 0, 2 * positive * clean / both, 0.0).tolist()


# ---- Interactive localization (Table 7) and mixtures (Table 8) -----------------------------------
class Interactive(SingleSource):
    """IIoU, IAUC, IIoU_adap, IAUC_adap: a frame succeeds if all of its sounds are localized.

    Samples of a frame are a group. Its IoU is that of its worst sample, so that it reaches a level
    if each of them does. A group of which fewer than group_size samples were seen is left out.
    Paper [59]: > the threshold, as in Senocak et al.'s code, which also stretches each map to 0..1.
    Paper [60]: VPO-MS has groups of a single sample; they count, as in that code.
    Paper [61]: one NaN (0/0) makes all four scores NaN in that code; here such a sample fails.
    """
    needs = ('boxes', 'group', 'group_size')
    kept = ('iou', 'iou_adaptive', 'groups')
    strict = True

    def add(self, heatmap, boxes, group, group_size):
        super().add(heatmap, boxes)
        self.groups.append((group, group_size))

    def worst(self, iou):
        """IoU of each sample (N floats or rows of 19) -> IoU of each group's worst sample."""
        seen = {}                               # {(group, its size): IoU of its samples}
        for group, value in zip(self.groups, iou):
            seen.setdefault(group, []).append(value)
        return [np.min(rows, 0).tolist() for (_, size), rows in seen.items() if len(rows) == size]

    def compute(self):
        frames = SingleSource(reading=self.reading)
        frames.iou = self.worst(self.iou)
        frames.iou_adaptive = self.worst(self.iou_adaptive)
        scores = frames.compute()               # cIoU becomes IIoU, AUC becomes IAUC
        return {f'I{name.removeprefix("c")}': value for name, value in scores.items()}


def pixel_ap(scores, truth):
    """AP of P pixels ranked by score, not interpolated; NaN without truth. Ties: one step."""
    ranked, order = scores.flatten().sort(descending=True)                  # (P,) each
    retrieved = ranked.unique_consecutive(return_counts=True)[1].cumsum(0)  # (S,) distinct scores
    hits = (truth.flatten() > 0)[order].cumsum(0)[retrieved - 1].cpu()      # (S,)
    precision = hits / retrieved.cpu().double()
    area = (precision * hits.diff(prepend=hits.new_zeros(1))).cumsum(0)[-1]         # adds in order
    return float(area / hits[-1])


class MultiSource(Streaming):
    """CAP, PIAP, CIoU@10, CIoU@30, CIoU@50, AUC. `.cap`, `.piap` per scene, `.iou` per source.
    `.pairings`: of each scene, the map that each source is scored with.

    A scene has k sources (k, H, W), non-zero where they are, and k predicted maps in any order.
    CAP: mean pixel AP over the sources, under the pairing of maps and sources that maximises it;
    CIoU and AUC take the same pairing. PIAP: pixel AP of the maximum of all maps against the union
    of all sources. A source without any pixel is left out.
    Paper [62]: CIoU averages over "all objects in the scene". Here that is the share of objects
    found; Hu et al. (2020) average a scene's IoUs first and compare that with the level.
    Paper [63]: no public code computes CAP. AVGN's code for PIAP swaps its arguments and ranks
    nothing: it takes the cut prediction for the truth and the ground truth for the score.
    """
    needs = ('sources',)
    kept = ('cap', 'piap', 'iou', 'pairings')

    def add(self, maps, sources):
        k = len(maps)
        sources = (sources > 0).float()
        ap = [pixel_ap(heat, truth) for heat, truth in itertools.product(maps, sources)]
        ap = torch.tensor(ap, dtype=torch.float64).view(k, k)               # of each map and source
        ways = torch.tensor(list(itertools.permutations(range(k))))         # (k!, k)
        scores = ap[ways, torch.arange(k)].nanmean(1)                       # (k!,)
        best = int(scores.nan_to_num(-1).argmax())
        self.cap.append(float(scores[best]))
        self.piap.append(pixel_ap(maps.amax(0), sources.amax(0)))
        self.pairings.append(ways[best].tolist())
        for heat, truth in zip(maps[ways[best]], sources):
            if truth.any():
                self.iou.append(self.score(self.threshold, heat, truth))

    def compute(self):
        # Paper [64]: AVGN's evaluator takes CIoU@k as IoU > k and its AUC as IoU >= t.
        ciou = {f'CIoU@{k}': success_share(self.iou, k / 100, strict=True) for k in (10, 30, 50)}
        return {'CAP': mean(self.cap, 100), 'PIAP': mean(self.piap, 100), **ciou,
                'AUC': area_under_success(self.iou)}

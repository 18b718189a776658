"""metrics.py against the released evaluators on 40 heatmaps (golden metrics.npz, metrics.json).

    pytest tests/test_golden_metrics.py                          # tests/golden
    ACL_GOLDEN=/some/directory pytest tests/test_golden_metrics.py

`replay` recomputes every number of metrics.json with the evaluator's own reading
(released_evaluators.py). Then each number or list is a test of its own, so that an entry that is
not replayed fails.
"""

import functools
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import metrics as M  # noqa: E402
import released_evaluators as released  # noqa: E402

GOLDEN = Path(os.environ.get('ACL_GOLDEN', ROOT / 'tests' / 'golden'))
pytestmark = pytest.mark.skipif(not (GOLDEN / 'metrics.json').exists(),
                                reason=f'no golden files in {GOLDEN}')


def expected():
    path = GOLDEN / 'metrics.json'
    return json.loads(path.read_text()) if path.exists() else {}


def leaves(node, path=()):
    """(path, value) of every number, string and list below a dict."""
    if not isinstance(node, dict):
        return [(path, node)]
    return [leaf for key, child in node.items() for leaf in leaves(child, path + (key,))]


LEAVES = [leaf for leaf in leaves({k: v for k, v in expected().items() if k != 'inputs'})]


# ------------------------------------------------------------------------------------------------
# The replay
# ------------------------------------------------------------------------------------------------

def batches(metric, size, *columns):
    """Feed a metric `size` samples at a time, as the evaluator did."""
    for start in range(0, len(columns[0]), size):
        metric.update(*[column[start:start + size] for column in columns])
    return metric


def policy(key):
    """'..thr0.5..', '..fixed0.5..' -> fixed:0.5; '..thrNone..', '..median..' -> top50."""
    number = re.search(r'(?:thr|fixed)(\d+\.?\d*)', key)
    return f'fixed:{number.group(1)}' if number else 'top50'


def batch_size(key):
    number = re.search(r'_bs(\d+)', key)
    return int(number.group(1)) if number else 1


def plain_mean(values):
    return float(np.mean(values))          # NaN spreads, as in the evaluators


def cuts(policy, heatmaps, truths):
    return [float(M.thresholds_for(heat, policy, truth)) for heat, truth in zip(heatmaps, truths)]


@functools.lru_cache
def read_inputs():
    """What the released evaluators were given, with what they said under `said`."""
    said, data = expected(), np.load(GOLDEN / 'metrics.npz')
    heatmaps = torch.from_numpy(data['heatmaps'].astype(np.float32))                # (N, H, W)
    N, H, W = heatmaps.shape
    bits = [np.unpackbits(data[key], axis=1)[:, :H * W] for key in ('gt_box', 'gt_mask')]
    boxes, masks = [torch.from_numpy(one).view(N, H, W).float() for one in bits]
    n_boxes = torch.tensor(said['inputs']['n_boxes'])
    return SimpleNamespace(
        said=said, data=data, heatmaps=heatmaps, boxes=boxes, masks=masks,
        confidence=torch.from_numpy(data['conf']), sounding=n_boxes > 0,            # (N,) each
        condition=['sounding' if n else 'silent' for n in n_boxes.tolist()],
        groups=[released.group_of(name) for name in said['inputs']['names']])


def subset(given, key):
    every = torch.ones(len(given.heatmaps), dtype=torch.bool)
    return given.sounding if key.startswith('sounding') else every


@functools.cache
def replay():
    given = read_inputs()
    return {'vggss': vggss(given), 'ssl_iiou': interactive(given), 'extended': extended(given),
            'extended_lists': extended_lists(given), 'avsbench': avsbench(given),
            **avsbench_original(given), **avgn_and_slavc(given)}


def extended_scores(metric, at=0.5):
    precision, recall = (float(value) for value in metric.precision_recall([at]))
    visible = [iou for iou, there in zip(metric.iou, metric.sounding) if there]
    f1 = metric.f1_curve()[0]
    scores = metric.compute()
    return {'AP': scores['AP'], 'MaxF1_rounded': scores['max_F1'],
            'LocAcc_gt0p5': scores['LocAcc'] / 100,
            'ef1_unrounded': 100 * float(f1.max()), 'ef1': 100 * float(f1.max()),
            'precision_at_conf_minus1000': float(metric.precision_recall([-1000.])[0]),
            'F1_list': ' '.join(f'{100 * float(value):.1f}' for value in f1),
            'AUC_visible': M.area_under_success(visible) / 100,
            'AUC': M.area_under_success(visible) / 100,
            'pr_at_conf0p5': [precision, recall], 'per_sample': metric.iou,
            'f1_at_50': 2 * precision * recall / ((precision + recall) or 1.0)}


def vggss(given):
    """VGG-SS: 0/0 is NaN, and without a threshold the first sample's median serves its batch."""
    ours = {}
    for key in given.said['vggss']:
        chosen = subset(given, key)
        metric = released.VGGSS(policy(key))
        batches(metric, batch_size(key), given.heatmaps[chosen], given.boxes[chosen])
        scores = metric.compute()
        ours[key] = {'cIoU_AP50': scores['cIoU'], 'AUC': scores['AUC'],
                     'mean_ciou': plain_mean(metric.iou), 'per_sample': metric.iou}
    return ours


def interactive(given):
    """Senocak et al.'s code: > the threshold, maps stretched first, NaN spreads over groups."""
    ours = {}
    for key in given.said['ssl_iiou']:
        chosen = subset(given, key)
        maps = released.min_max(given.heatmaps) if 'median' in key else given.heatmaps
        single = batches(released.AlignmentSingle(policy(key)), 7, maps[chosen],
                         given.boxes[chosen])
        names = [group for group, there in zip(given.groups, chosen) if there]
        sizes = [names.count(name) for name in names]
        grouped = released.AlignmentInteractive(policy(key))
        batches(grouped, 7, maps[chosen], given.boxes[chosen], names, sizes)
        ours[key] = {**single.compute(), **grouped.compute(),
                     'per_sample': single.iou, 'per_sample_adap': single.iou_adaptive,
                     'thr': cuts(policy(key), maps[chosen], given.boxes[chosen]),
                     'thr_adap': cuts('adaptive', maps[chosen], given.boxes[chosen]),
                     'n_groups': len(set(names))}
    return ours


def extended(given):
    ours = {}
    for key in given.said['extended']:
        metric = batches(released.ExtendedSets(policy(key)), batch_size(key),
                         given.heatmaps, given.boxes, given.confidence, given.condition)
        ours[key] = {**extended_scores(metric), 'area': given.boxes.sum((1, 2)).tolist()}
    return ours


def extended_lists(given):
    ours = {}
    for key in given.said['extended_lists']:
        metric = M.Extended()
        if key == 'perfect10_AP':
            metric.iou, metric.sounding = [1.0] * 10, [True] * 10
            metric.confidence = [i / 10 for i in range(10)]
            ours[key] = metric.compute()['AP']
            continue
        metric.iou = given.data[f'list{key}_ciou'].tolist()
        metric.confidence = given.data[f'list{key}_conf'].tolist()
        metric.sounding = (given.data[f'list{key}_bb'] > 0).tolist()
        ours[key] = extended_scores(metric)
    return ours


def avsbench(given):
    """AVSBench as the release scores it."""
    ours = {}
    for key in given.said['avsbench']:
        metric = batches(M.Segmentation(policy(key)), batch_size(key), given.heatmaps, given.masks)
        parts = released.batch_scores(policy(key), given.heatmaps, given.masks, batch_size(key))
        ours[key] = {'mIoU': M.mean([part['mIoU'] for part in parts]),
                     'Fmeasure': metric.compute()['F'], 'n_F': len(metric.f_adaptive),
                     'per_batch_miou': [part['mIoU'] / 100 for part in parts],
                     'argmax_thr_index': int(metric.f_curve().argmax())}
    return ours


def avsbench_original(given):
    """AVSBench as its own repository scores it: the sigmoid of logits first."""
    key = next(key for key in given.said if key.startswith('avsbench_original'))
    probabilities = torch.sigmoid(8 * (given.heatmaps - 0.5))
    parts = released.batch_scores('fixed:0.5', probabilities, given.masks, batch_size(key))
    per_batch = {name: [part[name] / 100 for part in parts] for name in ('mIoU', 'F')}
    return {key: {'mIoU': M.mean(per_batch['mIoU']), 'F_mean_of_batch_max': M.mean(per_batch['F']),
                 'per_batch_miou': per_batch['mIoU'], 'per_batch_F': per_batch['F']}}


def avgn_and_slavc(given):
    """AVGN and SLAVC: SLAVC's confidence, 0/0 is NaN, and AVGN's PIAP."""
    ours = {}
    for key in [key for key in given.said if key.startswith(('avgn', 'slavc'))]:
        top_quarter = M.top_quarter_mean(given.heatmaps)
        metric = batches(released.SLAVC(policy(key)), 6, given.heatmaps, given.boxes,
                         top_quarter, given.condition)
        scores = extended_scores(metric)
        piap = [released.avgn_piap(*pair, policy(key)) for pair in zip(given.heatmaps, given.boxes)]
        cut = [released.binarise(heat, policy(key)).float() for heat in given.heatmaps]
        ours[key] = {'AP50': scores['AP'] / 100, 'f1_at_50': scores['f1_at_50'],
                     'LocAcc_gt0p5': scores['LocAcc_gt0p5'], 'per_sample_ciou': metric.iou,
                     'slavc_conf_top_quarter_mean': top_quarter.tolist(),
                     'piap_per_sample_official': piap, 'piap_mean_official': plain_mean(piap),
                     'pixel_AP_correct_order_heatmap_score': list(
                         map(M.pixel_ap, given.heatmaps, given.boxes)),
                     'pixel_AP_correct_order_binary_score': list(map(M.pixel_ap, cut, given.boxes))}
    return ours


# ------------------------------------------------------------------------------------------------
# The comparison
# ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('path, value', LEAVES, ids=['/'.join(path) for path, _ in LEAVES])
def test_entry(path, value):
    ours = functools.reduce(lambda node, key: node[key], path, replay())
    if isinstance(value, str):
        assert ours == value
        return
    # None stands for NaN in metrics.json.
    theirs = np.array(value if isinstance(value, list) else [value], dtype=np.float64)
    ours = np.array(ours if isinstance(ours, list) else [ours], dtype=np.float64)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12, equal_nan=True)


def test_multi_source_in_proper_order_is_the_mean_over_samples_with_ground_truth():
    """PIAP of one map per scene is the golden pixel AP, over the samples with a ground truth."""
    said, data = expected(), np.load(GOLDEN / 'metrics.npz')
    key = next(key for key in said if key.startswith('avgn'))
    per_sample = said[key]['pixel_AP_correct_order_heatmap_score']
    heatmaps = torch.from_numpy(data['heatmaps'].astype(np.float32))[:, None]       # (N, 1, H, W)
    bits = np.unpackbits(data['gt_box'], axis=1)[:, :heatmaps[0].numel()]
    boxes = torch.from_numpy(bits).view_as(heatmaps)
    scores = batches(M.MultiSource(), 9, heatmaps, boxes).compute()
    known = [v for v in per_sample if v is not None]
    assert scores['PIAP'] == pytest.approx(100 * np.mean(known), rel=1e-6)
    assert scores['CAP'] == scores['PIAP']  # with one source they coincide

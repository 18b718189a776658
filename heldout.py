"""Scores on held-out scenes before and after a training. The paper has no such scores.

train.py writes them into summary.json. They are computed by evaluate.py's `score`, as all tables.
"""

import functools
import math
from dataclasses import replace

from tqdm import tqdm

from data import Benchmark
from evaluate import readable, score
from figures.report import sheet_of_samples
from figures.scores import without_nan
from figures.tables import table
from localise import embed_names, localise
from metrics import Segmentation, SingleSource, Streaming, mean
from model import PRESETS

ROWS = ('ours', 'oracle', 'ceiling')    # ceiling: the ground-truth masks as heatmaps
PRINTED = {     # {key of summary.json: its name in table_of}
    'cIoU': 'cIoU on boxes', 'AUC': 'AUC on boxes', 'mIoU': 'mIoU, all scenes',
    'mIoU_multi': 'mIoU, two sounding objects', 'both_right': 'both sounds right',
    'area_silence': 'area under silence', 'area_noise': 'area under noise'}


class MaskIoU(Segmentation):
    """mIoU. Segmentation would compute F too, whose 255 thresholds cost a fifth of the time."""

    def add(self, heatmap, mask):
        self.iou.append(self.score(self.threshold, heatmap, (mask > 0).float()))

    def compute(self):
        return {'mIoU': mean(self.iou, 100)}


class BothRight(Streaming):
    """both_right: the share, in per cent, of frames in which both sounds are localised correctly.

    Under each of a frame's two sounds, the mean heat on the sound's own object must exceed that on
    the other object; no threshold.
    """
    needs = ('mask', 'group')
    kept = ('right',)

    def __init__(self):
        super().__init__()
        self.waiting = {}       # {group: (heatmap, mask)} of frames of which one sample was seen

    def add(self, heatmap, mask, group):
        if group not in self.waiting:
            self.waiting[group] = heatmap, mask
            return
        other_heatmap, other_mask = self.waiting.pop(group)
        mine = heatmap[mask > 0.5].mean() > heatmap[other_mask > 0.5].mean()
        theirs = other_heatmap[other_mask > 0.5].mean() > other_heatmap[mask > 0.5].mean()
        self.right.append(100.0 * bool(mine and theirs))

    def compute(self):
        return {'both_right': mean(self.right)}


class Areas(Streaming):
    """area_silence, area_noise: the share of a frame's pixels above 0.5, averaged over frames."""
    needs = ('boxes', 'condition')
    kept = ('silence', 'noise')

    def add(self, heatmap, boxes, condition):
        area = float((heatmap > 0.5).float().mean())
        if condition == 'silence':
            self.silence.append(area)
        elif condition == 'noise':
            self.noise.append(area)

    def compute(self):
        return {'area_silence': mean(self.silence), 'area_noise': mean(self.noise)}


def held_out(model, tokenizer, preset, data_root, rows=ROWS, batch_size=32):
    """Score VGG-SS and IS4. -> {row: {score: value}} for rows, {what was scored: number of samples}

    cIoU, AUC: VGG-SS, boxes. mIoU: every sample with a mask (VGG-SS has them in the miniature
    only). mIoU_multi, both_right: IS4, whose frames hold two sounding objects. area_silence,
    area_noise: VGG-SS's frames under silence and noise, row 'ours' only. In per cent; areas are
    fractions. A score without samples is None. Prints what is unreadable, and once what is missing.
    """
    config = PRESETS[preset]
    vggss = {'box': {row: SingleSource() for row in rows},
             'mask': {row: MaskIoU() for row in rows}, 'area': {'ours': Areas()}}
    is4 = {'mask': {row: MaskIoU() for row in rows}, 'pair': {row: BothRight() for row in rows}}
    for name, metrics in (('vggss', vggss), ('is4', is4)):
        try:
            dataset = Benchmark(name, data_root, config.image_size, config.seconds)
        except FileNotFoundError as error:
            say(f'held-out scores without {name}: {error}')
            continue
        if name == 'vggss':                 # each frame also under silence and under noise
            dataset.samples += [replace(s, condition=condition, number=number)
                                for condition in ('silence', 'noise')
                                for number, s in enumerate(dataset.samples)]
        words = embed_names(model, tokenizer, dataset) if 'oracle' in rows else None
        localiser = functools.partial(localise_with_ceiling, model, words=words, cache={})
        batches = tqdm(dataset.batches(batch_size), f'held-out scores, {name}', leave=False,
                       unit=' batches')
        score(dataset, batches, metrics, localiser)
        n = dataset.expected - len(dataset.missing) - len(set(dataset.unreadable))
        if n < dataset.expected:
            say(f'{name}: scored {n} of {dataset.expected} samples')
    if lone := is4['pair']['ours'].waiting:
        say(f'is4: {len(lone)} frames lack their second sound')
    return summarised(vggss, is4)


@functools.cache
def say(sentence):
    """Print a sentence once: a training calls held_out twice."""
    print(sentence)


def localise_with_ceiling(model, samples, words, cache):
    """localise's rows, and 'ceiling'. words, cache: see localise. -> {row: B maps (224, 224)}"""
    return {**localise(model, samples, words, cache), 'ceiling': [s['mask'] for s in samples]}


def summarised(vggss, is4):
    """held_out's metrics -> {row: scores} of the rows that have any, {what: sample count}"""
    scores = {}
    for row, box in vggss['box'].items():
        in_boxes = box.compute()
        multi = is4['mask'][row].iou
        areas = vggss['area'].get(row, Areas())
        values = {'cIoU': in_boxes['cIoU'], 'AUC': in_boxes['AUC'],
                  'mIoU': mean(vggss['mask'][row].iou + multi, 100),
                  'mIoU_multi': mean(multi, 100),
                  **is4['pair'][row].compute(), **areas.compute()}
        if not all(map(math.isnan, values.values())):
            scores[row] = without_nan(values)
    multi = len(is4['mask']['ours'])
    return scores, {'boxes': len(vggss['box']['ours']), 'masks': len(vggss['mask']['ours']) + multi,
                    'multi': multi, 'pairs': len(is4['pair']['ours']),
                    'silence': len(vggss['area']['ours'])}


def table_of(columns):
    """The table that train.py prints, in per cent. columns: {name: scores, or None} -> text"""
    rows = []
    for name, heading in PRINTED.items():
        factor = 100 if name.startswith('area') else 1      # areas are fractions
        values = [(scores or {}).get(name) for scores in columns.values()]
        rows.append([heading, *(value and value * factor for value in values)])
    names = ['perfect masks' if name == 'ceiling' else name for name in columns]
    return table(rows, ['%', *names])


def before_after_sheet(untrained, trained, tokenizer, preset, data_root, path, frames=6):
    """The same IS4 frames untrained, trained and by the oracle, in the manner of Figure 11."""
    config = PRESETS[preset]
    try:
        dataset = Benchmark('is4', data_root, config.image_size, config.seconds, 2 * frames)
    except FileNotFoundError:
        return                                              # held_out has printed why
    order = sum(dataset.batches(1), [])     # a frame under both of its sounds, one after the other
    samples = readable(dataset, [dataset[i] for i in order])
    if samples:
        before = localise(untrained, samples)['ours']
        after = localise(trained, samples, embed_names(trained, tokenizer, dataset))
        maps = zip(before, after['ours'], after['oracle'])
        columns = ['frame', 'sounding object', 'untrained', 'trained', 'text oracle']
        sheet_of_samples(path, samples, maps, columns, [s['label'] or s['id'] for s in samples])

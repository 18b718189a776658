"""Fourteen benchmarks of a few samples and a model whose maps are known: scores computed by hand.

A frame is 16 units of 14 columns; ground truths and maps are constant down each column, so that
an IoU is a fraction of units. A sample's box is units 0 to 7, its mask units 0 to 3, both rolled by
its shift, and so are its maps. Units inside box | mask | in all:

    map     at 0.5      at 0.39     upper half, >=, >       adaptive: box, mask
    good    7 | 4 | 10  8 | 4 | 11  5 | 4 | 8, 5 | 4 | 7    5 of 7, 3 of 3
    faint   none        4 | 3 | 4   as good                 as good
    bad     3 | 0 | 10  3 | 0 | 11  3 | 0 | 8, 2 | 0 | 7    2 of 7, 0 of 3
    full    8 | 4 | 16  as at 0.5   all, none               none
"""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data
import evaluate
from benchmarks.lists import BenchmarkSample
from figures import report

TASKS = {task: tuple(metrics) for task, metrics in evaluate.TASKS.items()}      # benchmarks
UNIT = 14
GOOD = torch.tensor([.96, .91, .86, .66, .81, .56, .53, .41,
                     .31, .76, .71, .61, .26, .21, .11, .06])
KINDS = {'good': GOOD, 'faint': GOOD / 2, 'bad': GOOD.flip(0), 'full': torch.full((16,), .9)}
SHIFTS = {'a_1': 0, 'a_2': 4, 'b_1': 8, 'c_1': 2, 'd_1': 6}
NAMES = {'a_1': 'dog', 'a_2': 'cat', 'b_1': 'cow', 'c_1': 'dog'}
OURS = {'a_1': 'good', 'a_2': 'faint', 'b_1': 'bad', 'c_1': 'good'}
ORACLE = {'a_1': 'good', 'a_2': 'good', 'b_1': 'good', 'c_1': 'faint'}
ROBUST = {'positive': ('good', 'good'), 'silence': ('good', 'faint'),
          'noise': ('full', 'bad'), 'offscreen': ('faint', 'faint')}            # of a_1 and b_1
EXTENDED = {'a_1': ('good', 0.9), 'a_2': ('faint', 0.3), 'b_1': ('full', 0.8),  # map, confidence
            'c_1': ('good', 0.7), 'd_1': ('bad', 0.5)}
SILENT = ('c_1', 'd_1')
# Of two mixtures: the units of each source, and the two maps as {units: value}, a_1's crosswise. In
# b_1 both maps are a little warm beside the sources: less than their maximum, more than the mean.
MIXED = {'a_1': ([(2, 6), (16, 24)], [{(16, 24): .9}, {(2, 6): .8, (6, 10): .9}]),
         'b_1': ([(0, 10), (16, 26)], [{(0, 1): .9, (28, 30): .46}, {(16, 19): .9, (28, 30): .46}])}
MIXED_NAMES = {'a_1': ['dog', 'cat'], 'b_1': ['cow', 'hen']}
WITHOUT_MASKS = ('vggss', 'flickr')
WITHOUT_NAMES = ('flickr', 'ade20k')


def columns(levels):
    """(units,) -> (224, 14 * units)"""
    return levels.repeat_interleave(UNIT).expand(224, -1).clone()


def spread(levels):
    """{(start, stop): value} -> two frames' units (32,)"""
    row = torch.zeros(32)
    for (start, stop), value in levels.items():
        row[start:stop] = value
    return row


def known_kind(sample_id, who='ours'):
    """Which of KINDS is the map of a sample."""
    benchmark, name = sample_id.split('.')
    if benchmark.startswith('robust'):
        return ROBUST[name[4:] or 'positive'][name.startswith('b')]
    if benchmark.startswith('ext_'):
        return EXTENDED[name][0]
    of_oracle = (who == 'oracle') != (benchmark == 'vpo_ms')    # vpo_ms is not a copy of is4
    return (ORACLE if of_oracle else OURS)[name]


def known_map(sample_id, who='ours'):
    """The map of a sample. (224, 224), or (2, 224, 448) for a mixture."""
    benchmark, name = sample_id.split('.')
    if benchmark.startswith('vgg_'):
        return torch.stack([columns(spread(levels)) for levels in MIXED[name][1]])
    return columns(KINDS[known_kind(sample_id, who)].roll(SHIFTS[name[:3]]))


def known_truth(sample_id, what):
    """'boxes' or 'mask' of a sample (224, 224), or the 'sources' of a mixture (2, 224, 448)."""
    name = sample_id.split('.')[1]
    if what == 'sources':
        return torch.stack([columns(spread({units: 1.0})) for units in MIXED[name][0]])
    row = torch.zeros(16)
    row[:8 if what == 'boxes' else 4] = 1
    return columns(row.roll(SHIFTS[name[:3]]))


# ------------------------------------------------------------------------------------------------
# The files and lists
# ------------------------------------------------------------------------------------------------

def box(start, stop):
    return [UNIT * start, 0, UNIT * stop, 224]


def sample_of(folder, benchmark, name, **more):
    own = name[:3]
    fields = {'label': NAMES.get(own), 'boxes': [box(SHIFTS[own], SHIFTS[own] + 8)],
              'masks': [folder / f'mask_{own}.png'], 'group': f'{benchmark}.{name[0]}', **more}
    return BenchmarkSample(f'{benchmark}.{name}', [folder / f'{own}.png'],
                           [folder / f'{own}.wav'], unit=224, **fields)


def plain(folder, benchmark):
    without = {}
    if benchmark in WITHOUT_MASKS:
        without['masks'] = []
    if benchmark in WITHOUT_NAMES:
        without['label'] = None
    return [sample_of(folder, benchmark, name, **without) for name in NAMES]


def robust(folder, benchmark):
    listed = []
    for condition in ROBUST:
        for name in ('a_1', 'b_1'):
            own = name if condition == 'positive' else f'{name}_{condition}'
            listed.append(sample_of(folder, benchmark, own, condition=condition,
                                    group=f'{benchmark}.{name}'))
    return listed


def extended(folder, benchmark):
    listed = []
    for name in EXTENDED:
        more = {'condition': 'silent', 'boxes': []} if name in SILENT else {'condition': 'sounding'}
        listed.append(sample_of(folder, benchmark, name, masks=[], group=f'{benchmark}.{name}',
                                **more))
    return listed


def mixtures(folder, benchmark):
    listed = []
    for name, (units, _) in MIXED.items():
        boxes = [[box(start % 16, (stop - 1) % 16 + 1)] for start, stop in units]
        one = sample_of(folder, benchmark, name, label=MIXED_NAMES[name], masks=[], boxes=boxes)
        one.images = 2 * one.images
        one.sounds = 2 * one.sounds
        listed.append(one)
    return listed


def build(folder, monkeypatch):
    """Write the files and let data.py's BENCHMARKS list them, whatever root it is given."""
    for number, name in enumerate(SHIFTS, 1):
        colour = (40 * number, 10, 255 - 40 * number)
        mask = known_truth(f'is4.{name}', 'mask')
        Image.new('RGB', (32, 32), colour).save(folder / f'{name}.png')
        Image.fromarray((mask * 255).byte().numpy()).save(folder / f'mask_{name}.png')
        soundfile.write(folder / f'{name}.wav', np.full(32000, number / 10), 16000)
    makers = {'robust': robust, 'ext': extended, 'vgg': mixtures}
    for name in data.BENCHMARKS:
        make = makers.get(name.partition('_')[0], plain)
        monkeypatch.setitem(data.BENCHMARKS, name,
                            lambda root, name=name, make=make: make(folder, name))


# ------------------------------------------------------------------------------------------------
# The model and the run
# ------------------------------------------------------------------------------------------------

def code(name):
    """What stands for the text embedding of a class name. (1, 2)"""
    return torch.tensor([[float(len(name)), float(sum(map(ord, name)))]])


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """The maps are small: a second thread costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class KnownModel:
    """In place of SoundLocalizer."""

    device = None

    def to(self, device):
        self.device = device
        return self

    def embed_text(self, tokenizer, names):
        assert tokenizer == 'the tokenizer'
        return torch.cat([code(name) for name in names])


class Run:
    """evaluate.py in this process, on the known world; keeps what reaches each part.

    batches: of each, {'ids', 'image', 'wav'} as lists, and what else was asked for.
    """

    def __init__(self, monkeypatch, folder, saved=None):
        self.loaded = []
        self.checkpoints = []
        self.batches = []
        self.roots = []
        self.devices = []
        self.sheets = {}
        self.reports = []
        self.model = KnownModel()
        self.saved = {'preset': 'miniature', 'variant': 'av'} if saved is None else saved
        self.benchmark = evaluate.Benchmark
        build(folder, monkeypatch)
        for name, own in (('read_checkpoint', self.read_checkpoint), ('localise', self.localise),
                          ('load_model', self.load_model), ('Benchmark', self.open_benchmark),
                          ('localise_sources', self.localise_sources),
                          ('start_processes', self.start_processes)):
            monkeypatch.setattr(evaluate, name, own)
        monkeypatch.setattr(report, 'example_sheet', self.example_sheet)
        monkeypatch.setattr(report, 'report', lambda *given: self.reports.append(given))

    def start_processes(self, device):
        self.devices.append(device)
        return torch.device('meta')

    def read_checkpoint(self, path):
        self.checkpoints.append(str(path))
        return self.saved

    def load_model(self, preset, checkpoint=None, prompt=None, **paths):
        self.loaded.append({'preset': preset, 'checkpoint': checkpoint and str(checkpoint),
                            'prompt': prompt, 'drawn': torch.rand(1).item(), **paths})
        return self.model, 'the tokenizer'

    def open_benchmark(self, name, root, *rest):
        self.roots.append((name, str(root), *rest))
        return self.benchmark(name, root, *rest)

    def note(self, model, samples, **asked):
        assert model is self.model
        columns = {name: [s[name] for s in samples] for name in ('image', 'wav')}
        self.batches.append({'ids': [s['id'] for s in samples], **columns, **asked})

    def localise(self, model, samples, words=None, cache=None, with_confidence=False):
        self.note(model, samples, words=words, cache=cache, with_confidence=with_confidence)
        oracle = []
        for s in samples:
            own = (words or {}).get(s['label'])
            assert own is None or torch.equal(own, code(s['label'])[0])
            oracle.append(None if own is None else known_map(s['id'], 'oracle'))
            if with_confidence:
                s['confidence'] = {'ours': EXTENDED[s['id'].split('.')[1]][1]}
        return {'ours': [known_map(s['id']) for s in samples], 'oracle': oracle}

    def localise_sources(self, model, samples, classes, cache=None, names=None):
        self.note(model, samples, classes=classes, names=names)
        rows = ('ours', *evaluate.MIXTURE_ROWS) if names else ('ours',)
        return {row: [known_map(s['id']) for s in samples] for row in rows}

    def example_sheet(self, task, benchmark, examples, path):
        self.sheets[task, benchmark] = examples, path

    def __call__(self, *arguments, root='given'):
        given = [str(argument) for argument in arguments] + (['--data-root', root] if root else [])
        return evaluate.evaluate(evaluate.parse_args(given))

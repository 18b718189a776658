"""Scores on held-out scenes, each column by hand: what is heard, what it is compared with."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
import heldout
import model as model_file
from benchmarks.lists import BenchmarkSample
from conftest import ROOT
from localise import localise
from figures import report
from heldout import BothRight
from tiny import SIZE, tiny        # noqa: F401


def area(top, bottom, left=0, right=224, inside=1.0, outside=0.0):
    """(224, 224) with a rectangle of `inside`."""
    filled = torch.full((224, 224), outside)
    filled[top:bottom, left:right] = inside
    return filled


class Scenes:
    """Stands for a Benchmark of these scenes. A sound is filled with the condition's number."""

    batches = data.Benchmark.batches

    def __init__(self, name, scenes):
        self.name, self.scenes, self.unreadable, self.missing = name, scenes, [], []
        self.expected = len(scenes)
        self.samples = [BenchmarkSample(f'{name}{k}', [Path(f'{one["group"]}.png')], [],
                                        one['label'], None, group=one['group'])
                        for k, one in enumerate(scenes)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        s = self.samples[index]
        wav = torch.full((50,), float(('positive', 'silence', 'noise').index(s.condition)))
        return {'id': s.id, 'image': torch.zeros(3, 2, 2), 'wav': wav, 'condition': s.condition,
                **self.scenes[int(s.id[-1])]}


def scene(label, group, boxes, mask):
    return {'label': label, 'group': group, 'boxes': boxes, 'mask': mask}


BOX = area(0, 100)
LEFT = area(0, 224, 0, 50)              # the two objects of a frame
RIGHT = area(0, 224, 150, 200)
SCENES = {
    'vggss': [scene('dog', 'a', BOX, area(0, 50)), scene('cat', 'b', BOX, area(0, 100)),
              scene('owl', 'c', BOX, None)],
    'is4': [scene('dog', 'x', LEFT, LEFT), scene('cat', 'x', RIGHT, RIGHT),
            scene('dog', 'y', LEFT, LEFT), scene('cat', 'y', RIGHT, RIGHT)]}
OURS = {    # IoU with the boxes 1, 0.5 (which counts) and 0; with the masks 0.5, 0.5, 1, 1, 0, 0.5
    'vggss0': area(0, 100, inside=0.6), 'vggss1': area(0, 50, inside=0.9, outside=0.49),
    'vggss2': area(150, 200), 'is40': LEFT, 'is41': RIGHT, 'is42': RIGHT * 0.7,
    'is43': area(0, 224, 150, 175)}
ORACLE = {  # 0.8 of the last box; of frame y, masks 0.5 and 0, but each sound on its own object
    **OURS, 'vggss2': area(0, 80), 'is42': LEFT * 0.8 + RIGHT * 0.7,
    'is43': LEFT * 0.3 + RIGHT * 0.4}


@pytest.fixture
def heard(monkeypatch):
    """SCENES and these heatmaps in place of benchmarks and model. -> [(ids, conditions) a batch]"""
    heldout.say.cache_clear()
    asked = []
    of_sounds = {'silence': area(0, 56, outside=0.5), 'noise': area(0, 112, inside=0.51)}

    def fake(model, samples, words, known):
        asked.append(([s['id'] for s in samples], [s['condition'] for s in samples]))
        ours = [of_sounds.get(s['condition'], OURS[s['id']]) for s in samples]
        oracle = [ORACLE[s['id']] if s['label'] and s['condition'] == 'positive' else None
                  for s in samples]
        return {'ours': ours, 'oracle': oracle}

    monkeypatch.setattr(heldout, 'localise', fake)
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {})
    monkeypatch.setattr(heldout, 'Benchmark', lambda name, *a: Scenes(name, SCENES[name]))
    return asked


def held_out(batch_size=32):
    return heldout.held_out(None, None, 'miniature', 'root', batch_size=batch_size)


@pytest.mark.parametrize('batch_size', [1, 32])
def test_every_column_by_hand(heard, capsys, batch_size):
    scores, counts = held_out(batch_size)
    # AUC: shares of the samples at or above 0, 0.05 .. 1, by trapezoids
    assert scores['ours'] == pytest.approx({
        'cIoU': 200 / 3, 'AUC': 5 * ((1 + 2 / 3) / 2 + 9 * 2 / 3 + (2 / 3 + 1 / 3) / 2 + 9 / 3),
        'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0 + 0.5) / 6, 'mIoU_multi': 100 * (1 + 1 + 0 + 0.5) / 4,
        'both_right': 50.0, 'area_silence': 0.25, 'area_noise': 0.5})
    assert scores['oracle'] == pytest.approx({
        'cIoU': 100.0, 'AUC': 5 * (10 + (1 + 2 / 3) / 2 + 5 * 2 / 3 + 0.5 + 3 / 3),
        'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0.5 + 0) / 6, 'mIoU_multi': 100 * (1 + 1 + 0.5 + 0) / 4,
        'both_right': 100.0, 'area_silence': None, 'area_noise': None})
    # perfect masks against the boxes of the two samples of VGG-SS that have a mask: 0.5 and 1
    assert scores['ceiling'] == {
        'cIoU': 100.0, 'AUC': 5 * (10 + 0.75 + 9 * 0.5), 'mIoU': 100.0, 'mIoU_multi': 100.0,
        'both_right': 100.0, 'area_silence': None, 'area_noise': None}
    assert scores.keys() == {'ours', 'oracle', 'ceiling'}
    assert counts == {'boxes': 3, 'masks': 6, 'multi': 4, 'pairs': 2, 'silence': 3}
    assert not capsys.readouterr().out                      # nothing was left out


def test_of_the_rows_only_those_asked_for_are_scored(heard):
    every, counts = held_out()
    alone = heldout.held_out(None, None, 'miniature', 'root', rows=['ours'])
    assert alone == ({'ours': every['ours']}, counts)


def test_every_frame_of_vggss_is_seen_under_silence_and_noise_too_in_one_batch(heard,
                                                                                monkeypatch):
    made = []
    scenes = lambda name, *more: made.append(Scenes(name, SCENES[name])) or made[-1]
    monkeypatch.setattr(heldout, 'Benchmark', scenes)
    held_out(batch_size=4)
    noise = [s.number for s in made[0].samples if s.condition == 'noise']
    assert noise == [0, 1, 2]                               # another noise with each frame
    for ids, conditions in heard:
        if ids[0].startswith('vggss'):
            assert len(set(ids)) == 1 and conditions == ['positive', 'silence', 'noise']
        else:
            assert set(conditions) == {'positive'}
    assert sum(len(ids) for ids, _ in heard) == 3 * 3 + 4


def test_benchmarks_are_read_at_the_preset_s_sizes(heard, monkeypatch):
    read = []
    scenes = lambda name, *more: read.append((name, *more)) or Scenes(name, SCENES[name])
    monkeypatch.setattr(heldout, 'Benchmark', scenes)
    heldout.held_out(None, None, 'paper', 'some/root')
    assert read == [('vggss', 'some/root', 352, 10.0), ('is4', 'some/root', 352, 10.0)]


def test_every_class_name_gets_its_own_embedding():
    samples = [SimpleNamespace(label=label) for label in ('owl', 'dog', None, 'owl', 'cat')]
    embed_text = lambda tokenizer, words: [f'{tokenizer} {word}' for word in words]
    model = SimpleNamespace(embed_text=embed_text)
    found = heldout.embed_names(model, 'a', SimpleNamespace(samples=samples))
    assert found == {'cat': 'a cat', 'dog': 'a dog', 'owl': 'a owl'}


def test_perfect_masks_are_scored_against_the_boxes(heard, monkeypatch):
    monkeypatch.setitem(SCENES, 'vggss', [scene('dog', 'a', BOX, area(0, 40)), SCENES['vggss'][1]])
    scores, _ = held_out()
    assert scores['ceiling']['cIoU'] == 50.0 and scores['ceiling']['mIoU'] == 100.0


def test_areas_need_no_masks_which_the_real_vggss_lacks(heard, monkeypatch):
    bare = [{**one, 'mask': None} for one in SCENES['vggss']]
    monkeypatch.setitem(SCENES, 'vggss', bare)
    scores, counts = held_out()
    assert (scores['ours']['area_silence'], scores['ours']['area_noise']) == (0.25, 0.5)
    assert counts == {'boxes': 3, 'masks': 4, 'multi': 4, 'pairs': 2, 'silence': 3}
    assert scores['ceiling']['cIoU'] is None


def test_samples_without_a_mask_or_a_name_take_no_other_s_place(heard, monkeypatch):
    """Frame x lacks a mask, frame y a name: the oracle has no map of it."""
    monkeypatch.setitem(SCENES, 'is4', [
        scene('dog', 'x', LEFT, None), scene('cat', 'x', RIGHT, RIGHT),
        scene('dog', 'y', LEFT, LEFT), scene(None, 'y', RIGHT, RIGHT)])
    monkeypatch.setitem(OURS, 'is42', LEFT)
    scores, counts = held_out()
    ours, oracle = scores['ours'], scores['oracle']
    assert ours['mIoU_multi'] == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    assert ours['both_right'] == 100.0 and counts['pairs'] == 1         # of frame y
    assert oracle['mIoU_multi'] == pytest.approx(100 * (1 + 0.5) / 2)
    assert oracle['mIoU'] == pytest.approx(100 * (0.5 + 0.5 + 1 + 0.5) / 4)
    assert oracle['both_right'] is None and scores['ceiling']['both_right'] == 100.0


def test_rows_without_any_score_are_left_out(heard, monkeypatch):
    for name, scenes in SCENES.items():
        bare = [{**one, 'mask': None, 'label': None} for one in scenes]
        monkeypatch.setitem(SCENES, name, bare)
    scores, counts = held_out()
    assert scores.keys() == {'ours'} and counts['masks'] == counts['pairs'] == 0


def test_an_empty_map_of_a_box_without_area_is_no_success(heard, monkeypatch):
    empty = scene('owl', 'c', area(0, 0), None)
    monkeypatch.setitem(SCENES, 'vggss', [*SCENES['vggss'][:2], empty])
    monkeypatch.setitem(OURS, 'vggss2', area(0, 0))
    assert held_out()[0]['ours']['cIoU'] == pytest.approx(200 / 3)


def test_what_is_not_on_the_disk_is_none_and_said_once_in_a_training(heard, monkeypatch, capsys):
    def only_vggss(name, *_):
        if name == 'is4':
            raise FileNotFoundError('no is4 here')
        scenes = Scenes(name, SCENES[name])
        scenes.expected = 5
        scenes.missing = ['lost', 'gone']
        return scenes

    monkeypatch.setattr(heldout, 'Benchmark', only_vggss)
    scores, counts = held_out()
    assert scores['ours']['mIoU_multi'] is None and scores['ours']['both_right'] is None
    assert scores['ours']['mIoU'] == 50.0
    assert counts == {'boxes': 3, 'masks': 2, 'multi': 0, 'pairs': 0, 'silence': 3}
    held_out()                                              # after the training
    said = capsys.readouterr().out.splitlines()
    assert said == ['vggss: scored 3 of 5 samples', 'held-out scores without is4: no is4 here']


def test_a_frame_that_cannot_be_read_counts_once_for_all_its_sounds(heard, monkeypatch, capsys):
    read = Scenes.__getitem__

    def broken(scenes, index):
        if scenes.samples[index].id == 'vggss1':
            return {'id': 'vggss1', 'error': data.SampleError('vggss1.png is broken')}
        return read(scenes, index)

    monkeypatch.setattr(Scenes, '__getitem__', broken)
    _, counts = held_out()
    assert counts['boxes'] == counts['silence'] == 2
    said = capsys.readouterr()
    assert 'vggss: scored 2 of 3 samples' in said.out
    assert (said.out + said.err).count('vggss1.png is broken') == 1


def test_a_frame_without_its_second_sound_is_said(heard, monkeypatch, capsys):
    monkeypatch.setitem(SCENES, 'is4', SCENES['is4'][:3])
    assert held_out()[0]['ours']['both_right'] == 100.0     # of frame x
    assert '1 frames lack their second sound' in capsys.readouterr().out


@torch.no_grad()
def test_our_map_and_the_oracle_s_have_one_shift_and_each_map_its_own_condition(tiny):
    model, _ = model_file.load_model('miniature')
    model.masker_i.w.fill_(2.0)
    model.masker_i.b.fill_(3.0)
    torch.manual_seed(0)
    image = torch.randn(2, 3, SIZE, SIZE)
    wav = torch.rand(3, 8000) * 2 - 1
    words = {word: torch.randn(16) for word in ('cat', 'dog', 'owl')}
    # three sounds, of which the last is heard with the first frame
    samples = [{'image': image[k % 2], 'wav': wav[k], 'label': label, 'condition': condition}
               for k, (label, condition) in enumerate(
                   [('dog', 'positive'), ('cat', 'positive'), ('dog', 'noise')])]
    found = localise(model, samples, words)
    conditions = {'ours': (model.embed_audio(wav), [0, 1, 0]),
                  'oracle': (torch.stack([words['dog'], words['cat']]), [0, 1])}
    assert found.keys() == conditions.keys() and found['oracle'][2] is None
    for who, (A, frames) in conditions.items():
        activations = model_file.encode_image(model.clipseg, image[frames]).activations
        M_G = model_file.decode(model.clipseg, activations, A[:, None])
        M_G = F.interpolate(M_G, size=(224, 224), mode='bicubic')
        maps = torch.stack(found[who][:len(A)])
        assert torch.allclose(maps, torch.sigmoid(M_G[:, 0] + 3 / 2), atol=1e-5), who


def test_the_sheet_shows_untrained_trained_and_oracle_in_their_columns(monkeypatch):
    drawn = []
    heat = {'untrained': 0.1, 'trained': 0.2, 'oracle': 0.3}
    full = lambda who, samples: [torch.full((224, 224), heat[who])] * len(samples)

    def fake(model, samples, words=None):
        oracle = full('oracle', samples) if words else [None] * len(samples)
        return {'ours': full(model, samples), 'oracle': oracle}

    x, *between, y = SCENES['is4']                          # x dog, y dog, x cat, y cat
    monkeypatch.setitem(SCENES, 'is4', [x, *between[::-1], y, scene('owl', 'z', LEFT, LEFT)])
    read = lambda name, root, size, seconds, limit: Scenes(name, SCENES[name][:limit])
    monkeypatch.setattr(heldout, 'Benchmark', read)
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {'dog': 1})
    monkeypatch.setattr(heldout, 'localise', fake)
    overlay = lambda frame, heat: round(float(heat.mean()), 3)
    monkeypatch.setattr(report, 'overlay', overlay)
    monkeypatch.setattr(report, 'ground_truth_tile', lambda frame, truth: truth.sum())
    monkeypatch.setattr(report, 'contact_sheet', lambda *a: drawn.append(a))
    heldout.before_after_sheet('untrained', 'trained', None, 'miniature', 'root', 'a.png', 2)
    ((rows, path, columns, names, _),) = drawn
    assert path == 'a.png' and names == ['dog', 'cat', 'dog', 'cat']     # by frame
    assert columns == ['frame', 'sounding object', 'untrained', 'trained', 'text oracle']
    assert [row[1:] for row in rows] == 4 * [[224 * 50, 0.1, 0.2, 0.3]]


def test_the_printed_table_has_the_words_of_the_page_of_results():
    page = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    lines = page.partition('\n## Held-out scenes')[2].partition('\n| % |')[2].split('\n')[2:9]
    of_page = [line.split(' | ')[0].removeprefix('| ') for line in lines]
    scores = {'cIoU': 1.0, 'AUC': 2.0, 'mIoU': 3.0, 'mIoU_multi': 4.0, 'both_right': 5.0,
              'area_silence': 0.06, 'area_noise': 0.07}
    heading, _, *printed = heldout.table_of({'untrained': None, 'ceiling': scores}).split('\n')
    assert [line[:26].rstrip() for line in printed] == of_page
    assert [line[26:].split() for line in printed] == [['-', f'{k}.0'] for k in range(1, 8)]
    assert heading.split('  ')[-1] == 'perfect masks' and '| perfect masks |' in page


HALF = torch.tensor([[[1., 1, 0, 0], [1, 1, 0, 0]]])                    # (1, H, W)


@pytest.mark.parametrize('first, second, right', [
    ((3, 1), (1, 3), 100), ((3, 1), (3, 1), 0), ((1, 3), (1, 3), 0), ((1, 3), (3, 1), 0),
    ((2, 2), (1, 3), 0), ((3, 1), (2, 2), 0), ((3, 2), (.1, .2), 100)])
def test_both_right_asks_both_sounds_for_their_own_object(first, second, right):
    """first, second: the heat on the first and on the second object, under the sound of each."""
    metric, objects = BothRight(), (HALF, 1 - HALF)
    for heat, mask in zip((first, second), objects):
        metric.update(heat[0] * HALF + heat[1] * (1 - HALF), mask, ['a'])
    assert len(metric) == 1 and metric.compute() == {'both_right': right}


def test_both_right_compares_the_two_objects_not_an_object_and_the_frame():
    metric = BothRight()
    metric.update(torch.tensor([[[3., 1, 1, 1]]]), torch.tensor([[[1., 0, 0, 0]]]), ['a'])
    metric.update(torch.tensor([[[3., 2, 0, 0]]]), torch.tensor([[[0., 1, 0, 0]]]), ['a'])
    assert metric.compute() == {'both_right': 0}


def test_both_right_waits_for_the_second_sound_of_a_frame():
    metric = BothRight()
    assert math.isnan(metric.compute()['both_right'])
    metric.update(torch.cat([HALF, HALF]), torch.cat([HALF, HALF]), ['a', 'c'])
    assert len(metric) == 0 and list(metric.waiting) == ['a', 'c']
    metric.update(torch.cat([HALF, 1 - HALF]), 1 - HALF.expand(2, 2, 4), ['c', 'a'])
    assert len(metric) == 2 and metric.compute() == {'both_right': 50} and not metric.waiting

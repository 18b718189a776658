"""Scores on held-out scenes, each column by hand: what is heard, what it is compared with, and where it is shown."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import heldout
import model as model_file
from heatmaps import localise
from tiny import SIZE, tiny        # noqa: F401


def area(top, bottom, left=0, right=224, inside=1.0, outside=0.0):
    """(224, 224) with a rectangle of `inside`."""
    filled = torch.full((224, 224), outside)
    filled[top:bottom, left:right] = inside
    return filled


class Scenes(list):
    """Stands for a Benchmark: samples are dicts as its own."""

    def __init__(self, name, samples):
        super().__init__({'id': f'{name}{k}', 'image': torch.zeros(3, 2, 2), 'wav': torch.full((50,), float(k)), **sample}
                         for k, sample in enumerate(samples))
        self.name, self.unreadable, self.expected = name, [], len(samples)


BOX = area(0, 100)
LEFT, RIGHT = area(0, 224, 0, 50), area(0, 224, 150, 200)       # masks of the two sounds of a frame
SCENES = {
    'vggss': [{'label': 'dog', 'group': 'a', 'boxes': BOX, 'mask': area(0, 50)},
              {'label': 'cat', 'group': 'b', 'boxes': BOX, 'mask': area(0, 100)},
              {'label': 'owl', 'group': 'c', 'boxes': BOX, 'mask': None}],
    'is4': [{'label': 'dog', 'group': 'x', 'boxes': LEFT, 'mask': LEFT}, {'label': 'cat', 'group': 'x', 'boxes': RIGHT, 'mask': RIGHT},
            {'label': 'dog', 'group': 'y', 'boxes': LEFT, 'mask': LEFT}, {'label': 'cat', 'group': 'y', 'boxes': RIGHT, 'mask': RIGHT}]}
OURS = {    # IoU with boxes 1, 0.5 (which counts), 0; with masks 0.5, 0.5; then of IS4 1, 1, 0, 0.5
    'vggss0': area(0, 100, inside=0.6), 'vggss1': area(0, 50, inside=0.9, outside=0.49), 'vggss2': area(150, 200),
    'is40': LEFT, 'is41': RIGHT, 'is42': RIGHT * 0.7, 'is43': area(0, 224, 150, 175)}
ORACLE = {**OURS, 'vggss2': area(0, 80), 'is42': LEFT * 0.8 + RIGHT * 0.7, 'is43': LEFT * 0.3 + RIGHT * 0.4}


@pytest.fixture
def heard(monkeypatch):
    """Put SCENES and these heatmaps in place of benchmarks and model. -> list of the (names, sounds) that were asked for"""
    asked = []

    def fake(model, batch, words, sounds):
        asked.append((batch['id'], sounds))
        of = lambda maps: torch.stack([maps[name] for name in batch['id']])
        B = len(batch['id'])
        unrelated = {'silence': area(0, 56, outside=0.5).repeat(B, 1, 1), 'noise': area(0, 112, inside=0.51).repeat(B, 1, 1)}
        return {'ours': of(OURS), 'oracle': of(ORACLE), **{kind: unrelated[kind] for kind in sounds}}

    monkeypatch.setattr(heldout, 'localise', fake)
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {})
    monkeypatch.setattr(heldout, 'Benchmark', lambda name, *a: Scenes(name, SCENES[name]))
    return asked


def test_every_column_by_hand(heard, capsys):
    scores, counts = heldout.held_out(None, None, 'miniature', 'root', batch_size=3)    # a frame lies in two batches
    # AUC: of IoU 1, 0.5, 0 all are above 0, two up to 0.5, one up to 1, at steps of 0.05
    ours = {'cIoU': 200 / 3, 'AUC': 5 * ((1 + 2 / 3) / 2 + 9 * 2 / 3 + 0.5 + 9 / 3), 'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0 + 0.5) / 6,
            'mIoU_multi': 100 * (1 + 1 + 0 + 0.5) / 4, 'both_right': 50.0, 'area_silence': 0.25, 'area_noise': 0.5}
    # IoU 1, 0.5, 0.8; frame y: the first sound's heat is 0.8 to 0.7 on its own object, the second's 0.4 to 0.3
    oracle = {'cIoU': 100.0, 'AUC': 5 * (10 + (1 + 2 / 3) / 2 + 5 * 2 / 3 + 0.5 + 3 / 3), 'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0.5 + 0) / 6,
              'mIoU_multi': 100 * (1 + 1 + 0.5 + 0) / 4, 'both_right': 100.0, 'area_silence': None, 'area_noise': None}
    assert scores['ours'] == pytest.approx(ours)
    assert scores['oracle'] == pytest.approx(oracle) and 'silence' not in scores
    # VGG-SS has a sample without a mask in the only batch, so perfect masks are IS4's alone
    assert scores['ceiling'] == {'cIoU': None, 'AUC': None, 'mIoU': 100.0, 'mIoU_multi': 100.0, 'both_right': 100.0,
                                 'area_silence': None, 'area_noise': None}
    assert counts == {'boxes': 3, 'masks': 6, 'multi': 4, 'pairs': 2, 'silence': 3}
    assert not capsys.readouterr().out                          # all were scored


def test_perfect_masks_are_scored_against_the_boxes(heard, monkeypatch):
    monkeypatch.setitem(SCENES, 'vggss', SCENES['vggss'][:2])
    scores, _ = heldout.held_out(None, None, 'miniature', 'root')
    assert scores['ceiling']['cIoU'] == 100.0                   # half of the box and all of it
    assert scores['ceiling']['mIoU'] == 100.0


def test_silence_is_silent_and_noise_is_loud_unlike_for_each_frame_and_repeats(heard):
    heldout.held_out(None, None, 'miniature', 'root', batch_size=2)
    first = [sounds for names, sounds in heard if names[0].startswith('vggss')]
    assert all(sounds == {} for names, sounds in heard if names[0].startswith('is4'))
    noise = torch.cat([sounds['noise'] for sounds in first])
    assert all(sounds['silence'].shape[1] == 50 and not sounds['silence'].any() for sounds in first)
    assert noise.shape == (3, 50) and noise.min() < -0.9 and noise.max() > 0.9 and noise.abs().max() <= 1
    assert noise.mean().abs() < 0.2 and noise.std().item() == pytest.approx(3**-0.5, abs=0.08)
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    heard.clear()
    heldout.held_out(None, None, 'miniature', 'root', batch_size=2)
    again = torch.cat([sounds['noise'] for names, sounds in heard if 'noise' in sounds])
    assert torch.equal(noise, again)                            # before and after a training


def test_what_is_not_on_the_disk_is_none_and_said(heard, monkeypatch, capsys):
    def only_vggss(name, *_):
        if name == 'is4':
            raise FileNotFoundError('no is4 here')
        scenes = Scenes(name, SCENES[name])
        scenes.expected = 5
        return scenes

    monkeypatch.setattr(heldout, 'Benchmark', only_vggss)
    scores, counts = heldout.held_out(None, None, 'miniature', 'root')
    assert scores['ours']['mIoU_multi'] is None and scores['ours']['both_right'] is None and scores['ours']['mIoU'] == 50.0
    assert counts == {'boxes': 3, 'masks': 2, 'multi': 0, 'pairs': 0, 'silence': 3}
    said = capsys.readouterr().out
    assert 'without is4: no is4 here' in said and 'vggss: scored 3 of 5 samples' in said


def test_a_frame_without_its_second_sound_is_said(heard, monkeypatch, capsys):
    monkeypatch.setitem(SCENES, 'is4', SCENES['is4'][:3])
    assert heldout.held_out(None, None, 'miniature', 'root')[0]['ours']['both_right'] == 100.0
    assert '1 frames lack their second sound' in capsys.readouterr().out


@pytest.mark.parametrize('first, second, right', [((3, 1), (1, 3), 100), ((3, 1), (3, 1), 0), ((1, 3), (1, 3), 0), ((1, 3), (3, 1), 0),
                                                  ((2, 2), (1, 3), 0)])
def test_both_right_asks_both_sounds_for_their_own_object(first, second, right):
    """first, second: the heat on the first and the second object, under the sound of either."""
    left, other = LEFT > 0, RIGHT > 0
    heat = lambda two: {'ours': two[0] * LEFT + two[1] * RIGHT}
    assert heldout.both_right((heat(first), left), (heat(second), other), 'ours') == right


@torch.no_grad()
def test_our_map_and_the_oracle_s_have_one_shift_and_each_condition_its_own_sound(tiny):
    model, _ = model_file.load_model('miniature')
    model.masker_i.w.fill_(2.0)
    model.masker_i.b.fill_(3.0)
    torch.manual_seed(0)
    batch = {'image': torch.randn(2, 3, SIZE, SIZE), 'wav': torch.rand(2, 8000) - 0.5, 'label': ['dog', 'cat']}
    words = {'cat': torch.randn(16), 'dog': torch.randn(16), 'owl': torch.randn(16)}
    sounds = {'silence': torch.zeros(1, 8000), 'noise': torch.rand(2, 8000) * 2 - 1}
    found = localise(model, batch, words, sounds=sounds)
    conditions = {'ours': model.embed_audio(batch['wav']), 'oracle': torch.stack([words['dog'], words['cat']]),
                  'silence': model.embed_audio(sounds['silence']).expand(2, -1), 'noise': model.embed_audio(sounds['noise'])}
    vision = model_file.encode_image(model.clipseg, batch['image'])
    assert found.keys() == conditions.keys()
    for who, A in conditions.items():
        M_G = F.interpolate(model_file.decode(model.clipseg, vision.activations, A[:, None]), size=(224, 224), mode='bicubic')
        assert torch.allclose(found[who], torch.sigmoid(M_G[:, 0] + 1.5), atol=1e-5), who
    assert 'oracle' not in localise(model, {**batch, 'label': ['dog', None]}, words)


def test_the_sheet_shows_untrained_trained_and_oracle_in_their_columns(monkeypatch):
    drawn, maps = [], {'untrained': 0.1, 'trained': 0.2, 'oracle': 0.3}
    full = lambda value: torch.full((1, 224, 224), value)
    monkeypatch.setattr(heldout, 'Benchmark', lambda name, root, size, seconds, limit: Scenes(name, SCENES[name][:limit]))
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {'dog': 1})
    monkeypatch.setattr(heldout, 'localise', lambda model, batch, words=None: {
        'ours': full(maps[model]), **({'oracle': full(maps['oracle'])} if words else {})})
    monkeypatch.setattr(heldout.figures, 'overlay', lambda frame, heat: round(float(heat.mean()), 3))
    monkeypatch.setattr(heldout.figures, 'ground_truth_tile', lambda frame, truth: ('truth', int(truth.sum())))
    monkeypatch.setattr(heldout.figures, 'contact_sheet', lambda *a: drawn.append(a))
    heldout.before_after_sheet('untrained', 'trained', None, 'miniature', 'root', 'sheet.png', frames=1)
    ((rows, path, columns, names),) = drawn
    assert path == 'sheet.png' and columns == ['frame', 'sounding object', 'untrained', 'trained', 'text oracle']
    assert [row[1:] for row in rows] == 2 * [[('truth', 224 * 50), 0.1, 0.2, 0.3]] and names == ['dog', 'cat']

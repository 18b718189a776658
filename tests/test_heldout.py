"""Scores on held-out scenes, each column by hand: what is heard, what it is compared with."""

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
    """Stands for a Benchmark: a list of its samples."""

    def __init__(self, name, samples):
        rest = {'image': torch.zeros(3, 2, 2), 'wav': torch.zeros(50)}
        super().__init__({'id': f'{name}{k}', **rest, **one} for k, one in enumerate(samples))
        self.name = name
        self.unreadable = []
        self.expected = len(samples)


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
    """SCENES and these heatmaps in place of benchmarks and model. -> [(names, sounds asked for)]"""
    asked = []

    def fake(model, batch, words, sounds=()):
        names = batch['id']
        asked.append((names, sounds))
        heat = {who: torch.stack([maps[name] for name in names])
                for who, maps in (('ours', OURS), ('oracle', ORACLE))}
        of_sounds = {'silence': area(0, 56, outside=0.5), 'noise': area(0, 112, inside=0.51)}
        return {**heat, **{kind: of_sounds[kind].repeat(len(names), 1, 1) for kind in sounds}}

    monkeypatch.setattr(heldout, 'localise', fake)
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {})
    monkeypatch.setattr(heldout, 'Benchmark', lambda name, *a: Scenes(name, SCENES[name]))
    return asked


def held_out(batch_size=32):
    return heldout.held_out(None, None, 'miniature', 'root', batch_size)


def test_every_column_by_hand(heard, capsys):
    scores, counts = held_out(batch_size=3)                 # the sounds of frame y in two batches
    # AUC: shares of the samples at or above 0, 0.05 .. 1, by trapezoids
    assert scores['ours'] == pytest.approx({
        'cIoU': 200 / 3, 'AUC': 5 * ((1 + 2 / 3) / 2 + 9 * 2 / 3 + (2 / 3 + 1 / 3) / 2 + 9 / 3),
        'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0 + 0.5) / 6, 'mIoU_multi': 100 * (1 + 1 + 0 + 0.5) / 4,
        'both_right': 50.0, 'area_silence': 0.25, 'area_noise': 0.5})
    assert scores['oracle'] == pytest.approx({
        'cIoU': 100.0, 'AUC': 5 * (10 + (1 + 2 / 3) / 2 + 5 * 2 / 3 + 0.5 + 3 / 3),
        'mIoU': 100 * (0.5 + 0.5 + 1 + 1 + 0.5 + 0) / 6, 'mIoU_multi': 100 * (1 + 1 + 0.5 + 0) / 4,
        'both_right': 100.0, 'area_silence': None, 'area_noise': None})
    # a sample of VGG-SS has no mask, so perfect masks are IS4's alone
    assert scores['ceiling'] == {
        'cIoU': None, 'AUC': None, 'mIoU': 100.0, 'mIoU_multi': 100.0, 'both_right': 100.0,
        'area_silence': None, 'area_noise': None}
    assert scores.keys() == {'ours', 'oracle', 'ceiling'}
    assert counts == {'boxes': 3, 'masks': 6, 'multi': 4, 'pairs': 2, 'silence': 3}
    assert not capsys.readouterr().out                      # nothing was left out


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


def test_silence_is_silent_and_noise_is_loud_and_each_frame_s_own_and_repeats(heard):
    held_out(batch_size=2)
    first = [sounds for names, sounds in heard if 'vggss' in names[0]]
    assert all(sounds == {} for names, sounds in heard if 'is4' in names[0])
    assert all(not sounds['silence'].any() for sounds in first)
    noise = torch.cat([sounds['noise'] for sounds in first])
    assert noise.shape == (3, 50) and noise.min() < -0.9 and noise.max() > 0.9
    assert noise.abs().max() <= 1 and noise.mean().abs() < 0.2
    assert noise.std().item() == pytest.approx(3**-0.5, abs=0.08)       # uniform in -1..1
    for k in (1, 2):
        assert not torch.equal(noise[0], noise[k])
    heard.clear()
    held_out(batch_size=2)                                  # before and after a training
    again = [sounds['noise'] for names, sounds in heard if sounds]
    assert torch.equal(noise, torch.cat(again))


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
    assert oracle['both_right'] is None and 'ceiling' not in scores


def test_an_empty_map_of_a_box_without_area_is_no_success(heard, monkeypatch):
    monkeypatch.setitem(SCENES, 'vggss', [*SCENES['vggss'][:2], scene('owl', 'c', area(0, 0), None)])
    monkeypatch.setitem(OURS, 'vggss2', area(0, 0))
    assert held_out()[0]['ours']['cIoU'] == pytest.approx(200 / 3)


def test_what_is_not_on_the_disk_is_none_and_said(heard, monkeypatch, capsys):
    def only_vggss(name, *_):
        if name == 'is4':
            raise FileNotFoundError('no is4 here')
        scenes = Scenes(name, SCENES[name])
        scenes.expected = 5
        return scenes

    monkeypatch.setattr(heldout, 'Benchmark', only_vggss)
    scores, counts = held_out()
    assert scores['ours']['mIoU_multi'] is None and scores['ours']['both_right'] is None
    assert scores['ours']['mIoU'] == 50.0
    assert counts == {'boxes': 3, 'masks': 2, 'multi': 0, 'pairs': 0, 'silence': 3}
    said = capsys.readouterr().out
    assert 'without is4: no is4 here' in said and 'vggss: scored 3 of 5 samples' in said


def test_a_frame_without_its_second_sound_is_said(heard, monkeypatch, capsys):
    monkeypatch.setitem(SCENES, 'is4', SCENES['is4'][:3])
    assert held_out()[0]['ours']['both_right'] == 100.0     # of frame x
    assert '1 frames lack their second sound' in capsys.readouterr().out


@pytest.mark.parametrize('first, second, right', [
    ((3, 1), (1, 3), 100), ((3, 1), (3, 1), 0), ((1, 3), (1, 3), 0), ((1, 3), (3, 1), 0),
    ((2, 2), (1, 3), 0), ((3, 2), (0.1, 0.2), 100)])
def test_both_right_asks_both_sounds_for_their_own_object(first, second, right):
    """first, second: the heat on the first and on the second object, under the sound of each."""
    heat = lambda two: {'ours': two[0] * LEFT + two[1] * RIGHT}
    of_first = (heat(first), LEFT > 0)
    of_second = (heat(second), RIGHT > 0)
    assert heldout.both_right(of_first, of_second, 'ours') == right


@torch.no_grad()
def test_our_map_and_the_oracle_s_have_one_shift_and_each_map_its_own_condition(tiny):
    model, _ = model_file.load_model('miniature')
    model.masker_i.w.fill_(2.0)
    model.masker_i.b.fill_(3.0)
    torch.manual_seed(0)
    image = torch.randn(2, 3, SIZE, SIZE)
    wav, noise = (torch.rand(2, 8000) * 2 - 1 for _ in range(2))
    silence = torch.zeros(1, 8000)
    words = {word: torch.randn(16) for word in ('cat', 'dog', 'owl')}
    batch = {'image': image, 'wav': wav, 'label': ['dog', 'cat']}
    found = localise(model, batch, words, sounds={'silence': silence, 'noise': noise})
    conditions = {'ours': model.embed_audio(wav), 'noise': model.embed_audio(noise),
                  'oracle': torch.stack([words['dog'], words['cat']]),
                  'silence': model.embed_audio(silence).expand(2, -1)}
    activations = model_file.encode_image(model.clipseg, image).activations
    assert found.keys() == conditions.keys()
    for who, A in conditions.items():
        M_G = model_file.decode(model.clipseg, activations, A[:, None])
        M_G = F.interpolate(M_G, size=(224, 224), mode='bicubic')
        assert torch.allclose(found[who], torch.sigmoid(M_G[:, 0] + 3 / 2), atol=1e-5), who
    assert 'oracle' not in localise(model, {**batch, 'label': ['dog', None]}, words)


def test_the_sheet_shows_untrained_trained_and_oracle_in_their_columns(monkeypatch):
    drawn = []
    heat = {'untrained': 0.1, 'trained': 0.2, 'oracle': 0.3}
    full = lambda who: torch.full((1, 224, 224), heat[who])

    def fake(model, batch, words=None):
        return {'ours': full(model), **({'oracle': full('oracle')} if words else {})}

    read = lambda name, root, size, seconds, limit: Scenes(name, SCENES[name][:limit])
    monkeypatch.setattr(heldout, 'Benchmark', read)
    monkeypatch.setattr(heldout, 'embed_names', lambda *a: {'dog': 1})
    monkeypatch.setattr(heldout, 'localise', fake)
    overlay = lambda frame, heat: round(float(heat.mean()), 3)
    monkeypatch.setattr(heldout.figures.pictures, 'overlay', overlay)
    monkeypatch.setattr(heldout.figures.pictures, 'ground_truth_tile', lambda frame, truth: truth.sum())
    monkeypatch.setattr(heldout.figures.pictures, 'contact_sheet', lambda *a: drawn.append(a))
    heldout.before_after_sheet('untrained', 'trained', None, 'miniature', 'root', 'a.png', frames=1)
    ((rows, path, columns, names),) = drawn
    assert path == 'a.png' and names == ['dog', 'cat']
    assert columns == ['frame', 'sounding object', 'untrained', 'trained', 'text oracle']
    assert [row[1:] for row in rows] == 2 * [[224 * 50, 0.1, 0.2, 0.3]]

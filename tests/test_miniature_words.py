"""What the miniature's models are taught: words, losses and masks, by hand."""

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from miniature import scenes, world
from miniature.pretraining import language, lessons, tiny_clipseg
from miniature.pretraining.__main__ import WEIGHTS


def test_a_phrase_names_the_colour_as_often_as_asked():
    phrases = lambda share: {language.phrase((4, 'red'), np.random.default_rng(k), share)
                             for k in range(60)}
    assert phrases(1.0) == {'a red dog'} and phrases(0.0) == {'a dog', 'a barking dog'}


def test_captions_of_small_things_begin_with_the_place():
    said = lambda largest: {language.image_caption([('dog', 'red')], 'open field', largest,
                                                   np.random.default_rng(k)) for k in range(60)}
    assert said(0.13) == {'an open field with a red dog'}
    assert said(0.14) == {'a photo of a red dog in an open field', 'a red dog in an open field',
                          'a red dog'}


def test_what_one_caption_does_not_tell_is_not_asked_of_it():
    rng = np.random.default_rng(0)
    for _ in range(400):
        image, _, answer = language.captions_and_answer('image', rng)
        assert answer == language.UNKNOWN or answer in image.replace(',', '').split()
    for kind, unknown in (('both', True), ('audio', False)):
        answers = {language.captions_and_answer(kind, rng)[2] for _ in range(400)}
        assert (language.UNKNOWN in answers) == unknown     # sounds of nothing in sight, for both


def test_the_largest_thing_is_named_first():
    for index in range(6):
        scene = scenes.draw_scene(scenes.sample_generator(3, 'captions-test', index))
        area = lambda thing: ((thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]))
        largest = sorted(scene.objects, key=area, reverse=True)
        _, things, place, share = lessons.one_scene(('test', index, 3))
        assert things == [(thing.name, thing.colour) for thing in largest]
        assert place == scene.place and share == pytest.approx(area(largest[0]) / 96**2)


def test_equal_captions_are_equally_right():
    x = torch.eye(3)
    y = x[[1, 0, 2]]                                        # the first two are each other's
    L = math.log(2 + math.e)
    expected = (2 * (L - 0.5) + L - 1) / 3
    assert tiny_clipseg.contrast(x, y, 1.0, ['a', 'a', 'b']).item() == pytest.approx(expected)


def test_the_decoder_s_loss_by_hand(monkeypatch):
    """M_G lies 0.8 above the boundary, which is log-odds of 2."""
    M_G = torch.full((2, 1, 4, 4), -1.4 + 0.8)
    monkeypatch.setattr(tiny_clipseg, 'decode', lambda *given: M_G)
    terms = tiny_clipseg.mask_loss(None, None, torch.zeros(2, 3),
                               torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
    p = 1 / (1 + math.exp(-2))
    assert terms['pixels'].item() == pytest.approx(4 * -(math.log(p) + math.log(1 - p)) / 2)
    dice = 1 - (2 * 16 * p + 1) / (16 * p + 16 + 1)         # of the mask that is not empty
    assert terms['dice'].item() == pytest.approx(0.5 * dice)


def test_the_decoder_is_tuned_alone_on_named_absent_and_nameless_things(monkeypatch, tmp_path):
    truths = []
    original = tiny_clipseg.mask_loss

    def watched(clipseg, activations, conditions, truth):
        truths.append(truth)
        return original(clipseg, activations, conditions, truth)

    monkeypatch.setattr(tiny_clipseg, 'mask_loss', watched)
    here = lambda function, jobs, label, processes: [function(job) for job in jobs]
    monkeypatch.setattr(tiny_clipseg, 'in_parallel', here)
    for setting, value in (('SCENES', 4), ('BATCH', 4)):
        monkeypatch.setattr(tiny_clipseg, setting, value)
    monkeypatch.setattr(tiny_clipseg, 'check_clipseg', lambda folder, seed: {})
    shutil.copytree(WEIGHTS / 'clipseg', tmp_path / 'clipseg')
    tiny_clipseg.tune_decoder(tmp_path / 'clipseg', 0, steps=1)
    named, absent, nameless = truths[0].chunk(3)
    assert named.amax((1, 2)).all() and not absent.any() and (nameless >= named).all()
    changed = set()
    with safe_open(WEIGHTS / 'clipseg/model.safetensors', 'pt') as before, \
            safe_open(tmp_path / 'clipseg/model.safetensors', 'pt') as after:
        for key in before.keys():
            assert after.get_slice(key).get_dtype() == 'F16'
            if not torch.equal(before.get_tensor(key), after.get_tensor(key)):
                changed.add(key.split('.')[0])
    assert changed == {'decoder'}


def test_a_scene_with_a_hidden_object_is_drawn_again_under_the_same_conditions(monkeypatch):
    asked = []
    compose = scenes.compose

    def hidden_at_first(picture, place, names, colours, sprites, rng, overlap):
        asked.append((list(names), overlap, [max(sprite.size) for sprite in sprites]))
        return compose(picture, place, names, colours, sprites, rng, overlap) if asked[1:] else None

    monkeypatch.setattr(scenes, 'compose', hidden_at_first)
    scenes.draw_scene(np.random.default_rng(0), ['dog', 'cup'], 96, (0.5, 0.5), 0.3)
    assert asked == 2 * [(['dog', 'cup'], 0.3, [48, 48])]


def test_a_world_of_other_sizes_is_another_world(tmp_path):
    root = world.build(tmp_path / 'w', splits={'val': 1}, processes=1)
    assert world.ready(root, 0, {'val': 1}) and not world.ready(root, 1, {'val': 1})
    assert not world.ready(root, 0, {'val': 2}) and not world.ready(root)

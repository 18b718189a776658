"""The miniature's world: deterministic, disjoint splits, exact masks, checked when it is used again."""

import json

import numpy as np
import pytest

from conftest import SMALL
from miniature import drawings, sounds, world


def test_the_same_seed_gives_the_same_scene_and_sound_and_another_split_does_not():
    one, same, other = (world.draw_scene(world.sample_generator(0, split, 3)) for split in ('train', 'train', 'val'))
    assert (one.image == same.image).all() and [o.name for o in one.objects] == [o.name for o in same.objects]
    assert not (one.image == other.image).all()
    a, b, c = (sounds.sound('dog', world.sample_generator(0, split, 3)) for split in ('train', 'train', 'vggss'))
    assert (a == b).all() and not (a == c).all()


def test_masks_and_boxes_are_of_the_visible_part_and_never_overlap():
    for i in range(40):
        scene = world.draw_scene(world.sample_generator(1, 'train', i))
        assert np.sum([thing.mask for thing in scene.objects], 0).max() == 1
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert thing.mask.sum() >= world.MIN_VISIBLE_PIXELS and thing.mask[y0:y1, x0:x1].sum() == thing.mask.sum()
            assert thing.mask[y0].any() and thing.mask[:, x1 - 1].any()             # the box is tight
        assert len({thing.name for thing in scene.objects}) == len(scene.objects)


def test_every_class_can_be_drawn_heard_and_described():
    rng = np.random.default_rng(0)
    for name in drawings.CLASSES:
        assert drawings.sprite(name, 'red', 40, rng).size[1] <= 40
    for name in (*drawings.SOUNDING, *sounds.AMBIENT):
        wav = sounds.sound(name, rng)
        assert wav.shape == (32000,) and 0.1 < abs(wav).max() <= 1
        assert all(len(text.split()) <= 7 for text in sounds.DESCRIPTIONS[name])
    with pytest.raises(ValueError, match='xylophone'):
        sounds.sound('xylophone', rng)


def test_what_is_written_says_what_sounds(small_world):
    records = [json.loads(line) for line in (small_world / 'scenes.jsonl').read_text().splitlines()]
    assert len(records) == sum(SMALL.values()) + SMALL['is4'] and len({r['id'] for r in records}) == len(records)
    assert all(r['sounding'] in [thing['name'] for thing in r['objects']] for r in records)
    assert all(r['sounding'] in drawings.SOUNDING for r in records)


def test_a_world_is_reused_when_whole_and_redrawn_when_damaged(tmp_path):
    splits = {'train': 3, 'val': 1, 'vggss': 1, 'is4': 1}
    root = world.build(tmp_path / 'w', splits=splits, processes=1)
    frame = next((root / 'vggsound/frames').iterdir())
    written, pixels = frame.stat().st_mtime_ns, frame.read_bytes()
    world.build(root, splits=splits, processes=1)
    assert frame.stat().st_mtime_ns == written
    frame.unlink()
    assert not world.ready(root, 0, splits)
    world.build(root, splits=splits, processes=1)
    assert frame.read_bytes() == pixels and not list(tmp_path.glob('*.partial-*'))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='thesis.txt'):
        world.build(tmp_path, processes=1)
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


def test_what_others_put_beside_the_world_neither_spoils_it_nor_is_lost(tmp_path):
    splits = {'train': 1, 'val': 1, 'vggss': 1, 'is4': 1}
    root = world.build(tmp_path / 'w', splits=splits, processes=1)
    (root / 'captions.jsonl').write_text('{}')
    assert world.ready(root, 0, splits)
    next((root / 'vggsound/frames').iterdir()).unlink()
    with pytest.raises(ValueError, match='captions.jsonl'):
        world.build(root, splits=splits, processes=1)
    with pytest.raises(ValueError, match='seed'):
        world.build(root, seed=1, splits=splits, processes=1)

"""The miniature's world: deterministic, disjoint splits, exact masks, checked before each use."""

import csv
import errno
import json
import os
import xml.etree.ElementTree as ET
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import soundfile
from filelock import Timeout
from PIL import Image

import media
from conftest import SMALL
from miniature import benchmarks, drawings, scenes, sounds, world
from miniature.backgrounds import PLACES

TINY = {'train': 1, 'val': 1, 'vggss': 6, 'is4': 1, 'ext_vggss': 6, 'flickr': 4, 'ext_flickr': 3,
        'vpo_ss': 4, 'vpo_ms': 6, 'avs_s4': 2, 'avs_ms3': 2, 'ade20k': 6,
        'vgg_instruments': 5, 'vgg_duet': 6}


@pytest.fixture(scope='module')
def every_benchmark(tmp_path_factory):
    """A world with a few samples of each benchmark of section 4.1."""
    return world.build(tmp_path_factory.mktemp('every') / 'world', seed=3, splits=TINY, processes=1)


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


def pixels_of(path):
    return np.array(Image.open(path))


def names_in(folder):
    return {path.stem for path in folder.iterdir()}


def records_of(root, split):
    lines = map(json.loads, (root / 'scenes.jsonl').read_text().splitlines())
    return [r for r in lines if r['split'] == split]


def test_the_same_seed_gives_the_same_scene_and_sound_and_another_split_does_not():
    one, same, other = (scenes.draw_scene(scenes.sample_generator(0, split, 3))
                        for split in ('train', 'train', 'val'))
    assert (one.image == same.image).all()
    assert [thing.name for thing in one.objects] == [thing.name for thing in same.objects]
    assert not (one.image == other.image).all()
    a, b, c = (sounds.sound('dog', scenes.sample_generator(0, split, 3))
               for split in ('train', 'train', 'vggss'))
    assert (a == b).all() and not (a == c).all()


def test_masks_and_boxes_are_of_the_visible_part_and_never_overlap():
    for i in range(40):
        scene = scenes.draw_scene(scenes.sample_generator(1, 'train', i))
        assert np.sum([thing.mask for thing in scene.objects], 0).max() == 1
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert thing.mask.sum() >= scenes.MIN_VISIBLE_PIXELS
            assert thing.mask[y0:y1, x0:x1].sum() == thing.mask.sum()
            assert thing.mask[y0].any() and thing.mask[:, x1 - 1].any()     # the box is tight
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
    splits = ('train', 'val', 'vggss', 'is4')
    records = [r for split in splits for r in records_of(small_world, split)]
    assert len(records) == sum(SMALL[split] for split in splits) + SMALL['is4']
    assert all(r['sounding'] in [thing['name'] for thing in r['objects']] for r in records)
    assert all(r['sounding'] in drawings.SOUNDING for r in records)


def test_a_world_is_reused_when_complete_and_redrawn_when_damaged(tmp_path):
    splits = {'train': 3, 'val': 1, 'vggss': 1, 'is4': 1}
    root = world.build(tmp_path / 'w', splits=splits, processes=1)
    frame = next((root / 'vggsound/frames').iterdir())
    written = frame.stat().st_mtime_ns
    pixels = frame.read_bytes()
    world.build(root, splits=splits, processes=1)
    assert frame.stat().st_mtime_ns == written
    frame.unlink()
    assert not world.ready(root, 0, splits)
    world.build(root, splits=splits, processes=1)
    assert frame.read_bytes() == pixels and not list(tmp_path.glob('*.partial-*'))


def files_of(root):
    """{path below root: content}, without the manifest."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*')
            if path.is_file() and path.name != 'world.json'}


def folders_in(folder):
    return [path.name for path in folder.iterdir() if path.is_dir()]


def test_several_processes_draw_the_same_world_where_there_is_no_fork(tmp_path, monkeypatch):
    for name in ('fork', 'sched_getaffinity'):
        monkeypatch.delattr(os, name, raising=False)
    splits = {'vggss': 3, 'avs_ms3': 1, 'vgg_duet': 2}
    one, two = (world.build(tmp_path / str(count), 3, splits, count) for count in (1, 2))
    assert files_of(one) == files_of(two)
    for cores, used in ((None, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(os, 'cpu_count', lambda: cores)
        assert world.usable_cores() == used


def test_a_drawing_process_that_was_killed_ends_the_drawing(tmp_path, monkeypatch):
    class Pool:
        """Its first sample is drawn, then a process is killed."""

        def __init__(self, *given):
            pass

        def map(self, function, jobs, chunksize):
            yield function(jobs[0])
            raise BrokenProcessPool

        def shutdown(self, cancel_futures):
            assert cancel_futures

    monkeypatch.setattr(world, 'ProcessPoolExecutor', Pool)
    with pytest.raises(OSError, match='a process that was drawing w has ended: free memory'):
        world.build(tmp_path / 'w', splits={'val': 2}, processes=2)
    assert not folders_in(tmp_path)


def test_what_a_killed_drawing_left_is_removed(tmp_path):
    (tmp_path / 'w.partial-7/vggsound').mkdir(parents=True)
    world.build(tmp_path / 'w', splits={'val': 1}, processes=1)
    assert folders_in(tmp_path) == ['w']


def test_a_second_process_waits_for_the_first_and_draws_nothing(tmp_path, monkeypatch, capsys):
    place = tmp_path / 'w'
    drawn = []
    draw = world.draw

    class LockOfTheFirst:
        """Held until the first process has drawn the world."""

        def __init__(self, path):
            self.lock_file = path

        def acquire(self, blocking=True):
            if not blocking:
                raise Timeout(self.lock_file)
            draw(place, 0, {'val': 1}, 1)

        def release(self):
            drawn.append('released')

    monkeypatch.setattr(world, 'FileLock', LockOfTheFirst)
    monkeypatch.setattr(world, 'draw', lambda *given: drawn.append('again'))
    world.build(place, splits={'val': 1}, processes=1)
    assert drawn == ['released'] and world.ready(place, 0, {'val': 1})
    assert 'another process is drawing w: waiting for it' in capsys.readouterr().err


def test_a_world_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match=r'cannot draw the world in .*w \(No space left on device\)'):
        world.build(tmp_path / 'w', splits={'val': 1}, processes=1)
    assert not folders_in(tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='name another folder'):
        world.build(tmp_path / 'file/w', splits={'val': 1}, processes=1)


def test_a_complete_world_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    root = world.build(tmp_path / 'w', splits={'val': 1}, processes=1)

    def refused(path):
        raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(world, 'FileLock', refused)
    assert world.build(root, splits={'val': 1}) == root
    with pytest.raises(OSError, match='Permission denied'):
        world.build(tmp_path / 'v', splits={'val': 1})


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


# ---- The other benchmarks of section 4.1

def test_the_default_world_has_a_hundred_samples_of_every_benchmark():
    clips = {'avs_s4', 'avs_ms3'}
    assert world.SPLITS.keys() == TINY.keys()
    assert all(count * (benchmarks.FRAMES_PER_CLIP if split in clips else 1) >= 100
               or split == 'vpo_ms'
               for split, count in world.SPLITS.items())
    sizes = benchmarks.VPO_MS_GROUPS
    assert sum(sizes.values()) == pytest.approx(1)
    assert sum(n * share for n, share in sizes.items()) * world.SPLITS['vpo_ms'] > 100


def test_a_split_that_is_not_named_is_not_written_and_an_unknown_one_is_refused(tmp_path):
    root = world.build(tmp_path / 'w', splits={'vggss': 1}, processes=1)
    assert {path.name for path in root.iterdir()} == {'vggss', 'scenes.jsonl', 'world.json'}
    with pytest.raises(ValueError, match='vgsss'):
        world.build(tmp_path / 'v', splits={'vgsss': 1})


def test_extended_sets_pair_frames_with_sounds_of_nothing_in_sight(every_benchmark):
    for split, folder in (('ext_vggss', 'vggss'), ('ext_flickr', 'flickr')):
        header, *rows = rows_of(every_benchmark / folder / f'{folder}_test_plus_silent.csv')
        assert header == ['video', 'audio', 'label'] and len(rows) == TINY[split]
        assert {label for _, _, label in rows} == {'non-sounding'}
        videos, audios, _ = map(set, zip(*rows))
        assert videos == names_in(every_benchmark / folder / 'extend_frames')
        assert audios == names_in(every_benchmark / folder / 'extend_audio')
        records = records_of(every_benchmark, split)
        seen = [{thing['name'] for thing in r['objects']} for r in records]
        assert all(r['sounding'] not in names for r, names in zip(records, seen))
        # off-screen, silence or ambience, nothing to sound
        for k, (record, names) in enumerate(zip(records, seen)):
            assert (record['sounding'] in (*sounds.AMBIENT, 'silence')) == (k % 3 == 1)
            assert names.isdisjoint(drawings.SOUNDING) == (k % 3 == 2)


def test_flickr_has_several_coarse_boxes_that_hold_the_object_and_do_not_agree(every_benchmark):
    folder = every_benchmark / 'flickr'
    records = records_of(every_benchmark, 'flickr')
    assert rows_of(folder / 'flickr_test.csv') == [[r['id'], r['sounding']] for r in records]
    assert all(r['id'].isdigit() for r in records)
    for record in records:
        truth = next(thing['box'] for thing in record['objects']
                     if thing['name'] == record['sounding'])
        people = ET.parse(folder / f'test/Annotations/{record["id"]}.xml').getroot()
        boxes = [[int(child.text) for child in person.find('bbox')][1:] for person in people]
        assert {person.tag for person in people} == {'annotator'} and len(boxes) in (2, 3)
        corners = [child.tag for child in people[0].find('bbox')][1:]
        assert corners == ['xmin', 'ymin', 'xmax', 'ymax']
        consensus = np.zeros((256, 256))
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 256
            consensus[y0:y1, x0:x1] += 0.5
        x0, y0, x1, y1 = (round(v * 256 / scenes.IMAGE_SIZE) for v in truth)
        assert (consensus[y0:y1, x0:x1] >= 1).mean() > 0.8          # they mean the same object
        assert (consensus == 0.5).any()                             # and not the same pixels
    ids = {record['id'] for record in records}
    assert names_in(folder / 'test/frames') == names_in(folder / 'test/audio') == ids


def test_vpo_masks_agree_with_their_boxes_and_groups_share_a_frame(every_benchmark):
    for split in ('vpo_ss', 'vpo_ms'):
        folder = every_benchmark / split
        groups = {}
        entries = json.loads((folder / f'{split}_bbox.json').read_text())
        labels = dict(rows_of(folder / 'labels.csv'))
        records = {r['id']: r for r in records_of(every_benchmark, split)}
        listed = [entry['image'].split('/')[-1][:-4] for entry in entries]
        assert list(labels) == listed == list(records)
        for entry in entries:
            name = entry['image'].split('/')[-1][:-4]
            image, annotation = name.split('_')
            assert len(image) == 12 and len(annotation) == 6 and (image + annotation).isdigit()
            assert entry['audio'].endswith(f'audio_wav/{name}.wav')
            assert (every_benchmark / entry['audio']).exists()
            mask = pixels_of(folder / f'gray_masks/{name}.jpg')
            # JPEG, but nearly 0 or 255
            assert mask.ndim == 2 and ((mask < 40) | (mask > 215)).mean() > 0.95
            box = np.array(scenes.box_of(mask > 127)) * 224 / scenes.IMAGE_SIZE
            assert box == pytest.approx(entry['gt_box'], abs=5)
            assert records[name]['sounding'] == labels[name]
            groups.setdefault(image, []).append(name)
        sounding = [sum(thing['name'] in drawings.SOUNDING for thing in r['objects'])
                    for r in records.values()]
        assert len(groups) == TINY[split]
        assert set(sounding) == {1} if split == 'vpo_ss' else set(sounding) <= {2, 3}
        for names in groups.values():
            assert len(names) == 1 if split == 'vpo_ss' else len(names) in (1, 2, 3)
            assert len({(folder / f'visual_frames/{name}.jpg').read_bytes() for name in names}) == 1
            assert len({labels[name] for name in names}) == len(names)
    assert len(entries) > len(groups)       # some frame of MS is asked about twice


def test_avsbench_has_five_moving_frames_and_a_stereo_sound_per_clip(every_benchmark):
    for split, part in (('avs_s4', 's4'), ('avs_ms3', 'ms3')):
        folder = every_benchmark / 'avsbench' / part
        records = records_of(every_benchmark, split)
        rows = rows_of(folder / f'avs1_{part}_test.csv')
        assert rows == [[r['id'], r['sounding']] for r in records] and len(rows) == 5 * TINY[split]
        clips = {}
        for name, _ in rows:
            clips.setdefault(name.rsplit('_', 1)[0], []).append(name.rsplit('_', 1)[1])
        assert all(numbers == list('12345') for numbers in clips.values())
        assert set(clips) == names_in(folder / 'audio_wav')
        for clip in clips:
            wav, rate = soundfile.read(folder / f'audio_wav/{clip}.wav')
            assert wav.shape == (16000, 2) and rate == 16000 and (np.abs(wav).max(0) > 0.01).all()
            assert not np.allclose(wav[:, 0], wav[:, 1], atol=1e-3)
            assert len({(folder / f'visual_frames/{clip}_{k}.png').read_bytes()
                        for k in range(1, 6)}) == 5
        empty = []
        for record in records:
            mask = pixels_of(folder / f'gt_masks/{record["id"]}.png') > 0
            boxes = [thing['box'] for thing in record['objects']
                     if thing['name'] in record['sounding'].split(', ')]
            empty.append(not mask.any())
            assert mask.any() == bool(boxes)
            if boxes:                               # the mask is the union of what sounds
                x0, y0, x1, y1 = zip(*boxes)
                assert scenes.box_of(mask) == (min(x0), min(y0), max(x1), max(y1))
        assert any(empty) == (part == 'ms3')
    boxes = json.loads((every_benchmark / 'avsbench/s4/s4_box.json').read_text())
    for entry in boxes:
        mask = pixels_of(every_benchmark / entry['image'].replace('visual_frames', 'gt_masks')) > 0
        assert np.array(scenes.box_of(mask)) * 224 / 96 == pytest.approx(entry['gt_box'])
        assert (every_benchmark / entry['audio']).exists()


def test_ms3_names_every_source_of_a_clip_and_keeps_silent_things_out(tmp_path):
    root = world.build(tmp_path / 'w', splits={'avs_ms3': 8}, processes=1)
    labels = {row[1] for row in rows_of(root / 'avsbench/ms3/avs1_ms3_test.csv')}
    assert len({label.count(',') for label in labels}) > 1  # clips of one sound, of two, of three
    assert all(name in drawings.SOUNDING for label in labels for name in label.split(', '))
    assert any(thing['name'] in drawings.SILENT for r in records_of(root, 'avs_ms3')
               for thing in r['objects'])


def test_ade20k_codes_every_object_and_some_rows_cannot_be_used(every_benchmark):
    folder = every_benchmark / 'ade20k'
    header, *rows = rows_of(folder / 'prompted_segmentation.csv')
    records = records_of(every_benchmark, 'ade20k')
    assert header == ['image_location', 'vggsound_file', 'ade_class_id']
    assert len(rows) == TINY['ade20k']
    assert sum(row[2] == '0' for row in rows) == sum(row[1] == '' for row in rows) == 1
    assert len(set(benchmarks.ADE_CLASS.values())) == len(drawings.CLASSES + PLACES)
    for (image, heard, class_id), record in zip(rows, records):
        coded = pixels_of(folder / f'annotations/{image[:-4]}_seg.png').astype(int)
        classes = coded[..., 0] // 10 * 256 + coded[..., 1]
        assert set(np.unique(classes)) == {benchmarks.ADE_CLASS[name] for name in
                                           [record['place'],
                                            *(thing['name'] for thing in record['objects'])]}
        # blue tells objects apart
        assert len(np.unique(coded[..., 2])) == 1 + len(record['objects'])
        wanted = [thing['box'] for thing in record['objects']
                  if thing['name'] == record['sounding']]
        if class_id != '0':
            x0, y0, x1, y1 = zip(*wanted)
            assert scenes.box_of(classes == int(class_id)) == (min(x0), min(y0), max(x1), max(y1))
        assert (folder / 'frames' / image).exists()
        assert not heard or (folder / 'audio' / heard.split('/')[-1]).exists()


def test_instruments_and_duets_pair_samples_of_different_classes(every_benchmark):
    folder = every_benchmark / 'vgg_instruments'
    records = {r['id']: r for r in records_of(every_benchmark, 'vgg_instruments')}
    rows = rows_of(folder / 'vgginstruments_multi_test.csv')
    assert rows and all(a != b and records[i]['sounding'] == a and records[j]['sounding'] == b
                        for i, a, j, b in rows)
    assert list(records)[:2] == ['sample0000', 'sample0001']
    assert {a for _, a, _, _ in rows} <= set(benchmarks.INSTRUMENTS)
    for name, record in records.items():
        with open(folder / f'annotations/{name}.pkl', 'rb') as file:
            mask = media.ArraysOnly(file).load()
        assert type(mask) is np.ndarray and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert list(scenes.box_of(mask)) == record['objects'][0]['box']
    rows = rows_of(every_benchmark / 'vgg_duet/vggsound_duet_test.csv')
    samples = dict(rows_of(every_benchmark / 'vggss/vggss_test.csv'))
    assert len(rows) == TINY['vgg_duet'] and all(samples[i] == a and samples[j] == b and a != b
                                                 for i, a, j, b in rows)


def test_the_same_seed_gives_the_same_benchmarks_and_another_seed_others(every_benchmark, tmp_path):
    splits = {split: 2 for split in TINY if split not in ('train', 'val', 'is4')}
    files = []
    for name, seed in (('one', 4), ('same', 4), ('other', 7)):
        root = world.build(tmp_path / name, seed=seed, splits=splits, processes=1)
        files.append(files_of(root))
    one, same, other = files
    assert one == same
    drawn = [name for name in one if name.endswith(('.jpg', '.wav', '.png', '.pkl'))
             and name in other]
    assert len(drawn) > 20 and all(one[name] != other[name] for name in drawn
                                   if 'gt_masks' not in name)


def test_a_sample_can_be_remade_alone_and_no_two_splits_share_one(every_benchmark):
    drawn = []
    for split in TINY.keys() - {'vgg_duet', 'is4'}:
        # the samples of VPO-MS share their frame
        frames = {r['id'].split('_')[0] if split == 'vpo_ms' else r['id']: r
                  for r in records_of(every_benchmark, split)}
        drawn += [json.dumps([r['place'], r['objects']]) for r in frames.values() if r['objects']]
    assert len(set(drawn)) == len(drawn) > 50
    names = ['dog', 'tree']
    one, same = (benchmarks.draw_views(scenes.sample_generator(1, 'avs_s4', 2), names)
                 for _ in range(2))
    assert all((a.image == b.image).all() for a, b in zip(one, same))
    gone = benchmarks.draw_views(scenes.sample_generator(1, 'avs_s4', 2), names, {1: ['dog']})
    assert [len(scene.objects) for scene in gone] == [2, 1, 2, 2, 2]

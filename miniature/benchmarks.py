"""The miniature's data sets: the files of section 4.1, in the layout and as hard as the real ones.

A writer makes the files of one scene, or of one clip of five frames, and returns a record for each
sample; write_annotations makes the lists, boxes and tables of them. benchmarks/__init__.py lists
the files. What is hard about a real set is hard here:

    IS4                 two objects that sound, a sample for the sound of each
    the extended sets   the sound is of nothing in sight
    Flickr              annotators who do not agree
    VPO-SS, VPO-MS      small objects, objects that hide each other
    MS3                 several sounds at once, frames that their source has left
    ADE20K              several objects of the class that is asked for
"""

import json
import pickle

import numpy as np
from PIL import Image

from miniature.backgrounds import PLACES, background
from miniature.drawings import CLASSES, COLOURS, SILENT, SOUNDING, sprite
from miniature.scenes import (IMAGE_SIZE, OBJECT_SIZE, box_of, compose, draw_scene,
                              draw_sounding_scene, record, sample_generator, save_image, save_mask,
                              save_sound, save_wav, write_bytes, write_csv, write_text)
from miniature.sounds import AMBIENT, mixture, sound

BOX_PIXELS = 224                        # the side in which IS4, VPO and AVSBench count their boxes
FLICKR_PIXELS = 256                     # the side in which Flickr's are counted
IS4_SILENT_SHARE = 0.3                  # scenes of IS4 with a third, silent object
# An annotator's edge lies this far outside, as a share of the object's side
COARSE = (-0.04, 0.22)
VPO_SS_SIZE = (0.20, 0.42)              # longer side of the sounding object, of the image's
VPO_MS_SIZE = (0.36, 0.62)
VPO_MS_OVERLAP = 0.5
# Samples per frame: 759, 623 and 49 of the real set's groups
VPO_MS_GROUPS = {1: 0.53, 2: 0.435, 3: 0.035}
FRAMES_PER_CLIP = 5
MS3_SOURCES = {1: 0.5, 2: 0.44, 3: 0.06}            # sounds at once, as in the real list
RIGHT_GAIN = (0.7, 1.0)                 # of the right channel
EMPTY_EVERY = 4                         # every fourth MS3 clip has a frame without its sources
INSTRUMENTS = ('bell', 'drum', 'whistle', 'guitar', 'siren', 'telephone')
ADE_CLASS = {name: 1 + 137 * i for i, name in enumerate(CLASSES)}
ADE_CLASS |= {name: 2500 + 83 * i for i, name in enumerate(PLACES)}


# ------------------------------------------------------------------------------------------------
# Training pairs and VGG-SS, IS4
# ------------------------------------------------------------------------------------------------

def write_vggsound(root, split, index, seed):
    """A scene and the sound of one of its objects."""
    rng = sample_generator(seed, split, index)
    scene = draw_sounding_scene(rng)
    source = str(rng.choice(scene.sounding()))
    sample = f'{split}{index:05d}_{0:06d}'          # youtubeid_startsecond, as in VGGSound
    folder = root / ('vggss' if split == 'vggss' else 'vggsound')
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', source, rng)
    mask = next(thing.mask for thing in scene.objects if thing.name == source)
    if split == 'vggss':
        save_mask(folder / 'gt_masks' / f'{sample}.png', mask)
    box = [round(v / IMAGE_SIZE, 6) for v in box_of(mask)]
    return [{**record(sample, scene, source), 'split': split, 'bbox': box}]


def write_is4(root, split, index, seed):
    """Two sounding objects, sometimes a silent third, and one sample for each of the two sounds."""
    rng = sample_generator(seed, split, index)
    names = list(rng.choice(SOUNDING, 2, replace=False))
    if rng.random() < IS4_SILENT_SHARE:
        names.append(rng.choice(SILENT))
    scene = draw_scene(rng, names)
    records = []
    for thing in scene.objects[:2]:
        # the scene, then the sounding one, as in IS4
        sample = f'{names[0]}_{names[1]}_{index}_{thing.name}'
        save_image(root / 'is4/visual_frames' / f'{sample}.jpg', scene.image)
        save_mask(root / 'is4/gt_masks' / f'{sample}.png', thing.mask)
        save_sound(root / 'is4/audio_wav' / f'{sample}.wav', thing.name, rng)
        records.append({**record(sample, scene, thing.name), 'split': split,
                        'gt_box': gt_box(thing.mask)})
    return records


def gt_box(mask):
    """The box of a mask, in 224 pixels."""
    return [v * BOX_PIXELS / IMAGE_SIZE for v in box_of(mask)]


# ------------------------------------------------------------------------------------------------
# Sounds of nothing in sight: the extended sets, and Flickr's sounding samples
# ------------------------------------------------------------------------------------------------

def write_extended(root, split, index, seed):
    """A frame and a sound that it does not make: three kinds in turn, of Mo and Morgado (2022a)."""
    rng = sample_generator(seed, split, index)
    if split == 'ext_vggss':
        folder = root / 'vggss'
        video = f'mute{index:05d}_{0:06d}'
        other = f'else{index:05d}_{0:06d}'
    else:
        folder = root / 'flickr'
        video = f'{20_000_130_166 + 7919 * index}'
        other = f'{30_000_130_166 + 7919 * index}'
    if index % 3 == 2:          # nothing in the frame can sound
        scene = draw_scene(rng, list(rng.choice(SILENT, rng.integers(1, 3), replace=False)))
    else:
        scene = draw_sounding_scene(rng)
    if index % 3 == 1:          # the frame's own recording, in which the object is not heard
        audio = video
        heard = str(rng.choice((*AMBIENT, 'silence')))
    else:                       # the source is off-screen
        audio = other
        seen = scene.sounding()
        heard = str(rng.choice([name for name in SOUNDING if name not in seen]))
    save_image(folder / 'extend_frames' / f'{video}.jpg', scene.image)
    save_sound(folder / 'extend_audio' / f'{audio}.wav', heard, rng)
    return [{**record(video, scene, heard), 'split': split, 'audio': audio}]


def write_flickr(root, split, index, seed):
    """A scene with a sounding object, as several people would have boxed it in a hurry."""
    rng = sample_generator(seed, split, index)
    source = str(rng.choice(SOUNDING))
    silent = rng.choice(SILENT, rng.integers(0, 3), replace=False)
    scene = draw_scene(rng, [source, *silent])
    sample = f'{10_000_130_166 + 7919 * index}'
    folder = root / 'flickr/test'
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', source, rng)
    boxes = [coarse_box(scene.objects[0].box, rng) for _ in range(rng.integers(2, 4))]
    write_text(folder / 'Annotations' / f'{sample}.xml', annotation_xml(boxes))
    return [{**record(sample, scene, source), 'split': split}]


def coarse_box(box, rng):
    """One annotator's box of an object: each edge off by a share of the side. -> FLICKR_PIXELS"""
    x0, y0, x1, y1 = (v * FLICKR_PIXELS / IMAGE_SIZE for v in box)
    left, top, right, bottom = rng.uniform(*COARSE, 4)
    edges = (x0 - left * (x1 - x0), y0 - top * (y1 - y0),
             x1 + right * (x1 - x0), y1 + bottom * (y1 - y0))
    return [int(min(max(v, 0), FLICKR_PIXELS)) for v in edges]


def annotation_xml(boxes):
    """One annotator per box. A bbox's first child is its number, as released; readers skip it."""
    people = ''
    for i, box in enumerate(boxes):
        corners = ''.join(f'<{name}>{v}</{name}>'
                          for name, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
        people += f'  <annotator><bbox><id>{i}</id>{corners}</bbox></annotator>\n'
    return f'<annotation>\n{people}</annotation>\n'


# ------------------------------------------------------------------------------------------------
# Small and hidden objects: VPO-SS and VPO-MS
# ------------------------------------------------------------------------------------------------

def write_vpo(root, split, index, seed):
    """SS: one small sounding object. MS: two or three near each other, of which one to three are
    asked for."""
    rng = sample_generator(seed, split, index)
    if split == 'vpo_ss':
        asked = 1
        source = rng.choice(SOUNDING)
        silent = rng.choice(SILENT, rng.integers(0, 3), replace=False)
        scene = draw_scene(rng, [source, *silent], sizes=VPO_SS_SIZE)
    else:
        asked = int(rng.choice(list(VPO_MS_GROUPS), p=list(VPO_MS_GROUPS.values())))
        count = max(asked, 3 if rng.random() < 0.2 else 2)
        names = list(rng.choice(SOUNDING, count, replace=False))
        scene = draw_scene(rng, names, sizes=VPO_MS_SIZE, overlap=VPO_MS_OVERLAP)
    records = []
    for k, thing in enumerate(scene.objects[:asked]):
        # <coco image>_<annotation>
        sample = f'{139 + 37 * index:012d}_{100_000 + 10 * index + k:06d}'
        save_image(root / split / 'visual_frames' / f'{sample}.jpg', scene.image)
        save_mask(root / split / 'gray_masks' / f'{sample}.jpg', thing.mask)
        save_sound(root / split / 'audio_wav' / f'{sample}.wav', thing.name, rng)
        records.append({**record(sample, scene, thing.name), 'split': split,
                        'gt_box': gt_box(thing.mask)})
    return records


# ------------------------------------------------------------------------------------------------
# Five frames and a stereo sound per clip: AVSBench S4 and MS3
# ------------------------------------------------------------------------------------------------

def draw_views(rng, names, leave=None):
    """The frames of one clip: the same objects in the same place, moved, nearer or farther, in
    another light. -> list of FRAMES_PER_CLIP Scenes

    leave: {frame number from 0: names that are out of sight in it}.
    """
    leave = leave or {}
    place = str(rng.choice(PLACES))
    backdrop, *looks = rng.integers(2 ** 32, size=1 + len(names))
    colours = [str(rng.choice(list(COLOURS))) for _ in names]
    scenes = []
    while len(scenes) < FRAMES_PER_CLIP:
        light = rng.uniform(0.75, 1.2)
        picture = background(place, IMAGE_SIZE, np.random.default_rng(backdrop)) * light
        picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        seen = []
        seen_colours = []
        sprites = []
        for name, colour, look in zip(names, colours, looks):
            if name in leave.get(len(scenes), ()):
                continue
            pixels = round(rng.uniform(*OBJECT_SIZE[len(names)]) * IMAGE_SIZE)
            seen.append(name)
            seen_colours.append(colour)
            sprites.append(sprite(name, colour, pixels, np.random.default_rng(look)))
        scene = compose(picture, place, seen, seen_colours, sprites, rng)
        if scene:
            scenes.append(scene)
    return scenes


def write_avs(root, split, index, seed):
    """S4: one sound, and one object that makes it. MS3: up to three sounds at once, among objects
    that could sound and do not; sometimes a frame shows none of its sources."""
    rng = sample_generator(seed, split, index)
    folder = root / 'avsbench' / split.removeprefix('avs_')
    leave = {}
    if split == 'avs_s4':
        sources = [str(name) for name in rng.choice(SOUNDING, 1, replace=False)]
        silent = [str(rng.choice(SILENT))] if rng.random() < 0.5 else []
    else:
        count = int(rng.choice(list(MS3_SOURCES), p=list(MS3_SOURCES.values())))
        sources = [str(name) for name in rng.choice(SOUNDING, count, replace=False)]
        others = [name for name in CLASSES if name not in sources]
        silent = [str(name) for name in rng.choice(others, 3 - count, replace=False)]
        if index % EMPTY_EVERY == 0:
            leave = {int(rng.integers(FRAMES_PER_CLIP)): sources}
    scenes = draw_views(rng, sources + silent, leave)
    heard = [sound(name, rng) for name in sources]
    clip = f'{folder.name}clip{index:05d}'
    save_stereo(folder / 'audio_wav' / f'{clip}.wav',
                mixture(*heard) if len(heard) > 1 else heard[0], rng)
    records = []
    for k, scene in enumerate(scenes, 1):
        mask = np.zeros(scene.image.shape[:2], bool)
        for thing in scene.objects:
            if thing.name in sources:
                mask |= thing.mask
        save_image(folder / 'visual_frames' / f'{clip}_{k}.png', scene.image)
        save_mask(folder / 'gt_masks' / f'{clip}_{k}.png', mask)
        records.append({**record(f'{clip}_{k}', scene, ', '.join(sources)), 'split': split,
                        'clip': clip, 'gt_box': gt_box(mask)})
    return records


def save_stereo(path, wav, rng):
    """(n,) -> a stereo wav of half the length: the first half left; the second right, fainter, with
    noise of its own.

    The real clips last 5 s, half of what the model listens to, and the release plays their channels
    one after the other.
    """
    left, right = np.split(wav / max(1, np.abs(wav).max()), 2)
    right = right * rng.uniform(*RIGHT_GAIN) + 1e-3 * rng.standard_normal(len(right))
    save_wav(path, np.stack([left, right], 1).clip(-1, 1))


# ------------------------------------------------------------------------------------------------
# Every object of a class: DenseAV ADE20K
# ------------------------------------------------------------------------------------------------

def write_ade20k(root, split, index, seed):
    """A scene coded object by object, and a sound that asks for a class. Two rows in fifteen cannot
    be used: one without a class, one without a sound."""
    rng = sample_generator(seed, split, index)
    source = str(rng.choice(SOUNDING))
    names = [source, source] if rng.random() < 0.3 else [source]    # "every dog": some have two
    others = [name for name in CLASSES if name != source]
    names += list(rng.choice(others, rng.integers(0, 4 - len(names)), replace=False))
    scene = draw_scene(rng, names)
    image = f'ADE_val_{index + 1:08d}'
    clip = f'{source}{index:05d}_{0:06d}'
    save_image(root / 'ade20k/frames' / f'{image}.jpg', scene.image)
    save_image(root / 'ade20k/annotations' / f'{image}_seg.png', ade_colours(scene))
    class_id = 0 if index % 15 == 1 else ADE_CLASS[source]
    heard = '' if index % 15 == 2 else f'vggsound/{clip}.wav'
    if heard:
        save_sound(root / 'ade20k/audio' / f'{clip}.wav', source, rng)
    row = (f'{image}.jpg', heard, class_id)
    return [{**record(image, scene, source), 'split': split, 'row': row}]


def ade_colours(scene):
    """ADE20K's code for a scene: class = red / 10 * 256 + green, blue tells objects apart.

    -> (H, W, 3) uint8
    """
    coded = np.zeros_like(scene.image)
    everywhere = np.ones(coded.shape[:2], bool)
    parts = [(scene.place, everywhere)] + [(thing.name, thing.mask) for thing in scene.objects]
    for number, (name, mask) in enumerate(parts):
        coded[mask] = ADE_CLASS[name] // 256 * 10, ADE_CLASS[name] % 256, 40 * number
    return coded


# ------------------------------------------------------------------------------------------------
# Two frames side by side: VGGSound-Instruments and -Duet
# ------------------------------------------------------------------------------------------------

def write_instruments(root, split, index, seed):
    """One instrument, sometimes beside a silent object; the mask is a pickled array of 0 and 1."""
    rng = sample_generator(seed, split, index)
    names = [str(rng.choice(INSTRUMENTS))]
    if rng.random() < 0.3:
        names.append(rng.choice(SILENT))
    scene = draw_scene(rng, names)
    sample = f'sample{index:04d}'
    folder = root / 'vgg_instruments'
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', names[0], rng)
    mask = scene.objects[0].mask.astype(np.uint8)
    write_bytes(folder / 'annotations' / f'{sample}.pkl', pickle.dumps(mask, protocol=4))
    return [{**record(sample, scene, names[0]), 'split': split}]


def pair_up(records, count, rng):
    """The first `count` samples, each with one of another class. -> rows (id, class, id, class)"""
    rows = []
    for first in records[:count]:
        others = [r for r in records if r['sounding'] != first['sounding']]
        if others:
            second = others[rng.integers(len(others))]
            rows.append((first['id'], first['sounding'], second['id'], second['sounding']))
    return rows


# ------------------------------------------------------------------------------------------------
# Samples, lists, boxes and tables
# ------------------------------------------------------------------------------------------------

# vgg_duet draws nothing: it pairs samples of vggss
WRITERS = {'train': write_vggsound, 'val': write_vggsound, 'vggss': write_vggsound,
           'is4': write_is4, 'ext_vggss': write_extended, 'flickr': write_flickr,
           'ext_flickr': write_extended, 'vpo_ss': write_vpo, 'vpo_ms': write_vpo,
           'avs_s4': write_avs, 'avs_ms3': write_avs, 'ade20k': write_ade20k,
           'vgg_instruments': write_instruments}


def write_sample(job):
    """job: (root, split, index, seed). -> records"""
    root, split, index, seed = job
    return WRITERS[split](root, split, index, seed)


# The list of a split's samples and their labels
LABELS = {'train': 'vggsound/train.csv', 'val': 'vggsound/val.csv', 'vggss': 'vggss/vggss_test.csv',
          'flickr': 'flickr/flickr_test.csv', 'vpo_ss': 'vpo_ss/labels.csv',
          'vpo_ms': 'vpo_ms/labels.csv', 'avs_s4': 'avsbench/s4/avs1_s4_test.csv',
          'avs_ms3': 'avsbench/ms3/avs1_ms3_test.csv'}
# The boxes of a split: file, folder, suffix of the frames, what of a record names the sound
GT_BOXES = {'is4': ('is4/synthetic3240_bbox.json', 'is4', '.jpg', 'id'),
            'vpo_ss': ('vpo_ss/vpo_ss_bbox.json', 'vpo_ss', '.jpg', 'id'),
            'vpo_ms': ('vpo_ms/vpo_ms_bbox.json', 'vpo_ms', '.jpg', 'id'),
            'avs_s4': ('avsbench/s4/s4_box.json', 'avsbench/s4', '.png', 'clip')}
EXTENDED = {'ext_vggss': 'vggss/vggss_test_plus_silent.csv',
            'ext_flickr': 'flickr/flickr_test_plus_silent.csv'}


def write_annotations(root, splits, seed, records):
    """The annotation files of the splits that were drawn. records: those of all writers."""
    by_split = {split: [] for split in splits}
    for r in records:
        by_split[r['split']].append(r)
    for split in LABELS.keys() & splits.keys():
        write_csv(root / LABELS[split], [(r['id'], r['sounding']) for r in by_split[split]])
    for split in GT_BOXES.keys() & splits.keys():
        path, folder, suffix, audio = GT_BOXES[split]
        boxes = [{'image': f'{folder}/visual_frames/{r["id"]}{suffix}',
                  'audio': f'{folder}/audio_wav/{r[audio]}.wav', 'gt_box': r['gt_box']}
                 for r in by_split[split]]
        write_text(root / path, json.dumps(boxes))
    for split in EXTENDED.keys() & splits.keys():
        rows = [(r['id'], r['audio'], 'non-sounding') for r in by_split[split]]
        write_csv(root / EXTENDED[split], [('video', 'audio', 'label'), *rows])
    if 'vggss' in splits:
        boxes = [{'file': r['id'], 'class': r['sounding'], 'bbox': [r['bbox']]}
                 for r in by_split['vggss']]
        write_text(root / 'vggss/vggss.json', json.dumps(boxes))
    if 'ade20k' in splits:
        header = ('image_location', 'vggsound_file', 'ade_class_id')
        rows = [r['row'] for r in by_split['ade20k']]
        write_csv(root / 'ade20k/prompted_segmentation.csv', [header, *rows])
    if 'vgg_instruments' in splits:
        rows = pair_up(by_split['vgg_instruments'], splits['vgg_instruments'],
                       sample_generator(seed, 'instrument pairs', 0))
        write_csv(root / 'vgg_instruments/vgginstruments_multi_test.csv', rows)
    if 'vgg_duet' in splits:
        rows = pair_up(by_split.get('vggss', []), splits['vgg_duet'],
                       sample_generator(seed, 'vgg_duet', 0))
        write_csv(root / 'vgg_duet/vggsound_duet_test.csv', rows)
    lines = []
    for r in records:
        drawn = {key: r[key] for key in ('id', 'place', 'objects', 'sounding', 'split')}
        lines.append(json.dumps(drawn) + '\n')
    write_text(root / 'scenes.jsonl', ''.join(lines))

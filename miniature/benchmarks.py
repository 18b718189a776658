"""The miniature's other test sets: the rest of section 4.1, in the layout and with the difficulty of the real ones.

miniature/world.py draws the training pairs, VGG-SS and IS4; here are the extended sets, Flickr-SoundNet, VPO-SS and
VPO-MS, AVSBench S4 and MS3, DenseAV ADE20K, VGGSound-Instruments and -Duet. A writer makes the files of one scene, or of
one clip of five frames, from the generator of (seed, split, index), and returns a record for each sample;
write_annotations makes the lists, boxes and tables of them. The layouts are in world.py's docstring.

What is hard about a real set is hard here: sounds of nothing in sight (the extended sets), annotators who do not agree
(Flickr), small objects (VPO-SS), objects that hide each other (VPO-MS), sounds on top of each other and frames that
their source has left (MS3), several objects of the class that is asked for (ADE20K).
"""

import json
import pickle

import numpy as np
import soundfile
from PIL import Image

from miniature.drawings import CLASSES, COLOURS, PLACES, SILENT, SOUNDING, background, sprite
from miniature.sounds import AMBIENT, SAMPLE_RATE, mixture, sound
from miniature.world import (IMAGE_SIZE, OBJECT_SIZE, box_of, compose, draw_scene, record, sample_generator, save_image,
                             save_sound, write_csv)

FOLDERS = {
    'ext_vggss': ('vggss/extend_frames', 'vggss/extend_audio'),
    'flickr': ('flickr/test/frames', 'flickr/test/audio', 'flickr/test/Annotations'),
    'ext_flickr': ('flickr/extend_frames', 'flickr/extend_audio'),
    'vpo_ss': ('vpo_ss/visual_frames', 'vpo_ss/audio_wav', 'vpo_ss/gray_masks'),
    'vpo_ms': ('vpo_ms/visual_frames', 'vpo_ms/audio_wav', 'vpo_ms/gray_masks'),
    'avs_s4': ('avsbench/s4/visual_frames', 'avsbench/s4/audio_wav', 'avsbench/s4/gt_masks'),
    'avs_ms3': ('avsbench/ms3/visual_frames', 'avsbench/ms3/audio_wav', 'avsbench/ms3/gt_masks'),
    'ade20k': ('ade20k/frames', 'ade20k/audio', 'ade20k/annotations'),
    'vgg_instruments': ('vgg_instruments/frames', 'vgg_instruments/audio', 'vgg_instruments/annotations'),
    'vgg_duet': ('vgg_duet',),
}
BOX_PIXELS = 224                        # the side in which VPO's and AVSBench's boxes are counted
FLICKR_PIXELS = 256                     # the side in which Flickr's are
COARSE = (-0.04, 0.22)                  # an annotator's edge lies this far outside, as a share of the object's side
VPO_SS_SIZE = (0.20, 0.42)              # longer side of the sounding object, as a share of the image's
VPO_MS_SIZE, VPO_MS_OVERLAP = (0.36, 0.62), 0.5
VPO_MS_GROUPS = {1: 0.53, 2: 0.435, 3: 0.035}       # samples per frame: 759, 623 and 49 of the real set's groups
FRAMES_PER_CLIP = 5
RIGHT_GAIN = (0.7, 1.0)                 # of the right channel
EMPTY_EVERY = 4                         # one frame in every fourth MS3 clip shows nothing that sounds
INSTRUMENTS = ('bell', 'drum', 'whistle', 'guitar', 'siren', 'telephone')   # struck, blown, plucked or rung
ADE_CLASS = {name: 1 + 137 * i for i, name in enumerate(CLASSES)} | {name: 2500 + 83 * i for i, name in enumerate(PLACES)}


# ------------------------------------------------------------------------------------------------
# Sounds of nothing in sight: the extended sets, and Flickr's sounding samples
# ------------------------------------------------------------------------------------------------

def _write_extended(root, split, index, seed):
    """A frame and a sound that it does not make. Three kinds in turn, as Mo and Morgado (2022a) describe them."""
    rng = sample_generator(seed, split, index)
    folder = root / ('vggss' if split == 'ext_vggss' else 'flickr')
    if split == 'ext_vggss':
        video, other = f'mute{index:05d}_{0:06d}', f'else{index:05d}_{0:06d}'
    else:
        video, other = f'{20_000_130_166 + 7919 * index}', f'{30_000_130_166 + 7919 * index}'
    if index % 3 == 2:                                              # nothing in the frame can sound
        scene = draw_scene(rng, list(rng.choice(SILENT, rng.integers(1, 3), replace=False)))
    else:
        scene = draw_scene(rng)
        while not any(thing.name in SOUNDING for thing in scene.objects):
            scene = draw_scene(rng)
    if index % 3 == 1:                                              # the frame's own recording, on which it is silent
        audio, heard = video, str(rng.choice((*AMBIENT, 'silence')))
    else:                                                           # what sounds is off-screen
        seen = [thing.name for thing in scene.objects]
        audio, heard = other, str(rng.choice([name for name in SOUNDING if name not in seen]))
    save_image(folder / 'extend_frames' / f'{video}.jpg', scene.image)
    save_sound(folder / 'extend_audio' / f'{audio}.wav', heard, rng)
    return [{**record(video, scene, heard), 'split': split, 'audio': audio}]


def _write_flickr(root, split, index, seed):
    """A scene with a sounding object, as several people would have boxed it in a hurry."""
    rng = sample_generator(seed, split, index)
    source = str(rng.choice(SOUNDING))
    scene = draw_scene(rng, [source, *rng.choice(SILENT, rng.integers(0, 3), replace=False)])
    sample, folder = f'{10_000_130_166 + 7919 * index}', root / 'flickr/test'
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', source, rng)
    boxes = [_coarse_box(scene.objects[0].box, rng) for _ in range(rng.integers(2, 4))]
    (folder / 'Annotations' / f'{sample}.xml').write_text(_annotation_xml(boxes))
    return [{**record(sample, scene, source), 'split': split}]


def _coarse_box(box, rng):
    """What one annotator makes of a box: each edge off by a share of the side. -> ints, in FLICKR_PIXELS"""
    x0, y0, x1, y1 = (v * FLICKR_PIXELS / IMAGE_SIZE for v in box)
    left, top, right, bottom = rng.uniform(*COARSE, 4)
    drawn = x0 - left * (x1 - x0), y0 - top * (y1 - y0), x1 + right * (x1 - x0), y1 + bottom * (y1 - y0)
    return [int(min(max(v, 0), FLICKR_PIXELS)) for v in drawn]


def _annotation_xml(boxes):
    """One annotator per box; a bbox's first child is its number, which readers skip (the released layout)."""
    names = ('xmin', 'ymin', 'xmax', 'ymax')
    corners = [''.join(f'<{name}>{v}</{name}>' for name, v in zip(names, box)) for box in boxes]
    people = [f'  <annotator><bbox><id>{i}</id>{corner}</bbox></annotator>\n' for i, corner in enumerate(corners)]
    return '<annotation>\n' + ''.join(people) + '</annotation>\n'


# ------------------------------------------------------------------------------------------------
# Small and hidden objects: VPO-SS and VPO-MS
# ------------------------------------------------------------------------------------------------

def _write_vpo(root, split, index, seed):
    """One small sounding object (SS), or two or three near each other, of which one to three are asked for (MS)."""
    rng = sample_generator(seed, split, index)
    if split == 'vpo_ss':
        asked, names = 1, [rng.choice(SOUNDING), *rng.choice(SILENT, rng.integers(0, 3), replace=False)]
        scene = draw_scene(rng, names, sizes=VPO_SS_SIZE)
    else:
        asked = int(rng.choice(list(VPO_MS_GROUPS), p=list(VPO_MS_GROUPS.values())))
        names = list(rng.choice(SOUNDING, max(asked, 3 if rng.random() < 0.2 else 2), replace=False))
        scene = draw_scene(rng, names, sizes=VPO_MS_SIZE, overlap=VPO_MS_OVERLAP)
    records = []
    for k, thing in enumerate(scene.objects[:asked]):
        sample = f'{139 + 37 * index:012d}_{100_000 + 10 * index + k:06d}'          # <coco image>_<annotation>
        save_image(root / split / 'visual_frames' / f'{sample}.jpg', scene.image)
        save_image(root / split / 'gray_masks' / f'{sample}.jpg', thing.mask.astype(np.uint8) * 255)
        save_sound(root / split / 'audio_wav' / f'{sample}.wav', thing.name, rng)
        records.append({**record(sample, scene, thing.name), 'split': split, 'gt_box': _gt_box(thing.mask)})
    return records


def _gt_box(mask):
    return [v * BOX_PIXELS / IMAGE_SIZE for v in box_of(mask)]


# ------------------------------------------------------------------------------------------------
# Five frames and a stereo sound per clip: AVSBench S4 and MS3
# ------------------------------------------------------------------------------------------------

def draw_views(rng, names, leave=None):
    """The frames of one clip: the same objects in the same place, moved, nearer or farther, in another light.

    leave: {frame number from 0: names that are out of sight in it}. -> list of FRAMES_PER_CLIP Scenes
    """
    place, (backdrop, *looks) = str(rng.choice(PLACES)), rng.integers(2 ** 32, size=1 + len(names))
    colours = [str(rng.choice(list(COLOURS))) for _ in names]
    scenes = []
    while len(scenes) < FRAMES_PER_CLIP:
        light, there = rng.uniform(0.75, 1.2), []
        picture = background(place, IMAGE_SIZE, np.random.default_rng(backdrop)) * light
        for name, colour, look in zip(names, colours, looks):
            if name not in (leave or {}).get(len(scenes), ()):
                pixels = round(rng.uniform(*OBJECT_SIZE[len(names)]) * IMAGE_SIZE)
                there.append((name, colour, sprite(name, colour, pixels, np.random.default_rng(look))))
        picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        shown, their_colours, sprites = zip(*there) if there else ((), (), ())
        if scene := compose(picture, place, shown, their_colours, list(sprites), rng):
            scenes.append(scene)
    return scenes


def _write_avs(root, split, index, seed):
    """S4: one sound, one object that makes it. MS3: up to three at once, among others that could sound and do not.

    MS3's shares of one, two and three sources are those of the real list; now and then a frame shows none of them.
    """
    rng, folder = sample_generator(seed, split, index), root / 'avsbench' / split.removeprefix('avs_')
    count = 1 if split == 'avs_s4' else int(rng.choice((1, 2, 3), p=(0.5, 0.44, 0.06)))
    sources = [str(name) for name in rng.choice(SOUNDING, count, replace=False)]
    silent = [str(rng.choice(SILENT))] if split == 'avs_s4' and rng.random() < 0.5 else []
    if split == 'avs_ms3':
        others = [name for name in CLASSES if name not in sources]
        silent = [str(name) for name in rng.choice(others, 3 - count, replace=False)]
    empty = split == 'avs_ms3' and index % EMPTY_EVERY == 0
    scenes = draw_views(rng, sources + silent, {int(rng.integers(FRAMES_PER_CLIP)): sources} if empty else None)
    clip, label, records = f'{folder.name}clip{index:05d}', ', '.join(sources), []
    heard = mixture(*(sound(name, rng) for name in sources)) if count > 1 else sound(sources[0], rng)
    save_stereo(folder / 'audio_wav' / f'{clip}.wav', heard, rng)
    for k, scene in enumerate(scenes, 1):
        masks = [thing.mask for thing in scene.objects if thing.name in sources]
        mask = np.any(masks, 0) if masks else np.zeros(scene.image.shape[:2], bool)
        save_image(folder / 'visual_frames' / f'{clip}_{k}.png', scene.image)
        save_image(folder / 'gt_masks' / f'{clip}_{k}.png', mask.astype(np.uint8) * 255)
        records.append({**record(f'{clip}_{k}', scene, label), 'split': split, 'clip': clip, 'gt_box': _gt_box(mask)})
    return records


def save_stereo(path, wav, rng):
    """(n,) -> a stereo wav of half the length: first half left, second half right, fainter, with its own hiss.

    The real clips last 5 s, half of what the model listens to, and the release plays their channels one after the other.
    """
    left, right = np.split(wav / max(1, np.abs(wav).max()), 2)
    right = right * rng.uniform(*RIGHT_GAIN) + 1e-3 * rng.standard_normal(len(right))
    soundfile.write(path, np.stack([left, right], 1).clip(-1, 1), SAMPLE_RATE, subtype='PCM_16')


# ------------------------------------------------------------------------------------------------
# Every object of a class: DenseAV ADE20K
# ------------------------------------------------------------------------------------------------

def _write_ade20k(root, split, index, seed):
    """A scene coded object by object, and a sound that asks for a class. Two rows in fifteen ask for nothing usable."""
    rng = sample_generator(seed, split, index)
    source = str(rng.choice(SOUNDING))
    names = [source] * (2 if rng.random() < 0.3 else 1)             # "every dog": some scenes hold two
    names += list(rng.choice([name for name in CLASSES if name != source], rng.integers(0, 4 - len(names)), replace=False))
    scene = draw_scene(rng, names)
    image, clip = f'ADE_val_{index + 1:08d}', f'{source}{index:05d}_{0:06d}'
    save_image(root / 'ade20k/frames' / f'{image}.jpg', scene.image)
    save_image(root / 'ade20k/annotations' / f'{image}_seg.png', _ade_colours(scene))
    class_id, heard = ADE_CLASS[source], f'vggsound/{clip}.wav'
    if index % 15 == 1:
        class_id = 0
    if index % 15 == 2:
        heard = ''
    else:
        save_sound(root / 'ade20k/audio' / f'{clip}.wav', source, rng)
    row = (f'{image}.jpg', heard, class_id)
    return [{**record(image, scene, source), 'split': split, 'row': row}]


def _ade_colours(scene):
    """ADE20K's code for a scene: class = red / 10 * 256 + green, blue tells objects apart. -> (H, W, 3) uint8"""
    coded = np.zeros_like(scene.image)
    whole = np.ones(coded.shape[:2], bool)
    for number, (name, mask) in enumerate([(scene.place, whole)] + [(thing.name, thing.mask) for thing in scene.objects]):
        coded[mask] = ADE_CLASS[name] // 256 * 10, ADE_CLASS[name] % 256, 40 * number
    return coded


# ------------------------------------------------------------------------------------------------
# Two frames side by side: VGGSound-Instruments and -Duet
# ------------------------------------------------------------------------------------------------

def _write_instruments(root, split, index, seed):
    """One instrument, sometimes beside something silent; the mask is a pickled array of 0 and 1."""
    rng = sample_generator(seed, split, index)
    source = str(rng.choice(INSTRUMENTS))
    scene = draw_scene(rng, [source] + ([rng.choice(SILENT)] if rng.random() < 0.3 else []))
    sample, folder = f'sample{index:04d}', root / 'vgg_instruments'
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', source, rng)
    mask = scene.objects[0].mask.astype(np.uint8)
    (folder / 'annotations' / f'{sample}.pkl').write_bytes(pickle.dumps(mask, protocol=4))
    return [{**record(sample, scene, source), 'split': split}]


def _pairs(records, count, rng):
    """The first `count` samples, each with one of another class. -> rows (id, class, id, class)"""
    rows = []
    for first in records[:count]:
        others = [r for r in records if r['sounding'] != first['sounding']]
        if others:
            second = others[rng.integers(len(others))]
            rows.append((first['id'], first['sounding'], second['id'], second['sounding']))
    return rows


# ------------------------------------------------------------------------------------------------
# Lists, boxes and tables
# ------------------------------------------------------------------------------------------------

WRITERS = {'ext_vggss': _write_extended, 'flickr': _write_flickr, 'ext_flickr': _write_extended, 'vpo_ss': _write_vpo,
           'vpo_ms': _write_vpo, 'avs_s4': _write_avs, 'avs_ms3': _write_avs, 'ade20k': _write_ade20k,
           'vgg_instruments': _write_instruments}


def write_annotations(root, splits, seed, by_split):
    """The annotation files of the splits that were drawn. by_split: {split: records of its writer}."""
    def labels(path, split):
        write_csv(root / path, [(r['id'], r['sounding']) for r in by_split[split]])

    def gt_boxes(path, split, folder, suffix, audio):
        boxes = [{'image': f'{folder}/visual_frames/{r["id"]}{suffix}', 'audio': f'{folder}/audio_wav/{r[audio]}.wav',
                  'gt_box': r['gt_box']} for r in by_split[split]]
        (root / path).write_text(json.dumps(boxes))

    for split, folder in (('ext_vggss', 'vggss'), ('ext_flickr', 'flickr')):
        if split in splits:
            rows = [(r['id'], r['audio'], 'non-sounding') for r in by_split[split]]
            write_csv(root / folder / f'{folder}_test_plus_silent.csv', [('video', 'audio', 'label'), *rows])
    if 'flickr' in splits:
        labels('flickr/flickr_test.csv', 'flickr')
    for split in ('vpo_ss', 'vpo_ms'):
        if split in splits:
            gt_boxes(f'{split}/{split}_bbox.json', split, split, '.jpg', 'id')
            labels(f'{split}/labels.csv', split)
    if 'avs_s4' in splits:
        gt_boxes('avsbench/s4/s4_box.json', 'avs_s4', 'avsbench/s4', '.png', 'clip')
        labels('avsbench/s4/avs1_s4_test.csv', 'avs_s4')
    if 'avs_ms3' in splits:
        labels('avsbench/ms3/avs1_ms3_test.csv', 'avs_ms3')
    if 'ade20k' in splits:
        rows = [r['row'] for r in by_split['ade20k']]
        write_csv(root / 'ade20k/prompted_segmentation.csv', [('image_location', 'vggsound_file', 'ade_class_id'), *rows])
    if 'vgg_instruments' in splits:
        rows = _pairs(by_split['vgg_instruments'], splits['vgg_instruments'], sample_generator(seed, 'instrument pairs', 0))
        write_csv(root / 'vgg_instruments/vgginstruments_multi_test.csv', rows)
    if 'vgg_duet' in splits:
        rows = _pairs(by_split.get('vggss', []), splits['vgg_duet'], sample_generator(seed, 'vgg_duet', 0))
        write_csv(root / 'vgg_duet/vggsound_duet_test.csv', rows)

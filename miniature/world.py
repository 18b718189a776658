"""The miniature's world: scenes of drawn objects, one of which sounds, in the layout of the real datasets.

    python -m miniature.world                          # writes data/miniature, under a minute on two cores
    python -m miniature.world --seed 1 --out DIR       # another world of the same kind, for tuning

A scene holds one to three objects of miniature/drawings.py on a textured place, with exact masks; a training pair is
a scene and two seconds of the sound (miniature/sounds.py) of one of its objects. What is written is read by data.py
as if it were the real thing (section 4.1):

    vggsound/frames/<id>.jpg, vggsound/audio/<id>.wav, vggsound/train.csv, vggsound/val.csv       id,label
    vggss/frames, audio, vggss.json, vggss_test.csv, and gt_masks/<id>.png                        held-out scenes
    is4/visual_frames, audio_wav, gt_masks, synthetic3240_bbox.json                               two sounds per frame
    scenes.jsonl                                                                                  what was drawn

and, by miniature/benchmarks.py, the other test sets of that section:

    vggss/extend_frames, extend_audio, vggss_test_plus_silent.csv                   what is heard is not in sight
    flickr/test/frames, audio, Annotations/<id>.xml, flickr_test.csv                boxes of several annotators
    flickr/extend_frames, extend_audio, flickr_test_plus_silent.csv                 as for vggss
    vpo_ss/visual_frames, audio_wav, gray_masks, vpo_ss_bbox.json, labels.csv       one small sounding object
    vpo_ms/..., vpo_ms_bbox.json                                                    two or three, partly hidden
    avsbench/s4/visual_frames, gt_masks, audio_wav, s4_box.json, avs1_s4_test.csv   five frames per clip, stereo
    avsbench/ms3/..., avs1_ms3_test.csv                                             one to three sounds at once
    ade20k/frames, audio, annotations/<image>_seg.png, prompted_segmentation.csv    the mask of a whole class
    vgg_instruments/frames, audio, annotations/<id>.pkl, vgginstruments_multi_test.csv   pairs of frames
    vgg_duet/vggsound_duet_test.csv                                                 pairs of samples of vggss

The two sets of AVSBench-Robust are made from avsbench by data.py. Everything follows from the seed. Each sample draws
from its own generator, seeded with (seed, split, index), so train, validation and test share no scene and no clip,
and any sample can be remade alone.
"""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from miniature.drawings import CLASSES, COLOURS, PLACES, SOUNDING, background, sprite
from miniature.sounds import SAMPLE_RATE, sound

VERSION = 2                    # raise it when the same seed no longer gives the same files
IMAGE_SIZE = 96                # pixels, square
SPLITS = {'train': 2400, 'val': 240, 'vggss': 300, 'is4': 240,   # scenes; is4 gives two samples each
          'ext_vggss': 300, 'flickr': 120, 'ext_flickr': 120, 'vpo_ss': 120, 'vpo_ms': 80, 'avs_s4': 24, 'avs_ms3': 20,
          'ade20k': 120, 'vgg_instruments': 120, 'vgg_duet': 120}  # avs: clips of five frames; vgg_duet: pairs of vggss
FOLDERS = {'train': ('vggsound/frames', 'vggsound/audio'), 'val': ('vggsound/frames', 'vggsound/audio'),
           'vggss': ('vggss/frames', 'vggss/audio', 'vggss/gt_masks'),
           'is4': ('is4/visual_frames', 'is4/audio_wav', 'is4/gt_masks')}
OBJECTS_PER_SCENE = {1: 0.35, 2: 0.40, 3: 0.25}                  # share of the scenes
OBJECT_SIZE = {1: (0.5, 0.92), 2: (0.40, 0.62), 3: (0.32, 0.5)}  # longer side, as a share of the image's
SMALL, SMALL_SHARE = (0.26, 0.36), 0.08                          # objects much smaller than their scene's others
OVERLAP, OCCLUDED_OVERLAP, OCCLUDED_SHARE = 0.04, 0.30, 0.15     # of the smaller box; scenes that allow more
MIN_VISIBLE_PIXELS = 60


# ------------------------------------------------------------------------------------------------
# Scenes
# ------------------------------------------------------------------------------------------------

@dataclass
class DrawnObject:
    name: str
    colour: str
    mask: np.ndarray            # (H, W) bool, the visible part
    box: tuple                  # (x0, y0, x1, y1) pixels around the visible part, right and bottom excluded


@dataclass
class Scene:
    image: np.ndarray           # (H, W, 3) uint8
    objects: list               # DrawnObject, in drawing order: later ones cover earlier ones
    place: str


def sample_generator(seed, split, index):
    """The random generator of one sample: the same on every machine, different for every (seed, split, index)."""
    return np.random.default_rng([seed, *split.encode(), index])


def draw_scene(rng, names=None, size=IMAGE_SIZE, sizes=None, overlap=None):
    """A scene of given classes, or of one to three random different ones. -> Scene, size x size pixels.

    sizes: least and most length of each object, as a share of the image's; overlap: the most that two boxes may share,
    as a share of the smaller. Both are drawn as the constants above say where they are not given.
    """
    if names is None:
        count = rng.choice(list(OBJECTS_PER_SCENE), p=list(OBJECTS_PER_SCENE.values()))
        names = list(rng.choice(CLASSES, count, replace=False))
    place = str(rng.choice(PLACES))
    picture = Image.fromarray(background(place, size, rng))
    colours = [str(rng.choice(list(COLOURS))) for _ in names]
    sprites = [sprite(name, colour, _object_pixels(len(names), size, rng, sizes), rng)
               for name, colour in zip(names, colours)]
    scene = compose(picture, place, names, colours, sprites, rng, overlap)
    return scene or draw_scene(rng, names, size, sizes, overlap)    # one was hidden behind another: draw again


def compose(picture, place, names, colours, sprites, rng, overlap=None):
    """Sprites laid on a background picture, later ones over earlier ones. -> Scene, or None if one is hidden."""
    size = picture.width
    sprites, corners = _arrange(sprites, size, rng, overlap)
    owner = np.zeros((size, size), np.uint8)                        # 1 + index of the object seen at each pixel
    for i, (drawn, (x, y)) in enumerate(zip(sprites, corners)):
        picture.paste(drawn, (x, y), drawn)
        shape = np.asarray(drawn.getchannel('A')) > 127
        owner[y:y + drawn.height, x:x + drawn.width][shape[:size - y, :size - x]] = i + 1
    image = _photograph(np.asarray(picture, np.float32), rng)
    objects = [DrawnObject(str(name), colour, owner == i + 1, box_of(owner == i + 1))
               for i, (name, colour) in enumerate(zip(names, colours))]
    if any(thing.mask.sum() < MIN_VISIBLE_PIXELS for thing in objects):
        return None
    return Scene(image, objects, place)


def _object_pixels(count, size, rng, sizes):
    share = rng.uniform(*(sizes or (SMALL if rng.random() < SMALL_SHARE else OBJECT_SIZE[count])))
    return max(12, round(share * size))


def _arrange(sprites, size, rng, overlap):
    """Corners for the sprites such that no two boxes overlap too much; shrinks them when they do not fit."""
    if overlap is None:
        overlap = OCCLUDED_OVERLAP if rng.random() < OCCLUDED_SHARE else OVERLAP
    while True:
        for _ in range(15):
            corners = [tuple(int(rng.integers(0, max(1, size - side + 1))) for side in s.size) for s in sprites]
            boxes = [(x, y, x + s.width, y + s.height) for (x, y), s in zip(corners, sprites)]
            if all(_overlap(a, b) <= overlap for i, a in enumerate(boxes) for b in boxes[i + 1:]):
                return sprites, corners
        sprites = [s.resize((max(8, int(s.width * 0.92)), max(8, int(s.height * 0.92))), Image.Resampling.LANCZOS)
                   for s in sprites]


def _overlap(a, b):
    """Shared area of two boxes as a share of the smaller one's."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _photograph(pixels, rng):
    """Contrast, brightness and grain of a camera. (H, W, 3) float -> uint8."""
    pixels = (pixels - 128) * rng.uniform(0.8, 1.1) + 128 + rng.uniform(-18, 18)
    pixels = pixels + rng.standard_normal(pixels.shape) * rng.uniform(0, 5)
    return pixels.clip(0, 255).astype(np.uint8)


def box_of(mask):
    """(H, W) bool -> (x0, y0, x1, y1) in pixels, right and bottom excluded; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# ------------------------------------------------------------------------------------------------
# Samples on disk
# ------------------------------------------------------------------------------------------------

def save_image(path, array):
    """(H, W) or (H, W, 3) uint8 -> a file, by its suffix a PNG or a JPEG of good quality."""
    Image.fromarray(array).save(path, **({'quality': 95, 'subsampling': 0} if path.suffix == '.jpg' else {}))


def save_sound(path, name, rng):
    """Two seconds of a sound, or of 'silence' -> a wav file."""
    soundfile.write(path, sound(name, rng), SAMPLE_RATE, subtype='PCM_16')


def record(sample, scene, sounding):
    """The line of scenes.jsonl that says what is in a sample; captions are made from nothing else."""
    things = [{'name': thing.name, 'colour': thing.colour, 'box': thing.box} for thing in scene.objects]
    return {'id': sample, 'place': scene.place, 'objects': things, 'sounding': sounding}


def _write_vggsound(root, split, index, seed):
    rng = sample_generator(seed, split, index)
    scene = draw_scene(rng)
    while not any(thing.name in SOUNDING for thing in scene.objects):
        scene = draw_scene(rng)
    source = str(rng.choice([thing.name for thing in scene.objects if thing.name in SOUNDING]))
    sample = f'{split}{index:05d}_{0:06d}'                          # youtubeid_startsecond, as in VGGSound
    folder = root / ('vggss' if split == 'vggss' else 'vggsound')
    save_image(folder / 'frames' / f'{sample}.jpg', scene.image)
    save_sound(folder / 'audio' / f'{sample}.wav', source, rng)
    mask = next(thing for thing in scene.objects if thing.name == source).mask
    if split == 'vggss':
        save_image(folder / 'gt_masks' / f'{sample}.png', mask.astype(np.uint8) * 255)
    box = [round(v / IMAGE_SIZE, 6) for v in box_of(mask)]
    return [{**record(sample, scene, source), 'split': split, 'bbox': box}]


def _write_is4(root, split, index, seed):
    """Two sounding objects, now and then a silent third, and one sample for either sound (interactive task)."""
    rng = sample_generator(seed, split, index)
    names = list(rng.choice(SOUNDING, 2, replace=False))
    if rng.random() < 0.3:
        names.append(rng.choice([name for name in CLASSES if name not in SOUNDING]))
    scene = draw_scene(rng, names)
    records = []
    for thing in scene.objects[:2]:
        sample = f'{names[0]}_{names[1]}_{index}_{thing.name}'      # the scene, then the sounding one, as in IS4
        save_image(root / 'is4/visual_frames' / f'{sample}.jpg', scene.image)
        save_image(root / 'is4/gt_masks' / f'{sample}.png', thing.mask.astype(np.uint8) * 255)
        save_sound(root / 'is4/audio_wav' / f'{sample}.wav', thing.name, rng)
        box = [v * 224 / IMAGE_SIZE for v in thing.box]             # the released file counts in 224 pixels
        records.append({**record(sample, scene, thing.name), 'split': split, 'bbox': box})
    return records


def _write_sample(job):
    from miniature import benchmarks            # here and not above: it draws its scenes with this file
    root, split, index, seed = job
    if split in ('train', 'val', 'vggss'):
        return _write_vggsound(root, split, index, seed)
    return (_write_is4 if split == 'is4' else benchmarks.WRITERS[split])(root, split, index, seed)


def write_csv(path, rows):
    """Rows of texts -> a file of comma-separated lines, quoted where a text holds a comma."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def _write_annotations(root, splits, seed, records):
    from miniature import benchmarks
    by_split = {split: [r for r in records if r['split'] == split] for split in splits}
    for split in {'train', 'val'} & splits.keys():
        write_csv(root / f'vggsound/{split}.csv', [(r['id'], r['sounding']) for r in by_split[split]])
    if 'vggss' in splits:
        boxes = [{'file': r['id'], 'class': r['sounding'], 'bbox': [r['bbox']]} for r in by_split['vggss']]
        (root / 'vggss/vggss.json').write_text(json.dumps(boxes))
        write_csv(root / 'vggss/vggss_test.csv', [(r['id'], r['sounding']) for r in by_split['vggss']])
    if 'is4' in splits:
        boxes = [{'image': f'is4/visual_frames/{r["id"]}.jpg', 'audio': f'is4/audio_wav/{r["id"]}.wav',
                  'gt_box': r['bbox']} for r in by_split['is4']]
        (root / 'is4/synthetic3240_bbox.json').write_text(json.dumps(boxes))
    benchmarks.write_annotations(root, splits, seed, by_split)
    drawn = [{key: r[key] for key in ('id', 'place', 'objects', 'sounding', 'split')} for r in records]
    (root / 'scenes.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in drawn))


# ------------------------------------------------------------------------------------------------
# The default set: made once, atomically, and checked when it is used again
# ------------------------------------------------------------------------------------------------

def _sizes(root):
    """{path below root: bytes} of every file but the manifest."""
    files = (path for path in root.rglob('*') if path.is_file() and path.name != 'world.json')
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def _manifest(root):
    try:
        return json.loads((root / 'world.json').read_text())
    except (OSError, ValueError):
        return None


def ready(root, seed=0, splits=None):
    """Whether root holds this very world, whole: same version, seed and sizes, no file missing or cut short.

    Files beside the world's own (captions, say) are nobody's business here.
    """
    root, manifest = Path(root), _manifest(Path(root))
    if not manifest or (manifest['version'], manifest['seed'], manifest['splits']) != (VERSION, seed, splits or SPLITS):
        return False
    there = _sizes(root)
    return all(there.get(name) == size for name, size in manifest['files'].items())


def build(root, seed=0, splits=None, processes=None, force=False):
    """Write the world to root unless it is there already; a split that is not named is left out. -> root as a Path.

    The files are made in a folder beside root that takes its name at the end, so root is never half a world. What is
    damaged is drawn again. ValueError when root holds anything that this would lose: force takes it away; and when a
    split has no such name.
    """
    from miniature import benchmarks
    root, splits = Path(root), splits or SPLITS
    if unknown := splits.keys() - (FOLDERS | benchmarks.FOLDERS).keys():
        raise ValueError(f'the world has no split {min(unknown)!r}: choose from {", ".join(SPLITS)}')
    if root.is_file():
        raise ValueError(f'{root} is a file: name a folder')
    if not force and ready(root, seed, splits):
        return root
    if root.exists() and not force:
        manifest = _manifest(root) or {'files': {}, 'seed': seed}
        foreign = _sizes(root).keys() - manifest['files'].keys()
        if foreign or manifest['seed'] != seed:
            what = f'{min(foreign)}, which' if foreign else f'the world of seed {manifest["seed"]}, and it'
            raise ValueError(f'{root} is not the whole world of seed {seed} and holds {what} would be lost: name another '
                             'folder, move it away, or draw anew with python -m miniature.world --force')
    place = Path(os.path.realpath(root))                            # where a link leads
    partial = place.with_name(f'{place.name}.partial-{os.getpid()}')
    shutil.rmtree(partial, ignore_errors=True)
    for folder in (folder for split in splits for folder in (FOLDERS | benchmarks.FOLDERS)[split]):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(partial, split, index, seed) for split, count in splits.items() if split != 'vgg_duet'
            for index in range(count)]                              # vgg_duet draws nothing: it pairs samples of vggss
    try:
        with multiprocessing.get_context('spawn').Pool(processes or usable_cores()) as pool:
            workers = multiprocessing.active_children()
            written = _results(pool.imap(_write_sample, jobs), workers, root)
            records = [r for rs in tqdm(written, f'drawing {root.name}', len(jobs), unit=' scenes') for r in rs]
        _write_annotations(partial, splits, seed, records)
        manifest = {'version': VERSION, 'seed': seed, 'splits': splits, 'files': _sizes(partial)}
        (partial / 'world.json').write_text(json.dumps(manifest))
        if place.exists():
            shutil.rmtree(place)
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _results(written, workers, root):
    """What a Pool's imap gives. OSError where one of its processes has ended: imap would wait."""
    while True:
        try:
            yield written.next(timeout=1)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            if not all(worker.is_alive() for worker in workers):
                raise OSError(f'a process that drew {root} has ended: free memory and start again; '
                              'a script of your own calls build below if __name__ == "__main__"'
                              ) from None


def usable_cores():
    """Cores this process may use, eight at most: each costs a Python of its own."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)


def main():
    from resumable import some_path     # here, not above: drawing needs no torch
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=some_path, default='data/miniature',
                        help='folder to write (default: data/miniature)')
    parser.add_argument('--seed', type=int, default=0, help='another seed is another world (default: 0)')
    parser.add_argument('--force', action='store_true', help='draw it again even if it is there and whole')
    args = parser.parse_args()
    try:
        print(build(args.out, args.seed, force=args.force))
    except (OSError, ValueError) as error:
        sys.exit(f'miniature.world: {error}')


if __name__ == '__main__':
    main()

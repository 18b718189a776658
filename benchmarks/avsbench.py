"""AVSBench, and AVSBench-Robust on it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.lists import BenchmarkSample, read_boxes, read_rows, spaced, unique
from media import GROUND_TRUTH_SIZE, file_of, sound_file

OFFSCREEN_SEED = 42                     # AVSBench-Robust's


def _list_avsbench(folder, annotation, boxes):
    """AVSBench (Zhou et al., 2022): lines <clip>_<1..5>,label; five frames share the sound <clip>.wav."""
    samples = []
    for name, label in read_rows(folder / annotation, ('id', 'label')):
        samples.append(BenchmarkSample(name, [file_of(folder / 'visual_frames', name, ('.png', '.jpg'))],
                                       [sound_file(folder / 'audio_wav', name.rpartition('_')[0])], spaced(label),
                                       [boxes[name]] if name in boxes else None,
                                       [file_of(folder / 'gt_masks', name, ('.png',))], unit=GROUND_TRUTH_SIZE,
                                       stereo=True))
    return samples


def list_avs_s4(root):
    """AVSBench S4, single source; boxes, s4_box.json in 224 pixels, by Senocak et al. (2025)."""
    folder = Path(root) / 'avsbench/s4'
    path = folder / 's4_box.json'
    entries = read_boxes(path, 'image', 'gt_box')
    boxes = unique([(Path(entry['image']).stem, entry['gt_box']) for entry in entries], path)
    samples = _list_avsbench(folder, 'avs1_s4_test.csv', boxes)
    if bare := [s.id for s in samples if s.boxes is None]:
        raise ValueError(f'{path} has no box for {bare[0]} and {len(bare) - 1} others: fetch it '
                         'again')
    return samples


def list_avs_ms3(root):
    """AVSBench MS3, several sources: labels such as "guitar, violin", masks only; some are empty, and stay."""
    return _list_avsbench(Path(root) / 'avsbench/ms3', 'avs1_ms3_test.csv', {})


def list_robust_s4(root):
    """AVSBench-Robust on S4 (Li et al., 2025)."""
    return with_negatives(list_avs_s4(root))


def list_robust_ms3(root):
    """AVSBench-Robust on MS3."""
    return with_negatives(list_avs_ms3(root))


CATEGORIES = {      # the broad categories between which sounds are swapped; a word of none is a category of its own
    'music': 'piano guitar violin tabla marimba ukulele glockenspiel cello drum flute bell whistle',
    'human': 'man woman baby female male girl boy child person people speech singer',
    'animal': 'dog cat lion lions bird horse coyote wolf frog',
    'device': 'keyboard gun mower mowing helicopter bus buses car chainsaw chainsawing ambulance siren truck clock '
              'telephone'}


def categories(label):
    """The categories of a class name, or of several with commas between them. 'playing violin, cat' -> music, animal."""
    found = set()
    for name in label.split(', '):
        words = set(re.findall('[a-z]+', name.lower()))
        found |= {kind for kind, members in CATEGORIES.items() if words & set(members.split())} or {name}
    return found


def with_negatives(samples):
    """Every sample as it is, then every one in silence, in noise, and under the sound of something off-screen.

    Paper: it takes its negatives from Li et al. (2025), which fix the seed 42 and swap sounds between broad categories.
    Here a clip's partner, drawn from (42, the clip's number), shares no category with any of its sources; where no
    clip is as far, it shares no class; where none is, it is any other.
    """
    heard = {}                                                          # the classes of each clip's sound
    for s in samples:
        heard.setdefault(s.sounds[0], set()).update(s.label.split(', '))
    kinds, partner = {sound: categories(', '.join(names)) for sound, names in heard.items()}, {}
    for number, sound in enumerate(heard):
        others = [other for other in heard if other != sound]
        pool = ([other for other in others if not kinds[other] & kinds[sound]]
                or [other for other in others if not heard[other] & heard[sound]] or others)
        if not pool:
            raise ValueError(f'{sound} is the only sound of its set: off-screen sounds need another clip')
        partner[sound] = pool[np.random.default_rng((OFFSCREEN_SEED, number)).integers(len(pool))]

    def under(condition, sounds):
        return [replace(s, id=f'{s.id}_{condition}', group=s.id, condition=condition, sounds=sounds(s), number=number)
                for number, s in enumerate(samples)]

    return (samples + under('silence', lambda s: []) + under('noise', lambda s: [])
            + under('offscreen', lambda s: [partner[s.sounds[0]]]))

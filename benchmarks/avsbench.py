"""AVSBench (Zhou et al., 2022) and AVSBench-Robust (Li et al., 2025)."""

import re
from dataclasses import replace

import numpy as np

from benchmarks.lists import BenchmarkSample, read_boxes, read_rows
from media import GROUND_TRUTH_SIZE, SOUNDS, file_of

OFFSCREEN_SEED = 42             # AVSBench-Robust's
CATEGORIES = {                  # a class with none of these words is a category of its own
    'music': 'piano guitar violin tabla marimba ukulele glockenspiel cello drum flute bell whistle',
    'human': 'man woman baby female male girl boy child person people speech singer',
    'animal': 'dog cat lion lions bird horse coyote wolf frog',
    'device': 'keyboard gun mower mowing helicopter bus buses car chainsaw chainsawing ambulance '
              'siren truck clock telephone'}


def list_avs_s4(root):
    """S4: one source. Senocak et al. (2025) made its boxes, s4_box.json in 224 pixels."""
    path = root / 'avsbench/s4/s4_box.json'
    boxes = read_boxes(path, 'image', 'gt_box')
    samples = list_avsbench(root / 'avsbench/s4', 'avs1_s4_test.csv')
    for s in samples:
        if s.id not in boxes:
            raise ValueError(f'{path} has no box for {s.id}: fetch it again')
        s.boxes, _ = boxes[s.id]
    return samples


def list_avs_ms3(root):
    """MS3: several sources, labels such as "guitar, violin", no boxes. Empty masks are kept."""
    return list_avsbench(root / 'avsbench/ms3', 'avs1_ms3_test.csv')


def list_avsbench(folder, list_file):
    """Lines <clip>_<1..5>,label; the five frames of a clip share the sound <clip>.wav."""
    samples = []
    for name, label in read_rows(folder / list_file, ('id', 'label')):
        frame = file_of(folder / 'visual_frames', name, ('.png', '.jpg'))
        sound = file_of(folder / 'audio_wav', name.rpartition('_')[0], SOUNDS)
        mask = folder / f'gt_masks/{name}.png'
        samples.append(BenchmarkSample(name, [frame], [sound], label.replace('_', ' '),
                                       masks=[mask], unit=GROUND_TRUTH_SIZE, stereo=True))
    return samples


def with_negatives(samples):
    """Samples with labels, then all of them again in silence, in noise and with other sounds."""
    listed = list(samples)
    partners = offscreen_partners(samples)
    for condition in ('silence', 'noise', 'offscreen'):
        for number, s in enumerate(samples):
            sounds = [partners[s.sounds[0]]] if condition == 'offscreen' else []
            listed.append(replace(s, id=f'{s.id}_{condition}', group=s.id, condition=condition,
                                  sounds=sounds, number=number))
    return listed


def offscreen_partners(samples):
    """{sound: the sound of another clip}, for the sounds of these samples.

    Paper [42]: negatives are those of Li et al. (2025), who fix the seed 42 and swap sounds between
    broad categories. Here the partner is drawn with the seed (42, number of the clip) from the
    clips that share no category with this one; if there are none, no class; else from all others.
    """
    classes = {}                # of each sound
    for s in samples:
        classes.setdefault(s.sounds[0], set()).update(s.label.split(', '))
    kinds = {sound: categories(', '.join(names)) for sound, names in classes.items()}
    partners = {}
    for number, sound in enumerate(classes):
        others = [other for other in classes if other != sound]
        if not others:
            raise ValueError(f'{sound} is the only sound: off-screen sounds need another clip')
        unlike = [other for other in others if not kinds[other] & kinds[sound]]
        different = [other for other in others if not classes[other] & classes[sound]]
        pool = unlike or different or others
        rng = np.random.default_rng((OFFSCREEN_SEED, number))
        partners[sound] = pool[rng.integers(len(pool))]
    return partners


def categories(label):
    """The categories in a label: 'playing violin, cat' -> {'music', 'animal'}."""
    found = set()
    for name in label.split(', '):
        words = set(re.findall('[a-z]+', name.lower()))
        kinds = {kind for kind, members in CATEGORIES.items() if words & set(members.split())}
        found |= kinds or {name}
    return found

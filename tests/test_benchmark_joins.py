"""Each sample of the fourteen sets has its own frame, sound, boxes, mask, label and group.

All samples of a set differ in every respect: a frame is of one grey, a sound of one level. Frames
have 56 x 28 pixels, each of which is 4 x 8 of the 224 x 224 that are scored.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
import soundfile
import torch

import data
import media
from test_benchmarks import mask, picture, pickled, table, text

SECONDS = 0.5
SIZE = 56, 28


@dataclass
class Expected:
    id: str
    greys: tuple                # at the left and at the right end of the frame
    wav: tuple                  # first and last sample
    label: object
    group: str
    boxes: torch.Tensor | None
    mask: torch.Tensor | None = None
    condition: str = 'positive'
    sources: list = field(default_factory=list)


def frame(path, grey):
    picture(path, SIZE, (grey,) * 3)


def sound(path, *levels):
    """One channel for each level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.tile(np.array(levels, np.float32), (8000, 1))
    soundfile.write(path, channels, 16_000, subtype='FLOAT')


def filled(*boxes, size=(224, 224)):
    """Boxes in pixels -> a map with as many boxes at each pixel."""
    found = torch.zeros(size)
    for x0, y0, x1, y1 in boxes:
        found[y0:y1, x0:x1] += 1
    return found


def scored(box):
    x0, y0, x1, y1 = box
    return 4 * x0, 8 * y0, 4 * x1, 8 * y1


# ------------------------------------------------------------------------------------------------
# The sets: each function writes one and returns what must be read
# ------------------------------------------------------------------------------------------------

VGGSS = {       # grey, level, boxes as quarters of the frame, mask in the frame's pixels
    'b_000020': (40, 0.125, [(0, 0, 2, 1), (3, 2, 4, 4)], None),
    'a_000010': (80, 0.25, [(1, 0, 3, 2)], (8, 4, 16, 12)),
    'c_000030': (120, 0.375, [(0, 1, 1, 4)], (24, 8, 40, 24))}


def vggss(root):
    text(root / 'vggss/vggss.json', [{'file': name, 'class': f'class of {name[0]}',
                                      'bbox': [[v / 4 for v in box] for box in boxes]}
                                     for name, (_, _, boxes, _) in VGGSS.items()])
    expected = []
    for name, (grey, level, boxes, shape) in VGGSS.items():
        frame(root / f'vggss/frames/{name}.jpg', grey)
        sound(root / f'vggss/audio/{name}.wav', level)
        if shape:
            mask(root / f'vggss/gt_masks/{name}.png', shape, SIZE)
        truth = filled(*[[56 * v for v in box] for box in boxes])
        expected.append(Expected(name, (grey,) * 2, (level,) * 2, f'class of {name[0]}', name,
                                 truth, filled(scored(shape)) if shape else None))
    return expected


def ext_vggss(root):
    plain = sorted(vggss(root), key=lambda e: e.id)
    for e in plain:
        e.id, e.mask, e.condition = f'{e.id}_{e.id}', None, 'sounding'
    table(root / 'vggss/vggss_test_plus_silent.csv', ('label', 'audio', 'video'),
          ('non-sounding', 'b_000020', 'z_000040'), ('non-sounding', 'y_000060', 'm_000050'))
    for name, grey in (('a_000010', 90), ('m_000050', 160), ('z_000040', 200)):
        frame(root / f'vggss/extend_frames/{name}.jpg', grey)
    plain[0].greys = 90, 90                                 # extend_frames is looked in first
    sound(root / 'vggss/extend_audio/y_000060.wav', 0.5)
    silent = dict(label=None, boxes=filled(), condition='silent')
    return plain + [
        Expected('m_000050_y_000060', (160, 160), (0.5, 0.5), group='m_000050', **silent),
        Expected('z_000040_b_000020', (200, 200), (0.125, 0.125), group='z_000040', **silent)]


FLICKR = {      # grey, level, boxes in 256 pixels
    '300': (40, 0.125, [(0, 0, 128, 128), (64, 64, 256, 256)]),
    '100': (80, 0.25, [(0, 128, 256, 256)]),
    '200': (120, 0.375, [(128, 0, 192, 64), (128, 0, 192, 64), (0, 0, 64, 64)])}


def flickr(root):
    table(root / 'flickr/flickr_test.csv', *[(name, f'phrase {name}') for name in FLICKR])
    expected = []
    for name, (grey, level, boxes) in FLICKR.items():
        frame(root / f'flickr/test/frames/{name}.jpg', grey)
        sound(root / f'flickr/test/audio/{name}.wav', level)
        people = ''.join('<annotator><bbox><id>9</id><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
                         '<ymax>{}</ymax></bbox></annotator>'.format(*box) for box in boxes)
        text(root / f'flickr/test/Annotations/{name}.xml', f'<annotation>{people}</annotation>')
        consensus = filled(*[[v * 7 // 8 for v in box] for box in boxes]) / 2
        expected.append(Expected(name, (grey,) * 2, (level,) * 2, None, name, consensus))
    return expected


def ext_flickr(root):
    plain = sorted(flickr(root), key=lambda e: e.id)
    for e in plain:
        e.id, e.condition = f'{e.id}_{e.id}', 'sounding'
    table(root / 'flickr/flickr_test_plus_silent.csv', ('video', 'audio', 'label'),
          ('400', '100', 'non-sounding'), ('300', '500', 'non-sounding'))
    frame(root / 'flickr/extend_frames/400.jpg', 160)
    sound(root / 'flickr/extend_audio/500.wav', 0.5)
    silent = dict(label=None, boxes=filled(), condition='silent')
    return plain + [Expected('300_500', (40, 40), (0.5, 0.5), group='300', **silent),
                    Expected('400_100', (160, 160), (0.25, 0.25), group='400', **silent)]


def boxed(root, annotation, masks, samples):
    """IS4 and VPO. samples: {name: (grey, level, box of 224 pixels, mask, label)}"""
    text(root / annotation, [{'image': f'x/{name}.jpg', 'audio': f'y/{name}.wav', 'gt_box': box}
                             for name, (_, _, box, _, _) in samples.items()])
    expected = []
    for name, (grey, level, box, shape, label) in samples.items():
        frame(root / f'visual_frames/{name}.jpg', grey)
        sound(root / f'audio_wav/{name}.wav', level)
        mask(root / masks.format(name), shape, SIZE)
        expected.append(Expected(name, (grey,) * 2, (level,) * 2, label, name.rpartition('_')[0],
                                 filled(box), filled(scored(shape))))
    return expected


def is4(root):
    return boxed(root / 'is4', 'synthetic3240_bbox.json', 'gt_masks/{}.png', {
        'cat_drum_12_drum': (40, 0.125, [0, 8, 61, 112], (0, 0, 8, 8), 'drum'),
        'cat_drum_12_cat': (80, 0.25, [100, 0, 200, 50], (8, 8, 16, 16), 'cat'),
        'bell_dog_7_dog': (120, 0.375, [3, 3, 224, 224], (16, 0, 48, 8), 'dog')})


def vpo(root, name):
    """Masks are JPEG, on whole blocks of 8 x 8, so that they have no ringing."""
    table(root / name / 'labels.csv', ('000000000044_9', 'cat'), ('000000000139_7', 'dog'))
    return boxed(root / name, f'{name}_bbox.json', 'gray_masks/{}.jpg', {
        '000000000139_8': (40, 0.125, [0, 8, 61, 112], (0, 0, 8, 8), None),
        '000000000044_9': (80, 0.25, [100, 0, 200, 50], (8, 8, 16, 16), 'cat'),
        '000000000139_7': (120, 0.375, [3, 3, 224, 224], (16, 0, 48, 8), 'dog')})


AVS = {         # grey, left and right level, box, mask, label; frames of two clips
    'p_q_2': (40, (0.125, 0.25), [0, 8, 61, 112], (0, 0, 8, 8), 'playing_violin'),
    'p_q_1': (80, (0.125, 0.25), [100, 0, 200, 50], (8, 8, 16, 16), 'playing_violin'),
    'r_1': (120, (0.5, 0.75), [3, 3, 224, 224], (16, 0, 48, 8), 'dog_barking'),
    'p_q_3': (160, (0.125, 0.25), [9, 9, 99, 99], (0, 16, 8, 24), 'playing_violin')}


def avs(folder, annotation, boxes):
    table(folder / annotation, *[(name, label) for name, (*_, label) in AVS.items()])
    expected = []
    for name, (grey, levels, box, shape, label) in AVS.items():
        frame(folder / f'visual_frames/{name}.png', grey)
        sound(folder / f'audio_wav/{name.rpartition("_")[0]}.wav', *levels)
        mask(folder / f'gt_masks/{name}.png', shape, SIZE)
        truth = filled(scored(shape))                       # of one box: its own tight box
        expected.append(Expected(name, (grey,) * 2, levels, label.replace('_', ' '), name,
                                 filled(box) if boxes else truth, truth))
    return expected


def avs_s4(root):
    folder = root / 'avsbench/s4'
    text(folder / 's4_box.json', [{'image': f'test/{name}.png', 'gt_box': box}
                                  for name, (_, _, box, _, _) in reversed(AVS.items())])
    return avs(folder, 'avs1_s4_test.csv', True)


def avs_ms3(root):
    return avs(root / 'avsbench/ms3', 'avs1_ms3_test.csv', False)


def robust(plain):
    """The off-screen sound of either clip is the other's: there are two."""
    expected = list(plain)
    for condition in ('silence', 'noise', 'offscreen'):
        for number, e in enumerate(plain):
            draws = np.random.default_rng((42, number)).uniform(-1, 1, 8000)
            other = (0.125, 0.25) if e.id == 'r_1' else (0.5, 0.75)
            wav = {'silence': (0, 0), 'noise': (draws[0], draws[-1]), 'offscreen': other}[condition]
            expected.append(Expected(f'{e.id}_{condition}', e.greys, wav, e.label, e.id, e.boxes,
                                     e.mask, condition))
    return expected


def ade20k(root):
    folder, expected = root / 'ade20k', []
    rows = [('x/dog_000010.wav', 'val/ADE_2.jpg', 2420, 40, 0.125, (0, 0, 8, 8)),
            ('x/nobody.wav', 'val/ADE_9.jpg', 0, 0, 0, None),
            ('y/cat_000020.wav', 'val/ADE_1.jpg', 21, 80, 0.25, (8, 8, 16, 16)),
            ('', 'val/ADE_8.jpg', 7, 0, 0, None),
            ('y/car_000030.wav', 'ADE_3.jpg', 300, 120, 0.375, (16, 0, 48, 8))]
    table(folder / 'prompted_segmentation.csv', ('vggsound_file', 'image_location', 'ade_class_id'),
          *[row[:3] for row in rows])
    for heard, image, number, grey, level, shape in (row for row in rows if row[-1]):
        frame(folder / 'frames' / image, grey)
        sound(folder / 'audio' / heard.split('/')[1], level)
        coded = np.zeros((28, 56, 3), np.uint8)
        coded[:, :, 1] = 99
        x0, y0, x1, y1 = shape
        coded[y0:y1, x0:x1] = number // 256 * 10, number % 256, 40
        path = folder / 'annotations' / image.replace('.jpg', '_seg.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        media.Image.fromarray(coded).save(path)
        name = f'{path.stem[:-4]}_{number}_{heard[2:-4]}'
        truth = filled(scored(shape))
        expected.append(Expected(name, (grey,) * 2, (level,) * 2, None, name, truth, truth))
    return expected


def mixtures(pairs, grey_of, level_of, label_of, truth_of):
    """pairs: (first, second) ids. The first stands at the left; each sound has half gain."""
    expected = []
    for pair in pairs:
        sources = [torch.zeros(224, 448), torch.zeros(224, 448)]
        for k, name in enumerate(pair):
            sources[k][:, 224 * k:224 * k + 224] = truth_of(name).clamp(max=1)
        level = sum(map(level_of, pair)) / 2
        name = '_'.join(pair)
        expected.append(Expected(name, tuple(map(grey_of, pair)), (level,) * 2,
                                 list(map(label_of, pair)), name, None, sources=sources))
    return expected


def vgg_duet(root):
    single = {e.id: e for e in vggss(root)}
    pairs = [('c_000030', 'a_000010'), ('a_000010', 'b_000020')]    # b's class is a second one only
    table(root / 'vgg_duet/vggsound_duet_test.csv',
          *[(a, f'duet_{a[0]}', b, f'duet_{b[0]}') for a, b in pairs])
    return mixtures(pairs, lambda name: single[name].greys[0], lambda name: single[name].wav[0],
                    lambda name: f'duet {name[0]}', lambda name: single[name].boxes)


def vgg_instruments(root):
    folder, shapes = root / 'vgg_instruments', [(0, 0, 8, 8), (8, 8, 16, 16), (16, 0, 48, 8)]
    for k, shape in enumerate(shapes):
        frame(folder / f'frames/s{k}.jpg', 40 * k + 40)
        sound(folder / f'audio/s{k}.wav', k / 8 + 0.125)
        pickled(folder / f'annotations/s{k}.pkl', filled(shape, size=(28, 56)).numpy())
    pairs = [('s2', 's0'), ('s0', 's1'), ('s1', 's2')]
    table(folder / 'vgginstruments_multi_test.csv',
          *[(a, f'steel_{a}', b, f'steel_{b}') for a, b in pairs])
    k = lambda name: int(name[1])
    return mixtures(pairs, lambda name: 40 * k(name) + 40, lambda name: k(name) / 8 + 0.125,
                    lambda name: f'steel {name}', lambda name: filled(scored(shapes[k(name)])))


SETS = {'vggss': vggss, 'flickr': flickr, 'is4': is4, 'vpo_ss': lambda root: vpo(root, 'vpo_ss'),
        'vpo_ms': lambda root: vpo(root, 'vpo_ms'), 'avs_s4': avs_s4, 'avs_ms3': avs_ms3,
        'ade20k': ade20k, 'ext_vggss': ext_vggss, 'ext_flickr': ext_flickr,
        'robust_s4': lambda root: robust(avs_s4(root)),
        'robust_ms3': lambda root: robust(avs_ms3(root)),
        'vgg_instruments': vgg_instruments, 'vgg_duet': vgg_duet}


def opened(name, root, **more):
    return data.Benchmark(name, root, 32, SECONDS, **more)


def same(found, expected):
    return found is None if expected is None else torch.equal(found, expected.clamp(max=1))


def check(sample, e):
    assert 'error' not in sample, sample
    assert (sample['id'], sample['label'], sample['group']) == (e.id, e.label, e.group)
    assert sample['condition'] == e.condition
    assert sample['image'].shape == (3, 32, 32)
    pixels = media.displayable(sample['image'])[16, [2, -3]].mean(1)
    assert pixels == pytest.approx(e.greys, abs=3), e.id
    assert sample['wav'].shape == (8000,)
    assert sample['wav'][[0, -1]].tolist() == pytest.approx(e.wav, abs=1e-6), e.id
    assert same(sample['boxes'], e.boxes), e.id
    assert same(sample['mask'], e.mask), e.id
    assert same(sample['sources'], torch.stack(e.sources) if e.sources else None), e.id


@pytest.mark.parametrize('name', list(data.BENCHMARKS))
def test_each_sample_has_its_own_frame_sound_boxes_mask_label_and_group(tmp_path, name):
    expected = SETS[name](tmp_path)
    test = opened(name, tmp_path)
    assert [s.id for s in test.samples] == [e.id for e in expected]
    assert test.name == name and test.expected == len(test) == len(expected) and not test.missing
    for k, e in enumerate(expected):
        check(test[k], e)
    labels = [e.label if isinstance(e.label, list) else [e.label] for e in expected]
    assert test.classes == sorted({label for several in labels for label in several if label})
    groups = [e.group for e in expected]
    assert test.group_sizes == {group: groups.count(group) for group in groups}


@pytest.mark.parametrize('name, picture_suffix', [
    ('vggss', '.png'), ('flickr', '.jpeg'), ('is4', '.png'), ('vpo_ms', '.jpeg'),
    ('avs_s4', '.jpg'), ('ext_vggss', '.png'), ('ext_flickr', '.png'), ('vgg_instruments', '.png'),
    ('vgg_duet', '.jpeg')])
def test_frames_and_sounds_are_found_in_other_formats_too(tmp_path, name, picture_suffix):
    expected = SETS[name](tmp_path)
    for path in list(tmp_path.rglob('*frames/*')):
        with media.Image.open(path) as image:
            image.save(path.with_suffix(picture_suffix))
        path.unlink()
    for path in list(tmp_path.rglob('*.wav')):
        soundfile.write(path.with_suffix('.flac'), *soundfile.read(path), subtype='PCM_24')
        path.unlink()
    test = opened(name, tmp_path)
    assert not test.missing
    for k, e in enumerate(expected):
        check(test[k], e)


# ------------------------------------------------------------------------------------------------
# What is left out, and batches
# ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('lost', ['frames/b_000020.jpg', 'audio/b_000020.wav',
                                  'gt_masks/c_000030.png'])
def test_a_missing_file_takes_its_own_sample_out_and_moves_no_other(tmp_path, lost):
    expected = vggss(tmp_path)
    (tmp_path / 'vggss' / lost).unlink()
    test, name = opened('vggss', tmp_path), lost.split('/')[1].split('.')[0]
    if lost.startswith('gt_masks'):                         # which the real VGG-SS has not at all
        name, expected[2].mask = None, None
    left = [e for e in expected if e.id != name]
    assert (test.missing, test.expected, len(test)) == ([name] if name else [], 3, len(left))
    for k, e in enumerate(left):
        check(test[k], e)


@pytest.mark.parametrize('lost', ['frames/s1.jpg', 'audio/s1.wav', 'annotations/s1.pkl'])
def test_a_mixture_needs_the_files_of_both(tmp_path, lost):
    expected = vgg_instruments(tmp_path)
    (tmp_path / 'vgg_instruments' / lost).unlink()
    test = opened('vgg_instruments', tmp_path)
    assert (test.missing, len(test), test.expected) == (['s0_s1', 's1_s2'], 1, 3)
    check(test[0], expected[0])


def test_the_limit_counts_in_each_condition_and_groups_are_those_of_the_whole_set(tmp_path):
    expected = robust(avs_s4(tmp_path))
    test = opened('robust_s4', tmp_path, limit=3)
    kept = [e for k, e in enumerate(expected) if k % 4 < 3]
    assert test.expected == len(test) == 12 and set(test.group_sizes.values()) == {4}
    for k, e in enumerate(kept):
        check(test[k], e)


def test_batches_are_in_order_and_an_error_shifts_no_tensor(tmp_path):
    expected = avs_s4(tmp_path)
    (tmp_path / 'avsbench/s4/visual_frames/p_q_1.png').write_bytes(b'no picture')
    test = opened('avs_s4', tmp_path)
    first, second = data.loader(test, batch_size=3)
    assert len(first['errors']) == 1 and 'p_q_1.png' in str(first['errors'][0])
    assert (first['id'], second['id'], second['errors']) == (['p_q_2', 'r_1'], ['p_q_3'], [])
    for batch, k, e in ((first, 0, expected[0]), (first, 1, expected[2]), (second, 0, expected[3])):
        check({name: values[k] for name, values in batch.items() if name != 'errors'}, e)


def test_batches_hold_complete_frames_and_every_sample_once(tmp_path):
    for name in data.BENCHMARKS:
        root = tmp_path / name
        SETS[name](root)
        test = opened(name, root)
        for batch_size in (1, 2, 3, 100):
            batches = test.batches(batch_size)
            assert sorted(sum(batches, [])) == list(range(len(test)))
            frames = [{test.samples[i].group for i in batch} for batch in batches]
            assert sum(map(len, frames)) == len(set().union(*frames))       # no frame in two
            pictures = [{str(test.samples[i].images) for i in batch} for batch in batches]
            assert sum(map(len, pictures)) == len(set().union(*pictures))
            for batch, groups in zip(batches, frames):
                assert len(batch) <= batch_size or len(groups) == 1
    test = opened('ade20k', tmp_path / 'ade20k')
    test.samples[2].images = test.samples[0].images         # two classes of one file
    assert test.batches(1) == [[0, 2], [1]] and test.batches(3) == [[0, 2, 1]]


def test_each_sample_says_how_many_its_frame_should_have_whatever_the_limit(tmp_path):
    expected = is4(tmp_path)
    groups = [e.group for e in expected]
    test = opened('is4', tmp_path, limit=1)
    assert test[0]['group_size'] == groups.count(groups[0]) == 2
    assert test.listed_groups == {groups[0]: 1}             # what the limit keeps of it


def test_odd_boxes_are_counted_where_they_are(tmp_path):
    vggss(tmp_path)
    boxes = {'a': [[0, 0, 1, 1.5], [-1, 0, 0.5, 0.5]], 'c': [[2, 2, 3, 3]], 'd': [[0, 0, 1, 1]],
             'b': [[0.5, 0.5, 0.5, 0.9], [0.1, 0.1, 0.2, 0.2]], 'missing': [[-1, -1, 2, 2]]}
    text(tmp_path / 'vggss/vggss.json', [{'file': name, 'class': name, 'bbox': corners}
                                         for name, corners in boxes.items()])
    for name in 'abcd':
        frame(tmp_path / f'vggss/frames/{name}.jpg', 9)
        sound(tmp_path / f'vggss/audio/{name}.wav', 0.5)
    test = opened('vggss', tmp_path)
    assert (test.clipped, test.empty) == (3, 1)             # b has an area in one of its boxes
    table(tmp_path / 'vgg_duet/vggsound_duet_test.csv', ('a', 'x', 'c', 'y'), ('a', 'x', 'b', 'y'))
    duet = opened('vgg_duet', tmp_path)
    assert (duet.clipped, duet.empty) == (2 + 1 + 2, 1)     # c's frame alone is enough

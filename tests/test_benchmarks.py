"""The fourteen test sets, from small files in the layouts of their authors: one test per trap."""

import csv
import json
import os
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data
import media
from benchmarks.avsbench import CATEGORIES, categories, with_negatives

SECONDS = 1.0


def picture(path, size=(40, 30), colour=(90, 120, 30), mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).convert(mode).save(path)


def mask(path, box=(4, 6, 20, 16), size=(40, 30), grey=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[box[1]:box[3], box[0]:box[2]] = grey
    Image.fromarray(pixels).save(path)


def sound(path, level=0.25, seconds=1.0, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.full((round(16000 * seconds), channels), level, np.float32)
    soundfile.write(path, samples, 16000, subtype='FLOAT')


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows(rows)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def opened(name, root, **more):
    return data.Benchmark(name, root, 32, SECONDS, **more)


def vggss(root, boxes, level=0.25):
    text(root / 'vggss/vggss.json', [{'file': name, 'class': f'playing {name}', 'bbox': b}
                                     for name, b in boxes.items()])
    for name in boxes:
        picture(root / f'vggss/frames/{name}.jpg')
        sound(root / f'vggss/audio/{name}.wav', level)


def flickr(root, boxes):
    table(root / 'flickr/flickr_test.csv', *[(name, 'child singing') for name in boxes])
    for name, corners in boxes.items():
        picture(root / f'flickr/test/frames/{name}.jpg')
        sound(root / f'flickr/test/audio/{name}.wav')
        people = ''.join('<annotator><bbox><id>a 7</id><xmin>{}</xmin><ymin>{}</ymin>'
                         '<xmax>{}</xmax><ymax>{}</ymax></bbox></annotator>'
                         .format(*c) for c in corners)
        text(root / f'flickr/test/Annotations/{name}.xml', f'<annotation>{people}</annotation>')


def boxed(root, annotation, samples, masks):
    """IS4 and VPO. samples: {name: gt_box}"""
    text(root / annotation, [{'image': f'elsewhere/{name}.jpg', 'audio': f'elsewhere/{name}.wav',
                              'gt_box': box} for name, box in samples.items()])
    for name in samples:
        picture(root / f'visual_frames/{name}.jpg')
        sound(root / f'audio_wav/{name}.wav')
        mask(root / masks.format(name))


def avsbench(folder, annotation, labels, boxes=True):
    """labels: {clip: label}, two frames each."""
    names = [(f'{clip}_{k}', label) for clip, label in labels.items() for k in (1, 2)]
    table(folder / annotation, *names)
    if boxes:
        text(folder / 's4_box.json', [{'image': f'test/dog/{name}.png', 'gt_box': [0, 0, 61, 112]}
                                      for name, _ in names])
    for name, _ in names:
        picture(folder / f'visual_frames/{name}.png')
        mask(folder / f'gt_masks/{name}.png')
    for number, clip in enumerate(labels, 1):
        sound(folder / f'audio_wav/{clip}.wav', number / 16)


def pickled(path, array, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(array, protocol))


# ---- boxes

def test_boxes_beyond_the_frame_are_clipped_and_counted_and_samples_without_area_stay(tmp_path):
    vggss(tmp_path, {'a': [[0.5, 0.5, -2.9e16, 1.0]],
                     'b': [[0.0, 0.0, 0.5, 1.25], [0.2, 0.2, 0.2, 0.9]],
                     'c': [[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 1.0, 1.0]]})
    test = opened('vggss', tmp_path)
    assert (len(test), test.clipped, test.empty) == (3, 2, 1)
    areas = [test[i]['boxes'].sum().item() for i in range(3)]
    assert areas == [0, 112 * 224, 2 * 112 ** 2 - 56 ** 2]
    assert test[2]['boxes'].max() == 1                      # boxes of one set do not add up


def test_boxes_in_pixels_of_224_lose_none_to_rounding():
    for v in range(225):
        assert media.box_map([[0, 0, v, v]], 224).sum() == v * v        # 61 / 224 * 224 < 61


def test_flickr_s_map_is_half_where_one_annotator_boxed_and_whole_where_two_did(tmp_path):
    flickr(tmp_path, {'100': [(0, 0, 128, 256), (64, 0, 256, 256), (64, 0, 128, 256)]})
    sample = opened('flickr', tmp_path)[0]
    assert sample['label'] is None and sample['mask'] is None
    row = sample['boxes'][100]
    assert (row[:56] == 0.5).all() and (row[56:112] == 1).all() and (row[112:] == 0.5).all()
    for v in range(257):                                    # the release: int(224 v / 256)
        side = 224 - int(224 * v / 256)
        assert media.box_map([[v, v, 256, 256]], 256).sum() == side * side


@pytest.mark.parametrize('xml', [
    '<a>', '<a/>', '<a><b><bbox><i>1</i><x>1</x><y>2</y><z>3</z></bbox></b></a>', '',
    '<a><b><bbox><i>1</i><x>1</x><y>nan</y><z>3</z><w>4</w></bbox></b></a>',
    '<a><b><bbox><i>1</i><x>1</x><y/><z>3</z><w>4</w></bbox></b></a>'])
def test_odd_flickr_annotations_are_named(tmp_path, xml):
    flickr(tmp_path, {'100': [(0, 0, 9, 9)]})
    text(tmp_path / 'flickr/test/Annotations/100.xml', xml)
    with pytest.raises(ValueError, match='100.xml is not an annotation.*remove 100 from the list'):
        opened('flickr', tmp_path)


# ---- the extended sets

def test_extended_sets_look_in_their_own_folders_first_and_have_both_kinds_under_a_limit(tmp_path):
    vggss(tmp_path, {'b': [[0, 0, 0.5, 0.5]], 'a': [[0, 0, 1, 1]]})
    table(tmp_path / 'vggss/vggss_test_plus_silent.csv', ('video', 'audio', 'label'),
          ('a', 'a', 'non-sounding'), ('b', 'a', 'non-sounding'))
    with pytest.raises(ValueError, match='ext_vggss.*lists a_a twice'):
        opened('ext_vggss', tmp_path)
    table(tmp_path / 'vggss/vggss_test_plus_silent.csv', ('video', 'audio', 'label'),
          ('b', 'a', 'non-sounding'))
    sound(tmp_path / 'vggss/extend_audio/a.wav', 0.75)
    test = opened('ext_vggss', tmp_path)
    assert [test[i]['wav'][0].item() for i in range(3)] == [0.75, 0.25, 0.75]
    assert test.empty == 0                                  # an empty map that is meant
    assert [s.id for s in opened('ext_vggss', tmp_path, limit=1).samples] == ['a_a', 'b_a']


def test_extended_lists_name_silent_pairs_only(tmp_path):
    flickr(tmp_path, {'100': [(0, 0, 256, 256)]})
    path = tmp_path / 'flickr/flickr_test_plus_silent.csv'
    table(path, ('video', 'audio', 'label'), ('100', '200', 'child'))
    with pytest.raises(ValueError, match="plus_silent.csv has the label 'child'"):
        opened('ext_flickr', tmp_path)


# ---- sets with masks

def test_boxes_in_pixels_are_not_clipped_and_a_partner_need_not_be_there(tmp_path):
    boxes = {'cat_drum_12_cat': [47, 99, 154, 185], 'cat_drum_12_drum': [0, 0, 224, 224]}
    boxed(tmp_path / 'is4', 'synthetic3240_bbox.json', boxes, 'gt_masks/{}.png')
    test = opened('is4', tmp_path)
    assert test.clipped == test.empty == 0 and len(test) == 2
    assert len(opened('is4', tmp_path, limit=1)) == 1


def test_vpo_s_jpeg_masks_are_cut_at_128_and_its_oracle_needs_labels_csv(tmp_path):
    boxes = {'000000000139_7': [1, 2, 3, 4], '000000000139_8': [1, 2, 3, 4]}
    boxed(tmp_path / 'vpo_ms', 'vpo_ms_bbox.json', boxes, 'gray_masks/{}.jpg')
    for name, grey in (('000000000139_7', 110), ('000000000139_8', 150)):
        mask(tmp_path / f'vpo_ms/gray_masks/{name}.jpg', grey=grey)
    test = opened('vpo_ms', tmp_path)
    assert [test[i]['mask'].any().item() for i in (0, 1)] == [False, True]
    assert test[0]['label'] is None and {s.group for s in test.samples} == {'000000000139'}
    table(tmp_path / 'vpo_ms/labels.csv', ('000000000139_8', 'dog'))
    assert [s.label for s in opened('vpo_ms', tmp_path).samples] == [None, 'dog']
    os.remove(tmp_path / 'vpo_ms/vpo_ms_bbox.json')         # masks are there, the list is not
    with pytest.raises(FileNotFoundError, match='vpo_ms_bbox.json, which lists .*docs.datasets.md'):
        opened('vpo_ms', tmp_path)


def test_any_non_zero_pixel_of_an_avsbench_mask_is_object_without_dithering(tmp_path):
    avsbench(tmp_path / 'avsbench/s4', 'avs1_s4_test.csv', {'x_y': 'playing_violin'})
    mask(tmp_path / 'avsbench/s4/gt_masks/x_y_1.png', (0, 0, 20, 30), grey=3)
    sample = opened('avs_s4', tmp_path)[0]
    assert sample['mask'][:, :112].all() and not sample['mask'][:, 112:].any()
    assert sample['boxes'].sum() == 61 * 112 and sample['label'] == 'playing violin'


def test_palette_masks_and_grey_transparent_or_palette_frames_are_read(tmp_path):
    avsbench(tmp_path / 'avsbench/s4', 'avs1_s4_test.csv', {'x': 'dog', 'y': 'cat'})
    folder = tmp_path / 'avsbench/s4'
    blue = Image.fromarray(np.repeat([[0, 1]], 30, 0).repeat(20, 1).astype(np.uint8), 'P')
    blue.putpalette([0, 0, 0, 0, 0, 1])                     # so dark that its grey is 0
    blue.save(folder / 'gt_masks/x_1.png')
    for name, mode in (('x_1', 'L'), ('x_2', 'RGBA'), ('y_1', 'P')):
        picture(folder / f'visual_frames/{name}.png', mode=mode)
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(folder / 'visual_frames/y_2.png')
    test = opened('avs_s4', tmp_path)
    assert test[0]['mask'].mean() == 0.5
    assert all(test[i]['image'].shape == (3, 32, 32) for i in range(3))
    assert '16 bits' in str(test[3]['error']) and 'y_2.png' in str(test[3]['error'])


def test_a_mask_of_another_size_is_refused_unless_it_has_the_scored_one(tmp_path):
    avsbench(tmp_path / 'avsbench/ms3', 'avs1_ms3_test.csv', {'x': 'dog'}, boxes=False)
    mask(tmp_path / 'avsbench/ms3/gt_masks/x_1.png', size=(30, 40))
    mask(tmp_path / 'avsbench/ms3/gt_masks/x_2.png', (0, 0, 10, 20), (224, 224))
    test = opened('avs_ms3', tmp_path)
    assert 'x_1.png is 30 x 40 pixels, its frame 40 x 30' in str(test[0]['error'])
    assert test[1]['mask'].sum() == 200


def test_ms3_takes_boxes_from_masks_and_keeps_empty_ones(tmp_path):
    avsbench(tmp_path / 'avsbench/ms3', 'avs1_ms3_test.csv', {'x': 'guitar, violin'}, boxes=False)
    two = np.zeros((224, 224), np.uint8)
    two[10:20, 30:40] = two[100:110, 60:90] = 255
    Image.fromarray(two).save(tmp_path / 'avsbench/ms3/gt_masks/x_1.png')
    mask(tmp_path / 'avsbench/ms3/gt_masks/x_2.png', (0, 0, 0, 0))
    test = opened('avs_ms3', tmp_path)
    assert test[0]['label'] == 'guitar, violin' and test[0]['mask'].sum() == 400
    assert test[0]['boxes'][10:110, 30:90].all() and test[0]['boxes'].sum() == 100 * 60
    assert test[1]['mask'].sum() == 0 and test[1]['boxes'].sum() == 0
    pixel = torch.zeros(5, 7)
    pixel[3, 2] = 1
    assert torch.equal(media.box_from_mask(pixel), pixel)


def test_ade20k_decodes_the_class_and_drops_lines_that_ask_for_nothing(tmp_path):
    folder = tmp_path / 'ade20k'
    coded = np.zeros((30, 40, 3), np.uint8)
    coded[:, :20] = 90, 116, 40                             # 9 * 256 + 116 = 2420
    coded[:15, :20, 2] = 80                                 # another object of the class
    coded[:, 30:] = 100, 116, 40
    picture(folder / 'frames/val/ADE_1.jpg'), sound(folder / 'audio/dog_000010.wav')
    (folder / 'annotations/val').mkdir(parents=True)
    Image.fromarray(coded).save(folder / 'annotations/val/ADE_1_seg.png')
    heading = 'speech', 'ade_class_id', 'vggsound_file', 'image_location'
    line = 's.wav', 2420, 'somewhere/dog_000010.wav', 'val/ADE_1.jpg'
    table(folder / 'prompted_segmentation.csv', heading, line,
          ('s', 0, 'dog_000010.wav', 'val/ADE_1.jpg'), ('', 2420, '', 'val/ADE_1.jpg'))
    test = opened('ade20k', tmp_path)
    assert len(test) == test.expected == 1 and test[0]['label'] is None
    assert test[0]['mask'][:, :112].all() and not test[0]['mask'][:, 112:].any()
    assert torch.equal(test[0]['mask'], test[0]['boxes'])
    for odd in ('nan', '-1', 'dog', ''):
        table(folder / 'prompted_segmentation.csv', heading, line,
              ('s', odd, 'dog_000010.wav', 'val/ADE_1.jpg'))
        with pytest.raises(ValueError, match='prompted_segmentation.csv.*ade_class_id'):
            opened('ade20k', tmp_path)


# ---- AVSBench's sound, and its robust version

def test_stereo_channels_are_heard_one_after_the_other_and_mono_twice(tmp_path):
    left, right = np.full(8000, 0.25, np.float32), np.full(8000, 0.5, np.float32)
    both = np.stack([left, right], 1)
    for name, samples in (('stereo', both), ('short', both[:4000]), ('mono', left)):
        soundfile.write(tmp_path / f'{name}.wav', samples, 16000, subtype='FLOAT')

    def hear(name, seconds=1.0):
        return media.read_channels(tmp_path / f'{name}.wav', seconds).tolist()
    assert hear('stereo') == [0.25] * 8000 + [0.5] * 8000
    assert hear('short') == [0.25] * 4000 + [0] * 4000 + [0.5] * 4000 + [0] * 4000
    assert hear('mono') == [0.25] * 16000
    assert hear('stereo', 0.5) == [0.25] * 4000 + [0.5] * 4000          # long ones are cut
    assert len(hear('mono', 1.00001)) == 16000


def ms3(root, labels):
    avsbench(root / 'avsbench/ms3', 'avs1_ms3_test.csv', labels, boxes=False)


def partners(root):
    """[(clip, the clip of its off-screen sound)] for each frame."""
    return [(s.group[0], s.sounds[0].stem) for s in opened('robust_ms3', root).samples
            if s.condition == 'offscreen']


def test_off_screen_sounds_come_from_another_category_where_there_is_one(tmp_path):
    labels = {'v': 'violin', 'g': 'guitar, dog', 'd': 'dog', 'm': 'man', 'h': 'helicopter',
              'o': 'guitar, man, dog, gun'}
    ms3(tmp_path, labels)
    partner = dict(partners(tmp_path))
    for clip in 'vgdmh':
        assert not categories(labels[clip]) & categories(labels[partner[clip]])
    assert partner['o'] in 'vh'             # shares a category with all: then no word of its own
    assert categories('playing_violin') == {'music'} and categories('zither') == {'zither'}
    ms3(tmp_path / 'same', {'a': 'dog', 'b': 'dog'})        # any other is better than none
    assert partners(tmp_path / 'same') == [('a', 'b'), ('a', 'b'), ('b', 'a'), ('b', 'a')]
    ms3(tmp_path / 'one', {'a': 'dog'})
    with pytest.raises(ValueError, match='a.wav is the only sound'):
        opened('robust_ms3', tmp_path / 'one')


def test_each_clip_draws_its_partner_from_42_and_its_own_number(tmp_path):
    clips = 'abcdef'                                        # each a category of its own
    ms3(tmp_path, {c: f'zither{c}' for c in clips})
    drawn = [0, 3, 1, 3, 1, 1]                              # default_rng((42, number)).integers(5)
    expected = {c: clips.replace(c, '')[k] for c, k in zip(clips, drawn)}
    assert dict(partners(tmp_path)) == expected


def test_samples_come_again_in_silence_in_noise_and_with_other_sounds(tmp_path):
    vggss(tmp_path, {'b': [[0, 0, 1, 1]], 'a': [[0, 0, 1, 0.5]]})
    plain = data.BENCHMARKS['vggss'](tmp_path)
    found = with_negatives(plain)
    assert found[:2] == plain and len(found) == 8
    assert [(s.id, s.group, s.condition, s.number, s.sounds) for s in found[2:6]] == [
        ('b_silence', 'b', 'silence', 0, []), ('a_silence', 'a', 'silence', 1, []),
        ('b_noise', 'b', 'noise', 0, []), ('a_noise', 'a', 'noise', 1, [])]
    assert all((s.images, s.boxes) == (p.images, p.boxes) for s, p in zip(found, plain * 4))


def test_the_words_of_the_real_and_the_drawn_sets_have_categories():
    real = ('ambulance_siren baby_laughter cap_gun_shooting cat_meowing chainsawing_trees '
            'coyote_howling dog_barking driving_buses female_singing helicopter horse_clip-clop '
            'lawn_mowing lions_roaring male_speech mynah_bird_singing playing_acoustic_guitar '
            'playing_glockenspiel playing_piano playing_tabla playing_ukulele playing_violin '
            'race_car typing_on_computer_keyboard man woman baby piano guitar violin tabla marimba '
            'ukulele keyboard dog cat lion bird gun mower helicopter bus').split()
    drawn = 'bell drum siren bird dog cat car clock whistle guitar telephone frog'.split()
    for name in real + drawn:
        assert len(categories(name)) == 1 and categories(name) <= CATEGORIES.keys(), name


def test_a_missing_partner_s_sound_is_a_missing_sample(tmp_path):
    avsbench(tmp_path / 'avsbench/s4', 'avs1_s4_test.csv', {'v': 'violin', 'd': 'dog_barking'})
    os.remove(tmp_path / 'avsbench/s4/audio_wav/d.wav')
    test = opened('robust_s4', tmp_path)
    assert test.missing == ['d_1', 'd_2', 'v_1_offscreen', 'v_2_offscreen']
    assert len(test) + 4 == test.expected


# ---- mixtures

def test_a_duet_of_a_frame_without_boxes_is_named(tmp_path):
    vggss(tmp_path, {'a': [[0, 0, 0.5, 1]]})
    table(tmp_path / 'vgg_duet/vggsound_duet_test.csv', ('a', 'elk_bugling', 'z', 'playing_cello'))
    with pytest.raises(ValueError, match='duet_test.csv names z, .*vggss.json has no boxes'):
        opened('vgg_duet', tmp_path)


@pytest.mark.parametrize('protocol, kind', [(0, bool), (2, '>f8'), (4, np.float32), (5, '>f8'),
                                            (5, np.uint8)])
def test_instruments_masks_are_pickled_arrays_of_any_size(tmp_path, protocol, kind):
    folder = tmp_path / 'vgg_instruments'
    array = np.zeros((8, 16), kind)
    array[:, 8:] = -0.25 if array.dtype.kind == 'f' else 1   # anything but zero
    if array.dtype.kind == 'f':
        array[:, :8] = -0.0                                 # no zero in the wrong order of bytes
    table(folder / 'vgginstruments_multi_test.csv', ('s0', 'steel_guitar', 's1', 'sitar'))
    for name, one in (('s0', array), ('s1', np.asfortranarray(array.T))):
        picture(folder / f'frames/{name}.jpg')
        sound(folder / f'audio/{name}.wav')
        pickled(folder / f'annotations/{name}.pkl', one, protocol)
    sample = opened('vgg_instruments', tmp_path)[0]
    assert sample['id'] == 's0_s1' and sample['label'] == ['steel guitar', 'sitar']
    assert sample['sources'][0, :, 112:224].all() and sample['sources'][0].sum() == 112 * 224
    assert sample['sources'][1, 112:, 224:].all() and sample['sources'][1].sum() == 112 * 224


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


def test_a_pickle_that_is_no_plain_array_is_refused_and_none_of_it_runs(tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / 'a.pkl'
    hidden = np.empty((2, 2), object)
    hidden[:] = 0
    hidden[0, 0] = Payload(mark)
    not_a_number = np.full((2, 2), np.nan)
    for odd in (Payload(mark), hidden, {'mask': Payload(mark)}, np.zeros((2, 2), object),
                np.zeros(4), np.zeros((2, 2, 3)), np.zeros((0, 2)), not_a_number, [[0, 1]],
                np.ones((2, 2), 'U3'), np.zeros((2, 2), 'c8'), np.float32(1), print):
        pickled(path, odd)
        with pytest.raises(media.SampleError, match='a.pkl') as error:
            media.read_pickled_mask(path)
        assert '\n' not in str(error.value)
    for damaged in (b'', b'not a pickle', pickle.dumps(np.ones((9, 9)))[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(media.SampleError, match='a.pkl is not a pickled NumPy array'):
            media.read_pickled_mask(path)
    assert not mark.exists()


def test_a_wrong_byte_in_a_pickle_asks_for_no_memory(tmp_path):
    path = tmp_path / 'a.pkl'
    far = 10**7                                             # an index of the unpickler's memo
    whole = pickle.dumps(np.ones((9, 9)), 2)
    path.write_bytes(whole[:-1] + b'r' + far.to_bytes(4, 'little') + b'.')
    tracemalloc.start()
    media.read_pickled_mask(path)
    assert tracemalloc.get_traced_memory()[1] < far
    tracemalloc.stop()


# ---- lists

@pytest.mark.parametrize('content, words', [
    ('x_1,dog,3\n', 'line 1: 3 fields'), ('x_1,dog\nx_2\n', 'line 2: 1 fields'),
    ('x_1,\n', "'label' is empty"), ('\n', 'lists no sample'), ('x_1,"dog', 'not comma-separated'),
    (b'x_1,d\xf8g\n', 'not a UTF-8 text'), ('x_1,dog\nx_1,dog\n', 'lists x_1 twice'),
    ('../x_1,dog\n', 'no file name')])
def test_odd_lists_are_one_sentence(tmp_path, content, words):
    avsbench(tmp_path / 'avsbench/ms3', 'avs1_ms3_test.csv', {'x': 'dog'}, boxes=False)
    path = tmp_path / 'avsbench/ms3/avs1_ms3_test.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as error:
        opened('avs_ms3', tmp_path)
    assert '\n' not in str(error.value) and ('avs' in str(error.value))


@pytest.mark.parametrize('boxes, words', [
    ([0, 0, 9], 'needs'), ([0, 0, 9, 'x'], 'needs'), ([0, 0, 9, '8'], 'needs'),
    ([0, 0, 9, float('nan')], 'needs'), ([[0, 0, 9, 9]], 'needs'), ([], 'needs'), (None, 'needs'),
    ([0, 0, 9, [9]], 'needs'), ([0, 0, 9, 10 ** 400], 'needs'),
    ([0.1, 0.2, 0.3, 0.4], 'shares of the frame')])
def test_odd_boxes_are_one_sentence(tmp_path, boxes, words):
    boxed(tmp_path / 'is4', 'synthetic3240_bbox.json', {'a_1_b': boxes}, 'gt_masks/{}.png')
    with pytest.raises(ValueError, match=f'synthetic3240_bbox.json.*{words}'):
        opened('is4', tmp_path)


def test_columns_that_the_heading_lacks_are_named(tmp_path):
    vggss(tmp_path, {'a': [[0, 0, 1, 1]]})
    table(tmp_path / 'vggss/vggss_test_plus_silent.csv', ('video', 'sound', 'label'),
          ('a', 'a', 'non-sounding'))
    with pytest.raises(ValueError, match="plus_silent.csv has no column 'audio'"):
        opened('ext_vggss', tmp_path)


@pytest.mark.parametrize('name', list(data.BENCHMARKS))
def test_every_set_that_is_not_there_is_named_with_the_remedy(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r'no annotation file .*\.(csv|json).*datasets.md'):
        opened(name, tmp_path)


def test_a_list_without_any_of_its_files_names_the_first_that_lacks(tmp_path):
    avsbench(tmp_path / 'avsbench/s4', 'avs1_s4_test.csv', {'x': 'dog'})
    shutil.rmtree(tmp_path / 'avsbench/s4/gt_masks')
    with pytest.raises(FileNotFoundError, match='none of the 2 samples of avs_s4.*gt_masks/x_1'):
        opened('avs_s4', tmp_path)


def test_what_a_set_lacks_is_none_in_a_batch(tmp_path):
    vggss(tmp_path, {name: [[0, 0, 1, 1]] for name in 'abc'})
    batch = next(iter(data.loader(opened('vggss', tmp_path), batch_size=2)))
    assert batch['boxes'].shape == (2, 224, 224)
    assert batch['mask'] == batch['sources'] == [None, None]

"""The fourteen test sets of section 4.1 as their authors released them: which files make a sample, and of what kind.

    samples = BENCHMARKS['avs_ms3'](root)                        # list of BenchmarkSample; no picture or sound is read

    vggss/{frames, audio, vggss.json, gt_masks}                                   vggss; masks in the miniature only
    vggss/{extend_frames, extend_audio, vggss_test_plus_silent.csv}               ext_vggss
    flickr/test/{frames, audio, Annotations}, flickr/flickr_test.csv              flickr
    flickr/{extend_frames, extend_audio, flickr_test_plus_silent.csv}             ext_flickr
    is4/{visual_frames, audio_wav, gt_masks, synthetic3240_bbox.json}             is4, released as IS3
    vpo_ss/{visual_frames, audio_wav, gray_masks, vpo_ss_bbox.json, labels.csv}   vpo_ss; vpo_ms the same
    avsbench/s4/{visual_frames, audio_wav, gt_masks, avs1_s4_test.csv, s4_box.json}           avs_s4, robust_s4
    avsbench/ms3/{visual_frames, audio_wav, gt_masks, avs1_ms3_test.csv}                      avs_ms3, robust_ms3
    ade20k/{frames, audio, annotations, prompted_segmentation.csv}                ade20k
    vgg_instruments/{frames, audio, annotations, vgginstruments_multi_test.csv}   vgg_instruments
    vgg_duet/vggsound_duet_test.csv, the rest of it in vggss                      vgg_duet

Sounds and pictures may have any suffix that media.py knows. An annotation file that is missing is a FileNotFoundError,
one that is odd a ValueError: one sentence that names the file. data.py turns samples into tensors.
"""

import csv
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from media import GROUND_TRUTH_SIZE, PICTURES, box_map, file_of, sound_file

WHERE = 'README.md, "Real data", says what goes where; --data-root names another root'
OFFSCREEN_SEED = 42                     # AVSBench-Robust's


# ------------------------------------------------------------------------------------------------
# Annotation files
# ------------------------------------------------------------------------------------------------

def _annotation(path):
    """The text of an annotation file. FileNotFoundError or ValueError, one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}, which lists samples or their boxes: {WHERE}')
    return utf8_text(path, 'fetch it again')


def utf8_text(path, remedy):
    """The content of a text file, its lines ending in \\n. ValueError, one sentence."""
    try:
        text = path.read_text(encoding='utf-8-sig')         # -sig: some editors put a mark first
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a UTF-8 text ({error}): {remedy}') from None
    if '\0' in text:
        raise ValueError(f'{path} is not a UTF-8 text (it holds zero bytes, as UTF-16 does): '
                         f'{remedy}')
    return text


def csv_lines(path, text, remedy='fetch it again'):
    """The lines of a csv text that are not blank. -> [(number, fields without spaces around them)]

    Each line is read by itself, so that a stray quote is a ValueError that names its line; read
    together, the lines up to the next quote would silently become one field.
    """
    found = []
    for number, line in enumerate(text.split('\n'), 1):
        try:
            fields = [field.strip() for field in next(csv.reader([line], strict=True), [])]
        except csv.Error as error:
            raise ValueError(f'{path}, line {number}: not comma-separated ({error}), perhaps by a '
                             f'stray quote: {remedy}') from None
        if any(fields):
            found.append((number, fields))
    return found


def unique(pairs, path):
    """dict(pairs); ValueError where the file names something twice."""
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f'{path} names {twice[0]} twice: keep one entry, or fetch it again')
    return dict(pairs)


def read_rows(path, columns, header=False, blank=None):
    """The lines of a csv file as tuples of texts, one for each of `columns`; ValueError names the line that is odd.

    header: the first line names the columns, in any order and among others. Without it a line holds just `columns`.
    blank: the column that may be empty.
    """
    rows = csv_lines(path, _annotation(path))
    first = rows.pop(0)[1] if header and rows else list(columns)
    if absent := [name for name in columns if name not in first]:
        raise ValueError(f'{path} has no column {absent[0]!r}: its first line must name {", ".join(columns)}')
    for number, row in rows:
        if len(row) != len(first):
            raise ValueError(f'{path}, line {number}: {len(row)} fields where {",".join(first)} has {len(first)}: '
                             'fetch it again')
        if empty := [name for name in columns if name != blank and not row[first.index(name)]]:
            raise ValueError(f'{path}, line {number}: {empty[0]!r} is empty: fetch it again')
    if not rows:
        raise ValueError(f'{path} lists no sample: fetch it again')
    return [tuple(row[first.index(name)] for name in columns) for _, row in rows]


def _read_boxes(path, name, box):
    """The list in an annotation file, each entry a dict with a text under `name` and boxes under `box`.

    'bbox': a list of boxes as shares of the frame; 'gt_box': one box in 224 pixels.
    """
    try:
        entries = json.loads(_annotation(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON ({error}): fetch it again') from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} lists no sample: fetch it again')
    for number, entry in enumerate(entries):
        try:
            boxes = np.asarray([entry[box]] if box == 'gt_box' else entry[box], np.float64)
            good = not any(isinstance(v, (str, bool)) for v in np.ravel(np.asarray(entry[box], object)))
            good = good and boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes) and np.isfinite(boxes).all()
            good = good and isinstance(entry[name], str)
            good = good and isinstance(entry.get('class') or '', str)
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
            good = False
        if not good:
            raise ValueError(f'{path}: entry {number} needs {name!r}, a text, and {box!r}, four numbers for each box; '
                             'fetch it again')
    numbers = [v for entry in entries for v in np.ravel(entry[box])]
    if box == 'bbox' and np.median(numbers) > 1:            # some lie far outside: no maximum
        raise ValueError(f'{path} has boxes in pixels: they must be shares of the frame, 0..1')
    if box == 'gt_box' and 0 < max(numbers) <= 1:
        raise ValueError(f'{path} has boxes in shares of the frame: they must be pixels of 224')
    return entries


def _read_flickr_boxes(path):
    """Annotations/<id>.xml, root > annotator > bbox > (something to skip, xmin, ymin, xmax, ymax) -> boxes in 256 pixels."""
    try:
        found = [[float(corner.text) for corner in box[1:]] for annotator in ET.fromstring(_annotation(path))
                 for box in annotator if box.tag == 'bbox']
        good = found and all(len(box) == 4 and all(map(math.isfinite, box)) for box in found)
    except (ET.ParseError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f'{path} is no annotation with boxes of four numbers: fetch it again, or take {path.stem} off '
                         'the list')
    return found


def _text(label):
    return label.replace('_', ' ')


# ------------------------------------------------------------------------------------------------
# Samples
# ------------------------------------------------------------------------------------------------

@dataclass
class BenchmarkSample:
    id: str
    images: list                # the frame; a mixture has two, the first stands at the left
    sounds: list                # what is heard, mixed where there are two; none in silence and noise
    label: str | list | None    # class name for the oracle, one per source; None where the set has none
    boxes: list | None          # [[x0, y0, x1, y1]], for a mixture one such list per frame; None: from the mask
    masks: list = field(default_factory=list)       # files of the sounding object's mask, one per source or none
    group: str | None = None    # the frame, or clip, that samples share; by default the id
    condition: str = 'positive'
    unit: float = 1             # the frame's side in the boxes' numbers: 1, shares
    agreement: int = 1          # boxes that make a pixel count fully (Flickr: 2)
    threshold: int = 1          # least grey of the mask that is object; of a JPEG 128 (media.py)
    ade_class: int | None = None        # the mask is an ADE20K annotation, this class the object
    stereo: bool = False        # left and right channel one after the other (AVSBench)
    number: int = 0             # in its list, for noise

    def __post_init__(self):
        self.group = self.group or self.id


def list_vggss(root):
    """VGG-SS (Chen et al., 2021): vggss.json [{file, class, bbox: [[x0, y0, x1, y1] as shares]}]."""
    folder, samples = Path(root) / 'vggss', []
    for entry in _read_boxes(folder / 'vggss.json', 'file', 'bbox'):
        name, mask = entry['file'], folder / f'gt_masks/{entry["file"]}.png'        # masks: in the miniature only
        samples.append(BenchmarkSample(name, [file_of(folder / 'frames', name, PICTURES)],
                                       [sound_file(folder / 'audio', name)],
                                       (entry.get('class') or '').strip() or None, entry['bbox'],
                                       [mask] if mask.exists() else []))
    return samples


def list_flickr(root):
    """SoundNet-Flickr test (Senocak et al., 2018): flickr_test.csv (id,phrase), an XML of several people's boxes each.

    Paper: it gives no oracle row for this set, "ground truth class labels" being unavailable. The list does hold a
    phrase for each sample; it is left out, so that there is no such row here either.
    """
    folder = Path(root) / 'flickr/test'
    return [BenchmarkSample(name, [file_of(folder / 'frames', name, PICTURES)], [sound_file(folder / 'audio', name)],
                            None, _read_flickr_boxes(folder / f'Annotations/{name}.xml'), unit=256, agreement=2)
            for name, _ in read_rows(Path(root) / 'flickr/flickr_test.csv', ('id', 'label'))]


def _list_extended(folder, silent_csv, plain, plain_folder):
    """Mo and Morgado (2022a): the plain set, then as many pairs in which nothing visible sounds. Ids <frame>_<sound>.

    extend_frames and extend_audio are looked in first, for both kinds; what is not there is the plain set's.
    """
    def pair(frame, sound, sample, condition):
        images = [file_of(folder / 'extend_frames', frame, PICTURES), file_of(plain_folder / 'frames', frame, PICTURES)]
        sounds = [sound_file(folder / 'extend_audio', sound), sound_file(plain_folder / 'audio', sound)]
        return replace(sample, id=f'{frame}_{sound}', images=[images[not images[0].is_file()]], group=frame,
                       sounds=[sounds[not sounds[0].is_file()]], masks=[], condition=condition)

    nothing = BenchmarkSample('', [], [], None, [])
    silent = read_rows(folder / silent_csv, ('video', 'audio', 'label'), header=True)
    if odd := [label for *_, label in silent if label != 'non-sounding']:
        raise ValueError(f'{folder / silent_csv} has the label {odd[0]!r}: it lists non-sounding pairs only, the '
                         'sounding ones are those of the plain set')
    return ([pair(s.id, s.id, s, 'sounding') for s in sorted(plain, key=lambda s: s.id)]
            + [pair(frame, sound, nothing, 'silent') for frame, sound, _ in sorted(silent)])


def list_ext_vggss(root):
    """Extended VGG-SS. vggss_test.csv (id,label), the plain list, names what vggss.json does, box by box."""
    folder = Path(root) / 'vggss'
    return _list_extended(folder, 'vggss_test_plus_silent.csv', list_vggss(root), folder)


def list_ext_flickr(root):
    """Extended SoundNet-Flickr."""
    folder = Path(root) / 'flickr'
    return _list_extended(folder, 'flickr_test_plus_silent.csv', list_flickr(root), folder / 'test')


def _list_boxed(folder, annotation, masks, suffixes, labels, **more):
    """A json list [{image, audio, gt_box: [x0, y0, x1, y1] in 224 pixels}] of which only base names count.

    labels(name) -> class name or None. Masks are those in the folder `masks`, none where there is no such folder.
    """
    samples = []
    for entry in _read_boxes(folder / annotation, 'image', 'gt_box'):
        name = Path(entry['image']).stem
        mask = [file_of(folder / masks, name, suffixes)] if (folder / masks).is_dir() else []
        samples.append(BenchmarkSample(name, [file_of(folder / 'visual_frames', name, PICTURES)],
                                       [sound_file(folder / 'audio_wav', name)], labels(name), [entry['gt_box']], mask,
                                       name.rpartition('_')[0], unit=GROUND_TRUTH_SIZE, **more))
    return samples


def list_is4(root):
    """IS4 (Senocak et al., 2025), released as IS3: two samples per image, named <scene>_<the sounding one>."""
    return _list_boxed(Path(root) / 'is4', 'synthetic3240_bbox.json', 'gt_masks', ('.png', '.jpg'),
                       lambda name: name.rpartition('_')[2])


def _list_vpo(folder):
    """VPO (Chen et al., 2024), names <coco image>_<annotation>; masks are JPEG, hence the threshold.

    labels.csv (id,label) is made from COCO's instance annotations: the release names no class, which the oracle needs.
    """
    path = folder / 'labels.csv'
    labels = unique(read_rows(path, ('id', 'label')), path) if path.exists() else {}
    samples = _list_boxed(folder, f'{folder.name}_bbox.json', 'gray_masks', ('.jpg', '.png'), labels.get, threshold=128)
    if labels and not any(s.label for s in samples):
        raise ValueError(f'{path} names no sample of its set, the first being {samples[0].id}: '
                         'write a line id,label for each, or remove the file')
    return samples


def list_vpo_ss(root):
    """VPO-SS: one sounding object a frame."""
    return _list_vpo(Path(root) / 'vpo_ss')


def list_vpo_ms(root):
    """VPO-MS: one to five sounding objects a frame, a sample for each."""
    return _list_vpo(Path(root) / 'vpo_ms')


def _list_avsbench(folder, annotation, boxes):
    """AVSBench (Zhou et al., 2022): lines <clip>_<1..5>,label; five frames share the sound <clip>.wav."""
    samples = []
    for name, label in read_rows(folder / annotation, ('id', 'label')):
        samples.append(BenchmarkSample(name, [file_of(folder / 'visual_frames', name, ('.png', '.jpg'))],
                                       [sound_file(folder / 'audio_wav', name.rpartition('_')[0])], _text(label),
                                       [boxes[name]] if name in boxes else None,
                                       [file_of(folder / 'gt_masks', name, ('.png',))], unit=GROUND_TRUTH_SIZE,
                                       stereo=True))
    return samples


def list_avs_s4(root):
    """AVSBench S4, single source; boxes, s4_box.json in 224 pixels, by Senocak et al. (2025)."""
    folder = Path(root) / 'avsbench/s4'
    path = folder / 's4_box.json'
    entries = _read_boxes(path, 'image', 'gt_box')
    boxes = unique([(Path(entry['image']).stem, entry['gt_box']) for entry in entries], path)
    samples = _list_avsbench(folder, 'avs1_s4_test.csv', boxes)
    if bare := [s.id for s in samples if s.boxes is None]:
        raise ValueError(f'{path} has no box for {bare[0]} and {len(bare) - 1} others: fetch it '
                         'again')
    return samples


def list_avs_ms3(root):
    """AVSBench MS3, several sources: labels such as "guitar, violin", masks only; some are empty, and stay."""
    return _list_avsbench(Path(root) / 'avsbench/ms3', 'avs1_ms3_test.csv', {})


def list_ade20k(root):
    """DenseAV ADE20K, sound prompted (Hamilton et al., 2024): a sound asks for a class, every object of which counts.

    prompted_segmentation.csv has image_location, vggsound_file and ade_class_id among its columns; lines of class 0 or
    without a sound ask for nothing and are left out, as its authors do.
    """
    folder, samples = Path(root) / 'ade20k', []
    path = folder / 'prompted_segmentation.csv'
    for image, sound, number in read_rows(path, ('image_location', 'vggsound_file', 'ade_class_id'), True,
                                           blank='vggsound_file'):
        if not re.fullmatch(r'\d{1,9}(\.0*)?', number, re.ASCII):
            raise ValueError(f'{path}: the ade_class_id of {image} is {number!r}, not a whole number: fetch it again')
        if float(number) and sound:
            image, sound, number = Path(image), Path(sound).stem, int(float(number))
            samples.append(BenchmarkSample(f'{image.stem}_{number}_{sound}', [folder / 'frames' / image],
                                           [sound_file(folder / 'audio', sound)], None, None,
                                           [folder / 'annotations' / image.with_name(f'{image.stem}_seg.png')],
                                           ade_class=number))
    return samples


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


def list_vgg_instruments(root):
    """VGGSound-Instruments (Hu et al., 2022a), lines sample,class,sample,class; masks are pickled arrays."""
    folder, samples = Path(root) / 'vgg_instruments', []
    rows = read_rows(folder / 'vgginstruments_multi_test.csv', ('sample1', 'class1', 'sample2', 'class2'))
    for a, label_a, b, label_b in rows:
        samples.append(BenchmarkSample(f'{a}_{b}', [file_of(folder / 'frames', name, PICTURES) for name in (a, b)],
                                       [sound_file(folder / 'audio', name) for name in (a, b)],
                                       [_text(label_a), _text(label_b)], None,
                                       [folder / f'annotations/{name}.pkl' for name in (a, b)]))
    return samples


def list_vgg_duet(root):
    """VGGSound-Duet (Mo & Tian, 2023), lines id1,label1,id2,label2; frames, sounds and boxes are VGG-SS's."""
    path, samples = Path(root) / 'vgg_duet/vggsound_duet_test.csv', []
    rows = read_rows(path, ('id1', 'label1', 'id2', 'label2'))
    boxes = Path(root) / 'vggss/vggss.json'
    single = unique([(s.id, s) for s in list_vggss(root)], boxes)
    for a, label_a, b, label_b in rows:
        if absent := [name for name in (a, b) if name not in single]:
            raise ValueError(f'{path} names {absent[0]}, for which {boxes} has no boxes: fetch '
                             'both again')
        pair = single[a], single[b]
        samples.append(BenchmarkSample(f'{a}_{b}', [s.images[0] for s in pair], [s.sounds[0] for s in pair],
                                       [_text(label_a), _text(label_b)], [s.boxes for s in pair]))
    return samples


BENCHMARKS = {'vggss': list_vggss, 'flickr': list_flickr, 'is4': list_is4, 'vpo_ss': list_vpo_ss, 'vpo_ms': list_vpo_ms,
              'avs_s4': list_avs_s4, 'avs_ms3': list_avs_ms3, 'ade20k': list_ade20k, 'ext_vggss': list_ext_vggss,
              'ext_flickr': list_ext_flickr, 'robust_s4': list_robust_s4, 'robust_ms3': list_robust_ms3,
              'vgg_instruments': list_vgg_instruments, 'vgg_duet': list_vgg_duet}


def area_statistic(path):
    """Of a vggss.json: mean and deviation (over n) of the share of the frame that a sample's clipped boxes cover.

    Paper: Table 14 motivates p+ = 0.4 by 0.3124 +- 0.2342; that is this, of the maps of 224 x 224 that are scored.
    """
    shares = [box_map(entry['bbox']).mean().item() for entry in _read_boxes(Path(path), 'file', 'bbox')]
    return float(np.mean(shares)), float(np.std(shares))

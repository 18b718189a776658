"""What the test sets share: BenchmarkSample; reading lists (csv, jsonl, txt) and boxes (json)."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WHERE = 'docs/datasets.md says what goes where; --data-root names another root'
DATA = ('vggsound', 'vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avsbench', 'ade20k',
        'vgg_instruments', 'vgg_duet', 'world.json', 'scenes.jsonl', 'captions.jsonl',
        'captions-image.jsonl', 'captions-audio.jsonl')     # what a data root holds


@dataclass
class BenchmarkSample:
    """The files and annotations of a sample; nothing of them is opened."""
    id: str
    images: list                # the frame; of a mixture two, left and right
    sounds: list                # files to hear; two are mixed; none in silence and noise
    label: str | list | None = None     # class name, two of a mixture; None: no oracle
    boxes: list | None = None   # [[x0, y0, x1, y1]], of a mixture a list per frame; None: see masks
    masks: list = field(default_factory=list)   # files: the sounding object's, one per sound
    group: str | None = None    # samples of the same frame share it; default: the id
    condition: str = 'positive'     # or silence, noise, offscreen; extended: sounding, silent
    unit: float = 1             # side of the frame in units of `boxes`; 1: they are shares of it
    agreement: int = 1          # number of boxes that count fully (Flickr: 2; media.box_map)
    ade_class: int | None = None        # the object's class, if the mask is an ADE20K annotation
    stereo: bool = False        # play the left channel, then the right one (AVSBench)
    number: int = 0             # position in its list: the seed of its noise

    def __post_init__(self):
        self.group = self.group or self.id


def boxes_of_frames(sample):
    """An array (boxes, 4) for each frame of a sample that has boxes."""
    frames = sample.boxes if len(sample.images) > 1 else [sample.boxes]
    return [np.reshape(boxes, (-1, 4)) for boxes in frames or () if boxes]


def boxes_out(sample):
    """How many boxes of a sample reach beyond their frame."""
    corners = boxes_of_frames(sample)
    return sum(int(((c < 0) | (c > sample.unit)).any(1).sum()) for c in corners)


def files_of_root(root):
    """What no result may overwrite: inputs for launch.overwritten."""
    return [('a file of the data', Path(root, name)) for name in DATA]


def annotation_text(path, remedy='fetch it again'):
    """The text of a file that lists samples or boxes."""
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}, which lists samples or boxes: {WHERE}')
    return utf8_text(path, remedy)


def utf8_text(path, remedy):
    r"""The text of a file, with line ends \n. ValueError: one sentence that ends with `remedy`."""
    try:
        text = path.read_text(encoding='utf-8-sig')     # -sig: without a byte-order mark
        if '\0' in text:
            raise ValueError('it holds zero bytes, as UTF-16 does')
    except ValueError as error:                         # UnicodeDecodeError is one
        raise ValueError(f'{path} is not a UTF-8 text ({error}): {remedy}') from None
    return text


def csv_lines(path, remedy='fetch it again'):
    """Yields (line number, stripped fields) of the lines of a csv file that are not blank."""
    for number, line in enumerate(annotation_text(path, remedy).split('\n'), 1):
        try:                # one by one: a stray quote would join all lines up to the next quote
            fields = [field.strip() for field in next(csv.reader([line], strict=True), [])]
        except csv.Error as error:
            raise ValueError(f'{path}, line {number}: not comma-separated ({error}), perhaps by a '
                             f'stray quote: {remedy}') from None
        if any(fields):
            yield number, fields


def json_lines(path, remedy):
    """The JSON objects of a text file, one a line. ValueError names the line."""
    rows = []
    for number, line in enumerate(utf8_text(path, remedy).split('\n'), 1):
        try:
            if line.strip():
                rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f'{path}: line {number} is not a JSON object, or is truncated: '
                             f'{remedy}') from None
    return rows


def unique(pairs, path):
    """dict(pairs). ValueError if a name of the file `path` occurs twice."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f'{path} names {name} twice: keep one entry, or fetch it again')
        found[name] = value
    return found


def read_rows(path, columns, header=False, blank=None):
    """A csv file -> [(the fields of `columns`) of each line]. Only the column `blank` may be empty.

    header: the first line names the columns, in any order and perhaps with others.
    """
    lines = list(csv_lines(path))
    names = lines.pop(0)[1] if header and lines else columns
    for name in columns:
        if name not in names:
            raise ValueError(f'{path} has no column {name!r}: its first line must name '
                             f'{", ".join(columns)}')
    if not lines:
        raise ValueError(f'{path} lists no sample: fetch it again')
    rows = []
    for number, fields in lines:
        if len(fields) != len(names):
            raise ValueError(f'{path}, line {number}: {len(fields)} fields where '
                             f'{",".join(names)} has {len(names)}: fetch it again')
        row = tuple(fields[names.index(name)] for name in columns)
        for name, text in zip(columns, row):
            if not text and name != blank:
                raise ValueError(f'{path}, line {number}: {name!r} is empty: fetch it again')
        rows.append(row)
    return rows


def read_boxes(path, name, box):
    """A json list [{name: a file, box: boxes, perhaps 'class'}] -> {id: (boxes, class or None)}.

    An id is the stem of the file. box: 'bbox', several [x0, y0, x1, y1] in shares of the frame, or
    'gt_box', a single one in 224 pixels.
    """
    try:
        entries = json.loads(annotation_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON ({error}): fetch it again') from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} lists no sample: fetch it again')
    found = []
    for number, entry in enumerate(entries):
        try:
            boxes = np.array([entry[box]] if box == 'gt_box' else entry[box])       # (boxes, 4)
            if boxes.dtype.kind not in 'if' or boxes.shape[1:] != (4,):
                raise ValueError
            if not np.isfinite(boxes).all():
                raise ValueError
            label = (entry.get('class') or '').strip() or None
            found.append((Path(entry[name]).stem, (boxes.tolist(), label)))
        except (AttributeError, KeyError, TypeError, ValueError):   # NumPy's, too, of ragged lists
            raise ValueError(f'{path}: entry {number} needs {name!r}, a text, and {box!r}, four '
                             'numbers for each box; fetch it again') from None
    corners = np.concatenate([np.ravel(boxes) for _, (boxes, _) in found])
    if box == 'bbox' and np.median(corners) > 1:    # not the maximum: VGG-SS has a corner at 1e16
        raise ValueError(f'{path} has boxes in pixels: they must be shares of the frame, 0..1')
    if box == 'gt_box' and 0 < corners.max() <= 1:
        raise ValueError(f'{path} has boxes in shares of the frame: they must be pixels of 224')
    return unique(found, path)


def read_labels(path, option):
    """A file with a class name per line -> the names. option: what names the file, for errors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of class names at {path}: correct {option}')
    lines = utf8_text(path, 'write a name per line').split('\n')
    names = [line.strip().strip('"') for line in lines]     # a csv quotes names with a comma
    names = [name for name in names if name]
    if not names:
        raise ValueError(f'{path} holds no class name: write one per line')
    return list(unique(zip(names, names), path))

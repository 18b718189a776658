"""What the fourteen test sets share: reading lists (csv) and boxes (json), and BenchmarkSample."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

WHERE = 'README.md, "Real data", says what goes where; --data-root names another root'


@dataclass
class BenchmarkSample:
    id: str
    images: list                # the frame; of a mixture two, the first stands at the left
    sounds: list                # files that are heard, mixed if two; none in silence and noise
    label: str | list | None    # class name for the oracle, of a mixture two; None: there is none
    boxes: list | None          # [[x0, y0, x1, y1]], of a mixture a list per frame; None: see masks
    masks: list = field(default_factory=list)   # of the sounding object, one per sound or none
    group: str | None = None    # samples of one frame share it; by default the id
    condition: str = 'positive'     # silence, noise, offscreen; extended: sounding, silent
    unit: float = 1             # the frame's side in the numbers of the boxes; 1: shares
    agreement: int = 1          # boxes that make a pixel count fully (Flickr: 2)
    threshold: int = 1          # least grey of the mask that is object; of a JPEG 128 (media.py)
    ade_class: int | None = None        # of the object, where the mask is an ADE20K annotation
    stereo: bool = False        # left channel, then right channel (AVSBench)
    number: int = 0             # position in its list, which seeds its noise

    def __post_init__(self):
        self.group = self.group or self.id


def annotation(path):
    """The text of an annotation file."""
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}, which lists samples or boxes: {WHERE}')
    return utf8_text(path, 'fetch it again')


def utf8_text(path, remedy):
    """The content of a text file, its lines ending in \\n. ValueError, one sentence."""
    try:
        text = path.read_text(encoding='utf-8-sig')     # -sig: skips a byte-order mark
        if '\0' in text:
            raise ValueError('it holds zero bytes, as UTF-16 does')
    except ValueError as error:                         # UnicodeDecodeError is one
        raise ValueError(f'{path} is not a UTF-8 text ({error}): {remedy}') from None
    return text


def csv_lines(path, text, remedy='fetch it again'):
    """The lines of a csv text that are not blank -> [(line number, stripped fields)]."""
    found = []              # parsed one by one: a stray quote would join all lines up to the next
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
    """dict(pairs). ValueError if the file has a name twice."""
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise ValueError(f'{path} names {twice[0]} twice: keep one entry, or fetch it again')
    return dict(pairs)


def read_rows(path, columns, header=False, blank=None):
    """A csv file -> [a text for each of `columns`]. blank: the column that may be empty.

    header: the first line names the columns, which may be more and in another order.
    """
    lines = csv_lines(path, annotation(path))
    names = lines.pop(0)[1] if header and lines else columns
    absent = [name for name in columns if name not in names]
    if absent:
        raise ValueError(f'{path} has no column {absent[0]!r}: its first line must name '
                         f'{", ".join(columns)}')
    rows = []
    for number, fields in lines:
        if len(fields) != len(names):
            raise ValueError(f'{path}, line {number}: {len(fields)} fields where '
                             f'{",".join(names)} has {len(names)}: fetch it again')
        row = dict(zip(names, fields))
        empty = [name for name in columns if not row[name] and name != blank]
        if empty:
            raise ValueError(f'{path}, line {number}: {empty[0]!r} is empty: fetch it again')
        rows.append(tuple(row[name] for name in columns))
    if not rows:
        raise ValueError(f'{path} lists no sample: fetch it again')
    return rows


def read_boxes(path, name, box):
    """A json file -> [{name: a text, box: its boxes, perhaps 'class': a text}].

    'bbox': several [x0, y0, x1, y1] in shares of the frame; 'gt_box': a single one in 224 pixels.
    """
    try:
        entries = json.loads(annotation(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON ({error}): fetch it again') from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} lists no sample: fetch it again')
    for number, entry in enumerate(entries):
        try:
            boxes = np.array([entry[box]] if box == 'gt_box' else entry[box])
            valid = boxes.shape[1:] == (4,) and boxes.dtype.kind in 'if'
            valid = valid and np.isfinite(boxes).all() and isinstance(entry[name], str)
            valid = valid and isinstance(entry.get('class') or '', str)
        except (KeyError, TypeError, ValueError):       # of ragged lists NumPy's ValueError
            valid = False
        if not valid:
            raise ValueError(f'{path}: entry {number} needs {name!r}, a text, and {box!r}, four '
                             'numbers for each box; fetch it again')
    numbers = np.concatenate([np.ravel(entry[box]) for entry in entries])
    if box == 'bbox' and np.median(numbers) > 1:    # not the maximum: VGG-SS has a corner at 1e16
        raise ValueError(f'{path} has boxes in pixels: they must be shares of the frame, 0..1')
    if box == 'gt_box' and 0 < numbers.max() <= 1:
        raise ValueError(f'{path} has boxes in shares of the frame: they must be pixels of 224')
    return entries

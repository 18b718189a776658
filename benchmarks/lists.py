"""Annotation files: lists of samples and of boxes, and what they make of a sample."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

WHERE = 'README.md, "Real data", says what goes where; --data-root names another root'


def annotation(path):
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
    rows = csv_lines(path, annotation(path))
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


def read_boxes(path, name, box):
    """The list in an annotation file, each entry a dict with a text under `name` and boxes under `box`.

    'bbox': a list of boxes as shares of the frame; 'gt_box': one box in 224 pixels.
    """
    try:
        entries = json.loads(annotation(path))
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


def spaced(label):
    return label.replace('_', ' ')


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

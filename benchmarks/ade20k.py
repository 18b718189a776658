"""DenseAV ADE20K, prompted by sound (Hamilton et al., 2024)."""

import re
from pathlib import Path

from benchmarks.lists import BenchmarkSample, read_rows
from media import SOUNDS, file_of

COLUMNS = 'image_location', 'vggsound_file', 'ade_class_id'     # among others


def list_ade20k(root):
    """A sound asks for a class; the mask holds all objects of that class."""
    folder = root / 'ade20k'
    path = folder / 'prompted_segmentation.csv'
    samples = []
    for location, heard, number in read_rows(path, COLUMNS, header=True, blank='vggsound_file'):
        if not re.fullmatch(r'\d{1,9}(\.0*)?', number, re.ASCII):
            raise ValueError(f'{path}: the ade_class_id of {location} is {number!r}, not an '
                             'integer: fetch it again')
        image = Path(location)
        ade_class = int(float(number))
        if not ade_class or not heard:
            continue                        # no class or no sound; its authors skip such lines
        name = f'{image.stem}_{ade_class}_{Path(heard).stem}'
        sound = file_of(folder / 'audio', Path(heard).stem, SOUNDS)
        mask = folder / 'annotations' / image.with_name(f'{image.stem}_seg.png')
        samples.append(BenchmarkSample(name, [folder / 'frames' / image], [sound], masks=[mask],
                                       ade_class=ade_class))
    return samples

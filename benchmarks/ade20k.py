"""DenseAV ADE20K."""

import re
from pathlib import Path

from benchmarks.lists import BenchmarkSample, read_rows
from media import sound_file


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

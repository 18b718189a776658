"""SoundNet-Flickr, and its extended set."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.lists import BenchmarkSample, annotation, read_rows
from benchmarks.vggss import list_extended
from media import PICTURES, file_of, sound_file


def _read_flickr_boxes(path):
    """Annotations/<id>.xml, root > annotator > bbox > (something to skip, xmin, ymin, xmax, ymax) -> boxes in 256 pixels."""
    try:
        found = [[float(corner.text) for corner in box[1:]] for annotator in ET.fromstring(annotation(path))
                 for box in annotator if box.tag == 'bbox']
        good = found and all(len(box) == 4 and all(map(math.isfinite, box)) for box in found)
    except (ET.ParseError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f'{path} is no annotation with boxes of four numbers: fetch it again, or take {path.stem} off '
                         'the list')
    return found


def list_flickr(root):
    """SoundNet-Flickr test (Senocak et al., 2018): flickr_test.csv (id,phrase), an XML of several people's boxes each.

    Paper: it gives no oracle row for this set, "ground truth class labels" being unavailable. The list does hold a
    phrase for each sample; it is left out, so that there is no such row here either.
    """
    folder = Path(root) / 'flickr/test'
    return [BenchmarkSample(name, [file_of(folder / 'frames', name, PICTURES)], [sound_file(folder / 'audio', name)],
                            None, _read_flickr_boxes(folder / f'Annotations/{name}.xml'), unit=256, agreement=2)
            for name, _ in read_rows(Path(root) / 'flickr/flickr_test.csv', ('id', 'label'))]


def list_ext_flickr(root):
    """Extended SoundNet-Flickr."""
    folder = Path(root) / 'flickr'
    return list_extended(folder, 'flickr_test_plus_silent.csv', list_flickr(root), folder / 'test')

"""SoundNet-Flickr (Senocak et al., 2018). Its extended set: vggss.py."""

import xml.etree.ElementTree as ET

import numpy as np

from benchmarks.lists import BenchmarkSample, annotation_text, read_rows
from media import PICTURES, SOUNDS, file_of


def list_flickr(root):
    """flickr_test.csv: lines id,phrase; for each id an XML file, boxes of several annotators."""
    # Paper [37]: no oracle row, for want of "ground truth class labels"; so the phrases are unused
    folder = root / 'flickr/test'
    samples = []
    for name, _ in read_rows(root / 'flickr/flickr_test.csv', ('id', 'label')):
        frame = file_of(folder / 'frames', name, PICTURES)
        sound = file_of(folder / 'audio', name, SOUNDS)
        boxes = read_xml(folder / f'Annotations/{name}.xml')
        samples.append(BenchmarkSample(name, [frame], [sound], boxes=boxes, unit=256, agreement=2))
    return samples


def read_xml(path):
    """root > annotator > bbox > (an id, xmin, ymin, xmax, ymax) -> boxes in 256 pixels."""
    boxes = []
    try:
        for box in ET.fromstring(annotation_text(path)).iterfind('*/bbox'):
            boxes.append([float(corner.text) for corner in box[1:]])
        if np.shape(boxes)[1:] != (4,) or not np.isfinite(boxes).all():
            raise ValueError
    except (ET.ParseError, TypeError, ValueError):
        raise ValueError(f'{path} is not an annotation with boxes of four numbers: fetch it again, '
                         f'or remove {path.stem} from the list') from None
    return boxes

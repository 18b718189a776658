"""VPO (Chen et al., 2024): COCO's images and masks, VGGSound's sounds."""

from benchmarks.is4 import list_boxed
from benchmarks.lists import read_rows, unique


def list_vpo(folder):
    """VPO-SS has one sounding object per frame, VPO-MS one to five, and a sample for each.

    An id is <coco image>_<annotation>. Masks are JPEG, hence the threshold. The release has no
    classes for the oracle: make labels.csv (id,label) from COCO's instance annotations.
    """
    path = folder / 'labels.csv'
    labels = unique(read_rows(path, ('id', 'label')), path) if path.exists() else {}
    samples = list_boxed(folder, f'{folder.name}_bbox.json', 'gray_masks', ('.jpg', '.png'),
                         labels.get, threshold=128)
    if labels and not any(s.label for s in samples):
        raise ValueError(f'{path} names no sample of its set, the first being {samples[0].id}: '
                         'write a line id,label for each, or remove the file')
    return samples

"""VPO."""

from pathlib import Path

from benchmarks.is4 import list_boxed
from benchmarks.lists import read_rows, unique


def _list_vpo(folder):
    """VPO (Chen et al., 2024), names <coco image>_<annotation>; masks are JPEG, hence the threshold.

    labels.csv (id,label) is made from COCO's instance annotations: the release names no class, which the oracle needs.
    """
    path = folder / 'labels.csv'
    labels = unique(read_rows(path, ('id', 'label')), path) if path.exists() else {}
    samples = list_boxed(folder, f'{folder.name}_bbox.json', 'gray_masks', ('.jpg', '.png'), labels.get, threshold=128)
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

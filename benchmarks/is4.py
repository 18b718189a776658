"""IS4 (Senocak et al., 2025), released as IS3; VPO has the same layout."""

from pathlib import Path

from benchmarks.lists import BenchmarkSample, read_boxes
from media import GROUND_TRUTH_SIZE, PICTURES, SOUNDS, file_of


def list_is4(root):
    """Two samples per frame; an id is <scene>_<the object that sounds>."""
    return list_boxed(root / 'is4', 'synthetic3240_bbox.json', 'gt_masks', ('.png', '.jpg'),
                      lambda name: name.rpartition('_')[2])


def list_boxed(folder, annotation, masks, suffixes, label_of, threshold=1):
    """A json list [{image, audio, gt_box: a box in 224 pixels}]; an id is the stem of `image`.

    Ids of the same frame differ after their last _. The folder `masks` may be missing.
    """
    samples = []
    for entry in read_boxes(folder / annotation, 'image', 'gt_box'):
        name = Path(entry['image']).stem
        frame = file_of(folder / 'visual_frames', name, PICTURES)
        sound = file_of(folder / 'audio_wav', name, SOUNDS)
        mask = [file_of(folder / masks, name, suffixes)] if (folder / masks).is_dir() else []
        samples.append(BenchmarkSample(name, [frame], [sound], label_of(name), [entry['gt_box']],
                                       mask, name.rpartition('_')[0], unit=GROUND_TRUTH_SIZE,
                                       threshold=threshold))
    return samples

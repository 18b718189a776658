"""IS4."""

from pathlib import Path

from benchmarks.lists import BenchmarkSample, read_boxes
from media import GROUND_TRUTH_SIZE, PICTURES, file_of, sound_file


def list_boxed(folder, annotation, masks, suffixes, labels, **more):
    """A json list [{image, audio, gt_box: [x0, y0, x1, y1] in 224 pixels}] of which only base names count.

    labels(name) -> class name or None. Masks are those in the folder `masks`, none where there is no such folder.
    """
    samples = []
    for entry in read_boxes(folder / annotation, 'image', 'gt_box'):
        name = Path(entry['image']).stem
        mask = [file_of(folder / masks, name, suffixes)] if (folder / masks).is_dir() else []
        samples.append(BenchmarkSample(name, [file_of(folder / 'visual_frames', name, PICTURES)],
                                       [sound_file(folder / 'audio_wav', name)], labels(name), [entry['gt_box']], mask,
                                       name.rpartition('_')[0], unit=GROUND_TRUTH_SIZE, **more))
    return samples


def list_is4(root):
    """IS4 (Senocak et al., 2025), released as IS3: two samples per image, named <scene>_<the sounding one>."""
    return list_boxed(Path(root) / 'is4', 'synthetic3240_bbox.json', 'gt_masks', ('.png', '.jpg'),
                       lambda name: name.rpartition('_')[2])

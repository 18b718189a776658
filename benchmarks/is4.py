"""IS4 (Senocak et al., 2025), released as IS3, and VPO (Chen et al., 2024), of the same layout."""

from benchmarks.lists import BenchmarkSample, read_boxes, read_rows, unique
from media import GROUND_TRUTH_SIZE, PICTURES, SOUNDS, file_of


def list_is4(root):
    """Two samples per frame; an id is <scene>_<the object that sounds>."""
    return list_boxed(root / 'is4', 'synthetic3240_bbox.json', 'gt_masks', ('.png', '.jpg'),
                      lambda name: name.rpartition('_')[2])


def list_vpo(folder):
    """COCO's images and masks, VGGSound's sounds. An id is <coco image>_<annotation>.

    VPO-SS has one sounding object per frame, VPO-MS one to five, and a sample for each. Masks are
    JPEG (media.read_mask). The release has no classes for the oracle: make labels.csv (id,label)
    from COCO's instance annotations.
    """
    path = folder / 'labels.csv'
    labels = unique(read_rows(path, ('id', 'label')), path) if path.exists() else {}
    samples = list_boxed(folder, f'{folder.name}_bbox.json', 'gray_masks', ('.jpg', '.png'),
                         labels.get)
    if labels and not any(s.label for s in samples):
        raise ValueError(f'{path} names no sample of its set, the first being {samples[0].id}: '
                         'write a line id,label for each, or remove the file')
    return samples


def list_boxed(folder, boxes_file, masks, suffixes, label_of):
    """A json list [{image, audio, gt_box: a box in 224 pixels}]; `image` names the files.

    Ids of the same frame differ after their last _. masks: a folder, which may be missing.
    suffixes: of masks. label_of(id) -> class name or None.
    """
    samples = []
    for name, (boxes, _) in read_boxes(folder / boxes_file, 'image', 'gt_box').items():
        frame = file_of(folder / 'visual_frames', name, PICTURES)
        sound = file_of(folder / 'audio_wav', name, SOUNDS)
        mask = [file_of(folder / masks, name, suffixes)] if (folder / masks).is_dir() else []
        samples.append(BenchmarkSample(name, [frame], [sound], label_of(name), boxes, mask,
                                       group=name.rpartition('_')[0], unit=GROUND_TRUTH_SIZE))
    return samples

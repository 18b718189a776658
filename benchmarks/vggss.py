"""VGG-SS (Chen et al., 2021), and extended sets (Mo and Morgado, 2022a)."""

from dataclasses import replace

from benchmarks.lists import BenchmarkSample, read_boxes, read_rows
from media import PICTURES, SOUNDS, file_of


def list_vggss(root):
    """vggss.json: [{file, class, bbox: boxes in shares of the frame}]. Masks: miniature only."""
    # Paper [36]: Table 14 motivates p+ = 0.4 by an area of 0.3124 +- 0.2342, the mean and deviation
    # over these samples of box_map(boxes).mean()
    folder = root / 'vggss'
    samples = []
    for name, (boxes, label) in read_boxes(folder / 'vggss.json', 'file', 'bbox').items():
        frame = file_of(folder / 'frames', name, PICTURES)
        sound = file_of(folder / 'audio', name, SOUNDS)
        mask = folder / f'gt_masks/{name}.png'
        masks = [mask] if mask.exists() else []
        samples.append(BenchmarkSample(name, [frame], [sound], label, boxes, masks))
    return samples


def extended(plain, folder, plain_folder):
    """The plain set, then as many pairs in which nothing visible sounds. Ids: <frame>_<sound>.

    Files are looked for in folder/extend_frames and extend_audio, then in plain_folder/frames and
    audio, those of the plain set.
    """
    path = folder / f'{folder.name}_test_plus_silent.csv'
    pairs = [(s, s.id, s.id, 'sounding') for s in sorted(plain, key=lambda s: s.id)]
    nothing = BenchmarkSample('', [], [], boxes=[])
    for frame, sound, label in sorted(read_rows(path, ('video', 'audio', 'label'), header=True)):
        if label != 'non-sounding':
            raise ValueError(f'{path} has the label {label!r}: it lists only non-sounding pairs, '
                             'the sounding ones are those of the plain set')
        pairs.append((nothing, frame, sound, 'silent'))
    samples = []
    for truth, frame, sound, condition in pairs:
        image = file_of(folder / 'extend_frames', frame, PICTURES, plain_folder / 'frames')
        heard = file_of(folder / 'extend_audio', sound, SOUNDS, plain_folder / 'audio')
        samples.append(replace(truth, id=f'{frame}_{sound}', group=frame, condition=condition,
                               images=[image], sounds=[heard], masks=[]))
    return samples

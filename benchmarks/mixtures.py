"""Two frames side by side, two sounds mixed: VGGSound-Instruments and VGGSound-Duet (4.2.5)."""

from benchmarks.lists import BenchmarkSample, read_rows
from benchmarks.vggss import list_vggss
from media import PICTURES, SOUNDS, file_of


def list_vgg_instruments(root):
    """Hu et al. (2022a): lines sample,class,sample,class; masks are pickled arrays."""
    folder = root / 'vgg_instruments'
    path = folder / 'vgginstruments_multi_test.csv'
    samples = []
    for a, label_a, b, label_b in read_rows(path, ('sample1', 'class1', 'sample2', 'class2')):
        frames = [file_of(folder / 'frames', name, PICTURES) for name in (a, b)]
        sounds = [file_of(folder / 'audio', name, SOUNDS) for name in (a, b)]
        masks = [folder / f'annotations/{name}.pkl' for name in (a, b)]
        labels = [label.replace('_', ' ') for label in (label_a, label_b)]
        samples.append(BenchmarkSample(f'{a}_{b}', frames, sounds, labels, masks=masks))
    return samples


def list_vgg_duet(root):
    """Mo & Tian (2023): lines id1,label1,id2,label2; frames, sounds and boxes are VGG-SS's."""
    path = root / 'vgg_duet/vggsound_duet_test.csv'
    rows = read_rows(path, ('id1', 'label1', 'id2', 'label2'))
    single = {s.id: s for s in list_vggss(root)}
    samples = []
    for a, label_a, b, label_b in rows:
        for name in (a, b):
            if name not in single:
                raise ValueError(f'{path} names {name}, for which {root}/vggss/vggss.json has no '
                                 'boxes: fetch both again')
        pair = [single[a], single[b]]
        frames = [s.images[0] for s in pair]
        sounds = [s.sounds[0] for s in pair]
        labels = [label.replace('_', ' ') for label in (label_a, label_b)]
        boxes = [s.boxes for s in pair]
        samples.append(BenchmarkSample(f'{a}_{b}', frames, sounds, labels, boxes))
    return samples

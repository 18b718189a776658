"""Mixtures of two: VGGSound-Instruments and VGGSound-Duet."""

from pathlib import Path

from benchmarks.lists import BenchmarkSample, read_rows, spaced, unique
from benchmarks.vggss import list_vggss
from media import PICTURES, file_of, sound_file


def list_vgg_instruments(root):
    """VGGSound-Instruments (Hu et al., 2022a), lines sample,class,sample,class; masks are pickled arrays."""
    folder, samples = Path(root) / 'vgg_instruments', []
    rows = read_rows(folder / 'vgginstruments_multi_test.csv', ('sample1', 'class1', 'sample2', 'class2'))
    for a, label_a, b, label_b in rows:
        samples.append(BenchmarkSample(f'{a}_{b}', [file_of(folder / 'frames', name, PICTURES) for name in (a, b)],
                                       [sound_file(folder / 'audio', name) for name in (a, b)],
                                       [spaced(label_a), spaced(label_b)], None,
                                       [folder / f'annotations/{name}.pkl' for name in (a, b)]))
    return samples


def list_vgg_duet(root):
    """VGGSound-Duet (Mo & Tian, 2023), lines id1,label1,id2,label2; frames, sounds and boxes are VGG-SS's."""
    path, samples = Path(root) / 'vgg_duet/vggsound_duet_test.csv', []
    rows = read_rows(path, ('id1', 'label1', 'id2', 'label2'))
    boxes = Path(root) / 'vggss/vggss.json'
    single = unique([(s.id, s) for s in list_vggss(root)], boxes)
    for a, label_a, b, label_b in rows:
        if absent := [name for name in (a, b) if name not in single]:
            raise ValueError(f'{path} names {absent[0]}, for which {boxes} has no boxes: fetch '
                             'both again')
        pair = single[a], single[b]
        samples.append(BenchmarkSample(f'{a}_{b}', [s.images[0] for s in pair], [s.sounds[0] for s in pair],
                                       [spaced(label_a), spaced(label_b)], [s.boxes for s in pair]))
    return samples

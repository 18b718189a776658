"""VGG-SS, and its extended set."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.lists import BenchmarkSample, read_boxes, read_rows
from media import PICTURES, box_map, file_of, sound_file


def list_vggss(root):
    """VGG-SS (Chen et al., 2021): vggss.json [{file, class, bbox: [[x0, y0, x1, y1] as shares]}]."""
    folder, samples = Path(root) / 'vggss', []
    for entry in read_boxes(folder / 'vggss.json', 'file', 'bbox'):
        name, mask = entry['file'], folder / f'gt_masks/{entry["file"]}.png'        # masks: in the miniature only
        samples.append(BenchmarkSample(name, [file_of(folder / 'frames', name, PICTURES)],
                                       [sound_file(folder / 'audio', name)],
                                       (entry.get('class') or '').strip() or None, entry['bbox'],
                                       [mask] if mask.exists() else []))
    return samples


def list_extended(folder, silent_csv, plain, plain_folder):
    """Mo and Morgado (2022a): the plain set, then as many pairs in which nothing visible sounds. Ids <frame>_<sound>.

    extend_frames and extend_audio are looked in first, for both kinds; what is not there is the plain set's.
    """
    def pair(frame, sound, sample, condition):
        images = [file_of(folder / 'extend_frames', frame, PICTURES), file_of(plain_folder / 'frames', frame, PICTURES)]
        sounds = [sound_file(folder / 'extend_audio', sound), sound_file(plain_folder / 'audio', sound)]
        return replace(sample, id=f'{frame}_{sound}', images=[images[not images[0].is_file()]], group=frame,
                       sounds=[sounds[not sounds[0].is_file()]], masks=[], condition=condition)

    nothing = BenchmarkSample('', [], [], None, [])
    silent = read_rows(folder / silent_csv, ('video', 'audio', 'label'), header=True)
    if odd := [label for *_, label in silent if label != 'non-sounding']:
        raise ValueError(f'{folder / silent_csv} has the label {odd[0]!r}: it lists non-sounding pairs only, the '
                         'sounding ones are those of the plain set')
    return ([pair(s.id, s.id, s, 'sounding') for s in sorted(plain, key=lambda s: s.id)]
            + [pair(frame, sound, nothing, 'silent') for frame, sound, _ in sorted(silent)])


def list_ext_vggss(root):
    """Extended VGG-SS. vggss_test.csv (id,label), the plain list, names what vggss.json does, box by box."""
    folder = Path(root) / 'vggss'
    return list_extended(folder, 'vggss_test_plus_silent.csv', list_vggss(root), folder)


def area_statistic(path):
    """Of a vggss.json: mean and deviation (over n) of the share of the frame that a sample's clipped boxes cover.

    Paper: Table 14 motivates p+ = 0.4 by 0.3124 +- 0.2342; that is this, of the maps of 224 x 224 that are scored.
    """
    shares = [box_map(entry['bbox']).mean().item() for entry in read_boxes(Path(path), 'file', 'bbox')]
    return float(np.mean(shares)), float(np.std(shares))

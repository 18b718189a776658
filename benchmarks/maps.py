"""Heatmaps on disk: <folder>/<benchmark>/<id>.npy, ours or any other method's (--heatmaps).

A mixture has a map for each source, <id>_0.npy and <id>_1.npy. An extended set needs a confidence
of each sample too: confidence.csv, lines id,confidence.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.lists import csv_lines, utf8_text
from checkpoint import write_file
from media import GROUND_TRUTH_SIZE, SampleError
from metrics import top_quarter_mean

SIZE = (GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE)                   # H, W
PAIR_SIZE = (GROUND_TRUTH_SIZE, 2 * GROUND_TRUTH_SIZE)          # two frames side by side


def save_heatmaps(folder, ids, maps):
    """Write folder/<id>.npy, or <id>_<source>.npy for maps (k, H, W): float16 in 0..1.

    What rounds to 0.5 from above or below is kept on its side of it, so that a saved map cut there
    scores as the map itself did.
    """
    edge = torch.tensor(0.5, dtype=torch.half)
    for name, heat in zip(ids, maps):
        half = heat.half()
        for beyond, side in ((heat > 0.5, 1.0), (heat < 0.5, 0.0)):
            beside = torch.nextafter(edge, torch.tensor(side, dtype=torch.half))
            half = torch.where(beyond & (half == edge), beside, half)
        named = {name: half}
        if half.dim() > 2:
            named = {f'{name}_{k}': source for k, source in enumerate(half)}
        for stem, one in named.items():
            content = io.BytesIO()
            np.save(content, one.numpy())
            write_file(Path(folder, f'{stem}.npy'), content.getvalue(),
                       'free some space or name another place by --save-heatmaps')


def read_heatmap(folder, name, size):
    """<name>.npy, numbers in 0..1, or <name>.png, 8 bit. -> (H, W) float32, or SampleError"""
    path = Path(folder, f'{name}.npy')
    if not path.is_file():
        path = Path(folder, f'{name}.png')
    if not path.is_file():
        raise SampleError(f'no heatmap {Path(folder, name)}.npy or .png: write one of {size[1]} x '
                          f'{size[0]} pixels')
    try:
        heat = read_png(path) if path.suffix == '.png' else np.load(path, allow_pickle=False)
    except SampleError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError,
            Image.DecompressionBombError) as error:
        raise SampleError(f'{path} is not a readable heatmap ({str(error).splitlines()[0]}): write '
                          'it again') from None
    if not isinstance(heat, np.ndarray) or heat.dtype.kind not in 'biuf':
        raise SampleError(f'{path} holds no array of numbers: write the map as one')
    if heat.shape != tuple(size):
        raise SampleError(f'{path} has the shape {heat.shape}: heatmaps are {tuple(size)}, height '
                          'first')
    heat = heat.astype(np.float32)
    if not (heat.min() >= 0 and heat.max() <= 1):           # written so that NaN fails too
        raise SampleError(f'{path} holds values outside 0..1 (or NaN): scale the map, then write '
                          'it again')
    return torch.from_numpy(heat)


def read_png(path):
    with Image.open(path, formats=['PNG']) as image:
        if image.mode not in ('L', '1'):
            raise SampleError(f'{path} is a picture of mode {image.mode}: a heatmap is grey, 8 '
                              'bits a pixel')
        return np.asarray(image.convert('L'), np.float32) / 255


def read_confidences(folder):
    """{id: confidence} of folder/confidence.csv; {} where there is none. ValueError names a line"""
    path = Path(folder, 'confidence.csv')
    found = {}
    if not path.exists():
        return found
    if not path.is_file():
        raise ValueError(f'{path} is a folder or a pipe: put a file of lines id,confidence there')
    for number, line in csv_lines(path, utf8_text(path, 'write it again'), 'write it again'):
        if number == 1 and line == ['id', 'confidence']:
            continue
        try:
            name = line[0]
            value = float(line[1])
        except (IndexError, ValueError):
            value = math.nan
        if len(line) != 2 or not math.isfinite(value) or name in found:
            raise ValueError(f'{path}, line {number}: expected id,confidence, a number, each id '
                             f'once, not {",".join(line)!r}')
        found[name] = value
    if not found:
        raise ValueError(f'{path} holds no confidence: write a line per sample, or remove it')
    return found


def read_maps(folder, needs, confidences, samples):
    """What evaluate.localise gives, from files. -> {'ours': a map, or None, each, 'errors'}

    needs: what the metrics need of a sample. Without confidences SLAVC's own is taken of a map.
    """
    found = {'ours': [], 'errors': []}
    for sample in samples:
        name = sample['id']
        heat = None
        try:
            if 'sources' in needs:
                heat = torch.stack([read_heatmap(folder, f'{name}_{k}', PAIR_SIZE) for k in (0, 1)])
            else:
                heat = read_heatmap(folder, name, SIZE)
        except SampleError as error:
            found['errors'].append(error)
        found['ours'].append(heat)
        if heat is None or 'confidence' not in needs:
            continue
        if not confidences:
            sample['confidence'] = top_quarter_mean(heat[None])[0]
        elif name in confidences:
            sample['confidence'] = torch.tensor(confidences[name])
        else:
            raise ValueError(f'{folder}/confidence.csv has no line for {name}: write one per '
                             'sample')
    return found

"""Heatmaps on disk: <folder>/<benchmark>/<id>.npy, ours or another method's (--heatmaps, --beside).

A mixture has a map for each source, <id>_0.npy and <id>_1.npy. An extended set needs a confidence
of each sample too: confidence.csv, lines id,confidence.
"""

import functools
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.lists import read_rows, unique
from launch import rank_and_processes, write_file
from media import GROUND_TRUTH_SIZE, SampleError, check_file, file_of
from metrics import top_quarter_mean

SIZE = (GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE)                   # H, W
PAIR_SIZE = (GROUND_TRUTH_SIZE, 2 * GROUND_TRUTH_SIZE)          # two frames side by side
MOST_PRINTED = 20       # sentences about unreadable samples of a benchmark, or maps of a row


def save_heatmaps(folder, ids, maps):
    """Write folder/<id>.npy, or <id>_<source>.npy for maps (k, H, W): float16 in 0..1."""
    for name, heat in zip(ids, maps):
        half = heat.half()
        # What rounds to 0.5 goes to its neighbour, so that a saved map cut at 0.5 scores the same
        half[(half == 0.5) & (heat > 0.5)] = 0.5 + 2**-11
        half[(half == 0.5) & (heat < 0.5)] = 0.5 - 2**-12
        stems = [name] if half.dim() == 2 else [f'{name}_{k}' for k in range(len(half))]
        for stem, one in zip(stems, half.view(-1, *half.shape[-2:]).numpy()):
            content = io.BytesIO()
            np.save(content, one)
            write_file(Path(folder, f'{stem}.npy'), content.getvalue(),
                       'free some space or name another place by --save-heatmaps')


def save_confidences(folder, confidences):
    """Write folder/confidence.csv. confidences: [(id, confidence)]"""
    lines = ['id,confidence', *(f'{name},{value}' for name, value in confidences)]
    write_file(Path(folder, 'confidence.csv'), '\n'.join(lines) + '\n')


def read_heatmap(folder, name, size):
    """<name>.npy, numbers in 0..1, or <name>.png, 8 bit. -> (H, W) float32, or SampleError"""
    path = file_of(folder, name, ('.npy', '.png'))
    if not path.is_file():
        raise SampleError(f'no heatmap {path} or .png: write one of {size[1]} x {size[0]} pixels')
    try:
        if path.suffix == '.npy':
            with open(path, 'rb') as file:
                heat = np.lib.format.read_array(file, allow_pickle=False)
        else:
            with Image.open(path, formats=['PNG']) as image:
                if image.mode not in ('L', '1'):
                    raise ValueError(f'mode {image.mode}, but a heatmap is grey, 8 bits a pixel')
                heat = np.asarray(image.convert('L'), np.float32) / 255
    except Exception as error:                          # damaged files raise many kinds of errors
        reason, *_ = str(error).split('\n')
        raise SampleError(f'{path} is not a readable heatmap ({reason}): write it again') from None
    valid = heat.dtype.kind in 'biuf' and heat.shape == size
    if not (valid and heat.min() >= 0 and heat.max() <= 1):             # NaN fails too
        raise SampleError(f'{path} holds {heat.dtype} {heat.shape}, but a heatmap has numbers in '
                          f'0..1 (no NaN) and the shape {size}, height first: write it again')
    return torch.from_numpy(heat.astype(np.float32))


def read_confidences(folder):
    """{id: confidence} of folder/confidence.csv; {} where there is none."""
    path = Path(folder, 'confidence.csv')
    if not path.exists():
        return {}
    check_file(path)
    rows = read_rows(path, ('id', 'confidence'))
    if rows[0] == ('id', 'confidence'):
        rows = rows[1:]
    if not rows:
        raise ValueError(f'{path} holds no confidence: write a line per sample, or remove it')
    found = {}
    for name, text in unique(rows, path).items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise ValueError(f'{path}: the confidence of {name} is {text[:40]!r}, not a number')
    return found


def maps_below(folder, needs):
    """-> read_map of this folder, a function of an id. FileNotFoundError where it is missing

    needs: what the metrics need of a sample: two maps for its 'sources', and its 'confidence'.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}; --benchmarks or --task names the '
                                'sets that have maps')
    confidences = read_confidences(folder)
    if 'confidence' in needs and not confidences and rank_and_processes()[0] == 0:
        print(f'no {folder}/confidence.csv: taking the mean of the highest quarter of each map, as '
              'SLAVC does')
    return functools.partial(read_map, folder, needs, confidences)


def read_map(folder, needs, confidences, name):
    """-> a sample's map, (2, H, W) of a mixture; its confidence, None where it is not needed

    confidences: {id: number}; without any it is SLAVC's. SampleError: a sample lacks its map or its
    confidence, or its map is not valid.
    """
    if 'sources' in needs:
        heat = torch.stack([read_heatmap(folder, f'{name}_{k}', PAIR_SIZE) for k in (0, 1)])
    else:
        heat = read_heatmap(folder, name, SIZE)
    if 'confidence' not in needs:
        return heat, None
    if not confidences:
        return heat, top_quarter_mean(heat[None]).item()
    if name not in confidences:
        raise SampleError(f'{folder}/confidence.csv has no line for {name}: add it')
    return heat, confidences[name]


def read_maps(read, samples):
    """As localise.localise, from files. -> {'heatmaps': a map, or None, of each sample}

    read: see maps_below. A sample that lacks a map gets an 'error'.
    """
    maps = []
    for sample in samples:
        try:
            heat, confidence = read(sample['id'])
        except SampleError as error:
            sample['error'] = error
            maps.append(None)
            continue
        maps.append(heat)
        if confidence is not None:
            sample['confidence'] = {'heatmaps': confidence}
    return {'heatmaps': maps}


# ---- Other methods' maps beside ours (--beside) --------------------------------------------------
def open_others(methods, dataset, tasks):
    """--beside: the maps of other methods. -> {row: read_map}, of those that have this benchmark

    methods: [(row, folder)], folders as of --save-heatmaps. tasks: {task: metric}.
    """
    needs = {key for metric in tasks.values() for key in metric.needs}
    others = {}
    for row, folder in methods:
        try:
            others[row] = maps_below(Path(folder, dataset.name), needs)
        except (OSError, ValueError) as error:      # it must not cost the run its scores
            if rank_and_processes()[0] == 0:
                print(f'{dataset.name}, {row}, is not shown: {error}')
    return others


def with_others(localiser, others, shown, lost, samples):
    """The maps of a localiser, and of others beside them. -> {row: maps}

    others: see open_others. Their maps are read of the samples with an id in `shown` alone, but of
    all in the extended sets, for Figure 7. lost: a Counter of the maps that each row lacks.
    """
    maps = localiser(samples)
    for row, read in others.items():
        maps[row] = [None] * len(samples)
        for i, sample in enumerate(samples):
            is_extended = 'confidence' in sample
            if 'error' in sample or not (is_extended or sample['id'] in shown):
                continue
            try:
                maps[row][i], confidence = read(sample['id'])
            except SampleError as error:
                lost[row] += 1
                if lost[row] <= MOST_PRINTED:
                    more = 'further ones are not printed'
                    tqdm.write(f'{row}: {error if lost[row] < MOST_PRINTED else more}')
                continue
            if is_extended:
                sample['confidence'][row] = confidence
    return maps

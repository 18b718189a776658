"""What evaluate.py shows of its samples: contact sheets, Figure 7's curves, report.html.

report.py says what an example is. Each picture is drawn by itself; one that fails is named.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.maps import maps_below, read_confidences
from figures import attempt, curves, pictures, report
from figures.tables import BENCHMARK_NAMES, EXTENDED, score_of
from launch import rank_and_processes
from media import SAMPLE_RATE, displayable

BY = 'by '      # begins the name of the row of another method (--beside)


def ids_to_show(samples, frames):
    """Ids of up to that many frames, spread over a benchmark, each with all of its sounds."""
    groups = list(dict.fromkeys(sample.group for sample in samples))
    step = math.ceil(len(groups) / frames)
    chosen = set(groups[::step])
    return {sample.id for sample in samples if sample.group in chosen}


def examples_of(task, benchmark, metrics, pictured):
    """Samples to show, of those that the first row's metric has scored. -> dicts, see report.py

    metrics: {row: metric}. pictured: [(sample, {row: its heatmap, or None})].
    """
    first, metric = next(iter(metrics.items()))
    examples = []
    for sample, maps in pictured:
        if sample['id'] not in metric.ids:
            continue
        frame = displayable(sample['image'])
        truth = sample[metric.needs[0]].numpy()
        if sample['sources'] is not None:       # of a mixture, whose two frames were squashed
            size = truth.shape[:0:-1]                                       # W, H
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            truth = list(truth)
        oracle = maps.get('oracle')
        examples.append({
            **sample, 'task': task, 'benchmark': benchmark, 'frame': frame, 'truth': truth,
            'oracle': None if oracle is None else oracle.numpy(), 'rate': SAMPLE_RATE,
            **heat_and_score(sample['id'], metric, maps[first]),
            'beside': {row: heat_and_score(sample['id'], metrics[row], maps[row])
                       for row in maps if row.startswith(BY)}})
    return examples


def heat_and_score(name, metric, heat):
    """A sample's heatmap, IoU and confidence, of one row; None where its metric lacks it."""
    if name not in metric.ids:
        return None
    place = metric.ids.index(name)
    if 'sources' in metric.needs:               # each source beside the map it is scored with
        heats = list(heat[metric.pairings[place]].numpy())
        return {'heat': heats, 'score': None, 'confidence': None}
    confidence = metric.confidence[place] if 'confidence' in metric.needs else None
    score = score_of({'IoU': metric.iou[place]}, 'IoU')
    return {'heat': heat.numpy(), 'score': score, 'confidence': confidence}


def open_others(methods, dataset, tasks):
    """--beside: the maps of other methods. -> {row: localiser}, of those that have this benchmark

    methods: [(name, folder)], folders as of --save-heatmaps. tasks: {task: metric}.
    """
    needs = {key for metric in tasks.values() for key in metric.needs}
    others = {}
    for method, folder in methods:
        maps = Path(folder, dataset.name)
        try:
            if not maps.is_dir():
                raise FileNotFoundError(f'there is no folder {maps}')
            confidences = read_confidences(maps)
            lacking = [s.id for s in dataset.samples if s.id not in confidences]
            if confidences and lacking:
                raise ValueError(f'{maps}/confidence.csv has no line for {lacking[0]}')
            others[BY + method] = maps_below(maps, needs)
        except (OSError, ValueError) as error:      # it must not cost the run its scores
            if rank_and_processes()[0] == 0:
                print(f'{dataset.name}: {method} is not shown: {error}')
    return others


def with_others(localiser, others, benchmark, shown, samples):
    """The maps of a localiser, and of others beside them. -> {row: maps}

    others: see open_others. Their maps are read of the samples with an id in `shown` alone, but of
    all in the extended sets, for Figure 7, where 'confidence' becomes {row: number}.
    """
    maps = localiser(samples)
    for sample in samples:
        if 'confidence' in sample:
            sample['confidence'] = {'ours': sample['confidence']}
    for row, read in others.items():
        maps[row] = [None] * len(samples)
        for i, sample in enumerate(samples):
            if 'error' in sample or not (benchmark in EXTENDED or sample['id'] in shown):
                continue
            copy = dict(sample)         # gets an error or a confidence of this row
            [maps[row][i]] = read([copy])['ours']
            if 'error' in copy:
                tqdm.write(f'{benchmark}: {row}: {copy["error"]}')
            elif 'confidence' in copy:
                sample['confidence'][row] = copy['confidence']
    return maps


def sheet_of_samples(path, samples, maps, columns, labels, title=''):
    """Contact sheet of samples of data.Benchmark: frame, ground truth, and the frame under maps.

    maps: of each sample (h, w) in 0..1, or None for a blank. columns: names of all; labels, title:
    see contact_sheet.
    """
    rows = []
    for sample, heats in zip(samples, maps):
        frame = displayable(sample['image'])
        truth = sample['boxes'] if sample['mask'] is None else sample['mask']
        tiles = [None if heat is None else pictures.overlay(frame, heat.numpy()) for heat in heats]
        rows.append([frame, pictures.ground_truth_tile(frame, truth.numpy()), *tiles])
    pictures.contact_sheet(rows, path, columns, labels, title)


def draw_sheets(folder, benchmark, metrics, pictured):
    """A contact sheet for each task of a benchmark. -> all examples on them, for draw_report

    metrics: {task: {row: metric}}. pictured: see examples_of.
    """
    examples = []
    for task, rows in metrics.items():
        sheet = Path(folder, f'{task}_{benchmark}.png')
        shown = examples_of(task, benchmark, rows, pictured)
        attempt(sheet, report.example_sheet, task, benchmark, shown, sheet)
        examples += shown
    return examples


def draw_report(folder, tables, metrics, examples, facts):
    """The curves of the extended sets (Figure 7) and report.html. tables, facts: see report.report

    metrics: {benchmark: {task: {row: metric}}}. With other methods' rows (--beside),
    precision_recall_<benchmark>.png has the curves of all. examples: of all benchmarks.
    """
    drawn = {'precision_recall.png': {}}
    for name in [name for name in EXTENDED if name in metrics]:
        scored = {row: metric for row, metric in metrics[name]['robustness'].items() if metric}
        drawn['precision_recall.png'][BENCHMARK_NAMES[name]] = next(iter(scored.values()))
        if len(scored) > 1:
            drawn[f'precision_recall_{name}.png'] = scored
    for file, rows in drawn.items():
        if rows:
            attempt(Path(folder, file), draw_curves, rows, Path(folder, file))
    page = Path(folder, 'report.html')
    if attempt(page, report.report, page, tables, examples, facts):
        print(f'{page}: open it in a browser')


def draw_curves(metrics, picture):
    """Figure 7: precision and recall over all confidences, and max-F1. metrics: {name: Extended}"""
    found = {}
    for name, metric in metrics.items():
        precision, recall = metric.precision_recall(sorted(metric.confidence))
        f1, *at_levels = metric.f1_curve()
        best = tuple(float(values[f1.argmax()]) for values in at_levels)
        found[name] = precision.numpy(), recall.numpy(), best
    curves.precision_recall_picture(found, picture)

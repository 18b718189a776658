"""What evaluate.py shows of its samples: contact sheets, Figure 7's curves, report.html.

report.py says what an example is. Each picture is drawn by itself; one that fails is named.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.maps import maps_below
from figures import attempt, curves, pictures, report
from figures.tables import EXTENDED
from media import SAMPLE_RATE, displayable


def ids_to_show(samples, frames):
    """Ids of up to that many frames, spread over a benchmark, each with all of its sounds."""
    groups = list(dict.fromkeys(sample.group for sample in samples))
    chosen = set(groups[::-(-len(groups) // frames)])
    return {sample.id for sample in samples if sample.group in chosen}


def examples_of(task, benchmark, samples, taken, maps, oracle, meter, shown):
    """The samples with an id in `shown` among those that a meter has just taken. -> dicts

    taken: their indices. maps: one for each sample of the batch; oracle: the same, or None.
    """
    examples = []
    for place, i in enumerate(taken, -len(taken)):      # place: in the lists of the meter
        sample = samples[i]
        if sample['id'] not in shown:
            continue
        frame = displayable(sample['image'])
        heat = maps[i]
        of_name = oracle[i] if oracle else None
        truth = sample[meter.needs[0]].numpy()
        if sample['sources'] is not None:       # of a mixture, whose two frames were squashed
            size = truth.shape[:0:-1]                                       # W, H
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            heat = heat[meter.pairings[place]]  # each source beside the map it is scored with
            truth = list(truth)
            score = None                        # a mixture has an IoU for each source
        else:
            score = meter.iou[place]
        if isinstance(score, list):
            score = score[len(score) // 2]      # of a sweep
        examples.append({
            'task': task, 'benchmark': benchmark, 'id': sample['id'], 'group': sample['group'],
            'condition': sample['condition'], 'label': sample['label'], 'frame': frame,
            'truth': truth, 'heat': list(heat.numpy()) if heat.dim() > 2 else heat.numpy(),
            'oracle': None if of_name is None else of_name.numpy(),
            'wav': sample['wav'].numpy(), 'rate': SAMPLE_RATE,
            'score': score,
            'confidence': sample.get('confidence')})
    return examples


def score_methods(methods, dataset, meters, examples, batch_size, score):
    """Put other methods' maps of a benchmark beside ours, where they have some.

    methods: [(name, folder)], folders as of --save-heatmaps. meters: {task: {row: meter}}; each
    method becomes a row. score: evaluate.score.
    """
    for method, folder in methods:
        maps = Path(folder, dataset.name)
        if maps.is_dir():
            attempt(maps, score_method, method, maps, dataset, meters, examples, batch_size, score)
        else:
            print(f'{dataset.name}: {method} is not shown: there is no folder {maps}')


def score_method(method, maps, dataset, meters, examples, batch_size, score):
    """Of the extended sets all samples, as Figure 7 needs them; else those that are shown."""
    shown = {example['id'] for example in examples}
    places = {i for i, sample in enumerate(dataset.samples) if sample.id in shown}
    batches = dataset.batches(batch_size)
    if dataset.name not in EXTENDED:
        batches = [batch for batch in batches if places.intersection(batch)]
    theirs = {}
    for task, rows in meters.items():
        metric = next(iter(rows.values()))
        theirs[task] = {'ours': type(metric)(metric.threshold, metric.reading)}
    needs = {key for rows in theirs.values() for key in rows['ours'].needs}
    others, _ = score(dataset, batches, theirs, maps_below(maps, needs), shown)
    put_beside(examples, method, others)
    for task, rows in theirs.items():
        meters[task][f'by {method}'] = rows['ours']


def put_beside(examples, method, others):
    """Give each example another method's of the same sample; both tile and IoU are shown."""
    of_sample = {(other['task'], other['id']): other for other in others}
    for example in examples:
        other = of_sample.get((example['task'], example['id']))
        example.setdefault('beside', {})[method] = other


def draw_before_after(path, shown):
    """shown: [(sample, its maps untrained, trained, and of the text oracle, if it has one)]"""
    rows = []
    for sample, maps in shown:
        frame = displayable(sample['image'])
        truth = sample['boxes'] if sample['mask'] is None else sample['mask']
        heats = [pictures.overlay(frame, heat.numpy()) for heat in maps if heat is not None]
        rows.append([frame, pictures.ground_truth_tile(frame, truth.numpy()), *heats])
    names = [sample['label'] or sample['id'] for sample, _ in shown]
    columns = ['frame', 'sounding object', 'untrained', 'trained', 'text oracle']
    pictures.contact_sheet(rows, path, columns, names)


def draw_sheets(folder, benchmark, tasks, examples):
    for task in tasks:
        sheet = Path(folder, f'{task}_{benchmark}.png')
        shown = [e for e in examples if e['task'] == task]
        attempt(sheet, report.example_sheet, task, benchmark, shown, sheet)


def draw_report(folder, tables, examples, meters, facts):
    """The report, and the curves of the extended sets. meters: {benchmark: {task: {row: ...}}}

    With other methods' rows, precision_recall_<benchmark>.png has the curves of all (Figure 7).
    """
    extended = {name: meters[name]['robustness'] for name in EXTENDED if name in meters}
    drawn = {'precision_recall.png': {}}
    for name, rows in extended.items():
        scored = {row: meter for row, meter in rows.items() if len(meter)}
        drawn['precision_recall.png'][name] = next(iter(rows.values()))
        if len(scored) > 1:
            drawn[f'precision_recall_{name}.png'] = scored
    for file, rows in drawn.items():
        if rows:
            attempt(Path(folder, file), draw_curves, rows, Path(folder, file))
    page = Path(folder, 'report.html')
    if attempt(page, report.report, page, 'Hearing and seeing', tables, examples, facts):
        print(f'{page}: open it in a browser')


def draw_curves(meters, picture):
    """Figure 7: precision and recall over all confidences, and the point of max-F1."""
    found = {}
    for name, meter in meters.items():
        precision, recall = meter.precision_recall(sorted(meter.confidence))
        f1, *at_levels = meter.f1_curve()
        best = tuple(float(values[f1.argmax()]) for values in at_levels)
        found[name] = precision.numpy(), recall.numpy(), best
    curves.precision_recall_picture(found, picture)

"""What evaluate.py writes and prints of its scores, beside the tables: --json, --csv, the counts.

scores: {row: {task: {benchmark: {metric: value} or None}}}, rows of any names.
"""

import csv
import io
import json
import math
from collections import Counter

from figures.tables import ORACLE
from launch import write_file


def scores_of(metric, dataset):
    """A row's scores and counts; None if it has no sample (the oracle, without class names).

    Maps of 0 and 1, a region's, have no adaptive scores: all pixels of the region tie.
    """
    if not len(metric):
        return None
    scores = {name: value for name, value in metric.compute().items()
              if metric.graded or not name.endswith('_adap')}
    return {**scores, 'n': len(metric), 'n_expected': dataset.expected}


def write_scores(scores, json_file, csv_file):
    """Write --json and --csv, where given. The csv has lines row,task,benchmark,metric,value."""
    if json_file:
        write_file(json_file, json.dumps(without_nan(in_json(scores)), indent=1))
    if csv_file:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator='\n')
        lines.writerow(['row', 'task', 'benchmark', 'metric', 'value'])
        for row, tasks in named(scores).items():
            for task, benchmarks in tasks.items():
                for benchmark, values in benchmarks.items():
                    lines.writerows([row, task, benchmark, *one] for one in (values or {}).items())
        write_file(csv_file, text.getvalue())


def named(scores):
    """The scores with the name that the oracle's row has in files."""
    return {ORACLE if row == 'oracle' else row: tasks for row, tasks in scores.items()}


def in_json(scores):
    """The tasks of 'ours', or of 'heatmaps', at the top, each other row under its own name."""
    rows = named(scores)
    return {**rows.pop('ours', {}), **rows.pop('heatmaps', {}), **rows}


def without_nan(value):
    """NaN as null, which JSON knows."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def print_counts(dataset, metrics):
    """Print what was not scored, and which boxes were clipped. metrics: {task: {row: metric}}"""
    name = dataset.name
    rows = next(iter(metrics.values()))
    first = next(iter(rows))
    n = len(rows[first])
    lost = dataset.missing + dataset.unreadable
    if n < dataset.expected:
        example = f', not e.g. {lost[0]}' if lost else ''
        print(f'{name}: scored {n} of {dataset.expected} samples{example}')
    nameless = [sample.id for sample in dataset.samples if not sample.label]
    if nameless and any(rows.get('oracle') for rows in metrics.values()):
        print(f'{name}: {len(nameless)} of {len(dataset)} samples have no class name, the first '
              f'{nameless[0]}; the oracle is scored on the others')
    if 'interactive' in metrics:
        seen = Counter(group for group, _ in metrics['interactive'][first].groups)
        short = sum(seen[group] < size for group, size in dataset.listed_groups.items())
        if short:
            print(f'{name}: {short} of {len(dataset.listed_groups)} frames lack a sound; the '
                  'interactive task leaves them out')
    if dataset.clipped:
        print(f'{name}: {dataset.clipped} boxes reach beyond the frame and were clipped, '
              f'{dataset.empty} samples are left without any area and are kept')

"""What evaluate.py writes of its scores, --json and --csv, and whether it can.

results: {task: {benchmark: {metric: value} or None}}, and 'clipseg_gt_text': the oracle's.
"""

import csv
import io
import json
import math
import tempfile
from pathlib import Path

from checkpoint import write_file


def check_outputs(files, folders):
    """OSError for a place that cannot be written, before the scoring rather than after it."""
    files = [Path(path) for path in files if path]
    for path in files:
        if path.exists() and not path.is_file():
            raise OSError(f'cannot write {path}: it is no file; name another place')
    for folder in [path.parent for path in files] + [Path(folder) for folder in folders if folder]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f'cannot write into {folder} ({error.strerror}): name another '
                          'place') from None


def write_scores(results, json_file=None, csv_file=None):
    """The csv has lines of row, task, benchmark, metric, value."""
    if json_file:
        write_file(json_file, json.dumps(without_nan(results), indent=1))
    if csv_file:
        lines = [('row', 'task', 'benchmark', 'metric', 'value')]
        oracle = results['clipseg_gt_text']
        for row, tasks in (('ours', results), ('clipseg_gt_text', oracle)):
            for task in oracle:
                for benchmark, scores in tasks[task].items():
                    lines += [(row, task, benchmark, *one) for one in (scores or {}).items()]
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(lines)
        write_file(csv_file, text.getvalue())


def without_nan(value):
    """NaN as null, which JSON knows."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value

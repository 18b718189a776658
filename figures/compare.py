"""Tables 1 to 8 with several results beside the paper's numbers (evaluate.py --compare).

    print(comparison(['av.json', 'av_llm.json', 'baselines.json']))

A result is a file that --json wrote: by evaluate.py {task: {benchmark: {metric: value}}}, by
baselines.py {method: {task: ...}}. The former's row is named after its file: av.json, av_llm.json
are this paper's variants, "SLAVC NeurIPS22.json" is that prior work (scored by --heatmaps), any
other is a row of its own. The file's name stands before its further rows (--mixture-rows).
"""

import json
from pathlib import Path

import numpy as np

from figures.tables import (BENCHMARK_NAMES, ORACLE, TABLES, TASK_NAMES, cell_text, count_of,
                            paper_scores, score_of, table)
from media import check_file

METHODS = {     # row: its name, in the order of every table; above them stand the prior works
    ORACLE: '(Oracle) CLIPSeg (w/ GT Text)',
    'clipseg_wav2clip_text': 'CLIPSeg (w/ WAV2CLIP Text)',
    'clipseg_clap_text': 'CLIPSeg (w/ CLAP Text)',
    'wav2clip': 'WAV2CLIP ICASSP22', 'audioclip': 'AudioCLIP ICASSP22',
    'imagebind': 'ImageBind CVPR23',
    'av': 'ours, AV alignment', 'av_llm': 'ours, AV + LLM alignment'}


def comparison(paths):
    """The eight tables of section 4.2, of these results, as text: each cell is measured | paper.

    A dash: not in the paper, or not measured. The oracle's row, with the b/w of a trained model, is
    that of the first result with one. ValueError: see read_result, or two results for one row.
    """
    measured = {}
    for path in paths:
        for key, scores in read_result(path).items():
            task, benchmark, row = key
            if key in measured and row != ORACLE:
                raise ValueError(f'{path} is the second result for {row} on {benchmark} ({task}): '
                                 'rename it, or leave it out')
            measured.setdefault(key, scores)
    return '\n\n'.join(one_table(number, measured) for number in range(1, 9))


def read_result(path):
    """-> {(task, benchmark, row): {metric: value}}. ValueError where the file holds no result"""
    path = Path(path)
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:           # ValueError: of UTF-8 too
        raise ValueError(f'{path} is not readable as JSON ({error}): write it again') from None
    try:
        found = results_in(content, path.stem)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):     # another form
        found = {}
    if not found:
        raise ValueError(f'{path} is no result of evaluate.py or baselines.py: name a file that '
                         '--json wrote')
    return found


def results_in(content, name):
    """What read_result returns, of a file's content; one of many errors for another form."""
    rows = {row if row in METHODS else f'{name}, {row}': tasks
            for row, tasks in content.items() if row not in TABLES}
    rows[name] = {task: content[task] for task in TABLES if task in content}
    found = {}
    for row, tasks in rows.items():
        for task, benchmarks in tasks.items():
            TABLES[task]                            # LookupError: no task of section 4.2
            for benchmark, scores in benchmarks.items():
                if scores:                          # None: the oracle's, without class names
                    found[task, benchmark, row] = scores
    for value in [value for scores in found.values() for value in scores.values()]:
        np.asarray(value, float).max()              # numbers, null (NaN) or lists
    return found


def one_table(number, measured):
    """Table `number` of the paper. measured: {(task, benchmark, row): {metric: value}}"""
    printed = paper_scores([number])
    task = next(iter(printed))[0]
    parts = []
    for title, _, headings in TABLES[task]:
        if str(number) in title:
            title = title.replace('Tables 1 and 2', f'Table {number}')
            columns = ['benchmark', 'method', *headings.values(), 'n']
            lines = lines_of(task, headings, printed, measured)
            parts.append(f'{TASK_NAMES[task]} ({title}), measured | paper\n'
                         f'{table(lines, columns)}')
    return '\n\n'.join(parts)


def lines_of(task, headings, printed, measured):
    """The lines of a table with these metrics. printed: the paper's scores, keys as of measured"""
    lines = []
    for benchmark in dict.fromkeys(benchmark for _, benchmark, _ in printed):
        name = BENCHMARK_NAMES[benchmark]
        in_paper = [row for *where, row in printed if where == [task, benchmark]]
        in_files = [row for *where, row in measured if where == [task, benchmark]]
        prior = [row for row in in_paper if row not in METHODS]
        methods = [row for row in METHODS if row in in_paper + in_files]
        for row in dict.fromkeys([*prior, *methods, *in_files]):    # last: not in the paper
            scores = measured.get((task, benchmark, row), {})
            paper = printed.get((task, benchmark, row), {})
            cells = []
            for metric in headings:
                places = 2 if 'FPR' in metric else 1
                halves = [cell_text(score_of(one, metric), places) for one in (scores, paper)]
                cells.append('{:>5} | {:>4}'.format(*halves))       # measured | paper
            lines.append([name, METHODS.get(row, row), *cells, count_of(scores)])
            name = ''
    return lines

"""Tables 1 to 8 of section 4.2, and the paper's own rows of them."""

import csv
import functools
import math
import numbers
from pathlib import Path


def table(rows, columns, row_names=None, decimals=1, markdown=False):
    """Aligned text for a terminal, or a GitHub table with markdown=True. Returns a str without a last newline.

    rows: lists of values in the order of columns, or dicts under the names of columns. Floats get `decimals`
    places (one number, or one per column), whole numbers and text stay as they are, NaN is 'nan', None and missing
    are a dash. row_names: one per row, a first column without a heading. Names and columns of text stand at the
    left, numbers at the right.

    Raises ValueError for a row with more values than columns, and for too few or too many row names.
    """
    columns = [str(column) for column in columns]
    lists = []
    for row in rows:
        values = [row.get(column) for column in columns] if isinstance(row, dict) else list(row)
        if len(values) > len(columns):
            raise ValueError(f'A row of {len(values)} values for {len(columns)} columns: {values}.')
        lists.append(values + [None] * (len(columns) - len(values)))
    kinds = [{type(values[c]) for values in lists} - {type(None)} for c in range(len(columns))]
    is_text = [kind == {str} for kind in kinds]
    decimals = decimals if isinstance(decimals, list) else [decimals] * len(columns)
    cells = [[cell_text(value, places) for value, places in zip(values, decimals)] for values in lists]
    if row_names is not None:
        if len(row_names) != len(cells):
            raise ValueError(f'{len(row_names)} names for {len(cells)} rows.')
        columns, is_text = ['', *columns], [True, *is_text]
        cells = [[str(name), *row] for name, row in zip(row_names, cells)]
    lines = [columns, *cells]
    if markdown:
        lines = [[cell.replace('|', '\\|').replace('\n', ' ') for cell in line] for line in lines]
    widths = [max([len(line[c]) for line in lines] + [4 if markdown else 0]) for c in range(len(columns))]
    lines = [[cell.ljust(n) if text else cell.rjust(n) for cell, n, text in zip(line, widths, is_text)]
             for line in lines]
    if markdown:
        rule = ['-' * n if text else '-' * (n - 1) + ':' for n, text in zip(widths, is_text)]
        return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [lines[0], rule, *lines[1:]])
    rule = ['-' * n for n in widths]
    return '\n'.join('  '.join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def cell_text(value, decimals):
    if value is None:
        return '-'
    if isinstance(value, (str, bool, numbers.Integral)):
        return str(value)
    value = float(value)                                           # also of a NumPy or torch scalar
    return f'{round(value, decimals) + 0.0:.{decimals}f}' if math.isfinite(value) else str(value)   # no '-0.0'


# ------------------------------------------------------------------------------------------------
# Tables 1 to 8
# ------------------------------------------------------------------------------------------------

TASK_NAMES = {'single': 'Single sound source localization', 'robustness': 'Audio-visual robustness',
              'segmentation': 'Audio-visual segmentation', 'interactive': 'Interactive sound source localization',
              'multisource': 'Sound source localization in mixtures'}
BENCHMARK_NAMES = {
    'vggss': 'VGG-SS', 'flickr': 'Flickr-SoundNet', 'is4': 'IS4', 'vpo_ss': 'VPO-SS', 'vpo_ms': 'VPO-MS',
    'avs_s4': 'AVSBench S4', 'avs_ms3': 'AVSBench MS3', 'ade20k': 'ADE20K', 'ext_vggss': 'Extended VGG-SS',
    'ext_flickr': 'Extended Flickr', 'robust_s4': 'AVSBench-Robust S4', 'robust_ms3': 'AVSBench-Robust MS3',
    'vgg_instruments': 'VGGSound-Instruments', 'vgg_duet': 'VGGSound-Duet'}
ROW_NAMES = {'av': 'paper, AV alignment', 'av_llm': 'paper, AV + LLM alignment'}
ORACLE_TASKS = ('single', 'segmentation', 'interactive')        # in whose tables the paper has an oracle
CONDITIONS = ('positive', 'silence', 'noise', 'offscreen')      # the columns of Table 5 and of Figure 8
ADAPTED = 'w/ Adap.'
# task: [(the paper's tables, benchmarks in their order, {metric: heading} in their order)]
TABLES = {
    'single': [('Tables 1 and 2', ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'),
                {'cIoU': 'cIoU', 'cIoU_adap': ADAPTED, 'AUC': 'AUC', 'AUC_adap': ADAPTED})],
    'robustness': [
        ('Table 3', ('ext_vggss', 'ext_flickr'), {'AP': 'AP', 'max_F1': 'max-F1', 'LocAcc': 'LocAcc'}),
        ('Table 4', ('ext_vggss', 'ext_flickr'),
         {'AP': 'AP', 'max_F1': 'max-F1', 'precision': 'Precision', 'recall': 'Recall', 'LocAcc': 'LocAcc',
          'recall_precision_gap': '|Recall - Precision|'}),
        ('Table 5', ('robust_s4', 'robust_ms3'),
         {'mIoU_positive': 'positive mIoU', 'F_positive': 'F',
          **{f'{metric}_{name}': f'{name} {metric}' if metric == 'mIoU' else metric
             for name in CONDITIONS[1:] for metric in ('mIoU', 'F', 'FPR')},
          'G_mIoU': 'G-mIoU', 'G_F': 'G-F', 'G_FPR': 'G-FPR'})],
    'segmentation': [('Table 6', ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'),
                      {'mIoU': 'mIoU', 'mIoU_adap': ADAPTED, 'F': 'F-Score', 'F_adap': ADAPTED})],
    'interactive': [('Table 7', ('is4', 'vpo_ms'),
                     {'IIoU': 'IIoU', 'IIoU_adap': ADAPTED, 'IAUC': 'IAUC', 'IAUC_adap': ADAPTED})],
    'multisource': [('Table 8', ('vgg_instruments', 'vgg_duet'),
                     {name: name for name in ('CAP', 'PIAP', 'AUC', 'CIoU@10', 'CIoU@30', 'CIoU@50')})]}


@functools.cache
def paper_scores():
    """The paper's own numbers, Tables 1 to 8: {(task, benchmark, 'av' | 'av_llm' | 'clipseg_gt_text'): {metric: value}}.

    From paper_tables.csv, which holds them as printed: per cent, FPR and G_FPR as fractions.
    """
    scores = {}
    with open(Path(__file__).with_name('paper_tables.csv'), newline='') as file:
        for line in csv.DictReader(file):
            scores.setdefault((line['task'], line['benchmark'], line['row']), {})[line['metric']] = float(line['value'])
    return scores


def task_tables(task, ours, oracle, paper=None, markdown=False):
    """The task's tables in the shape and order of the paper's, as text. Returns a str.

    ours, oracle: {benchmark: {metric: value, 'n': N, 'n_expected': M}}, metrics in per cent, FPR as fractions. Only
    benchmarks of `ours` are shown. Tables 1, 2, 6 and 7 have an oracle's row too, of dashes where a benchmark has no
    text. paper: None, or the variant whose own row ('av', 'av_llm') stands beside ours, and the paper's oracle with it.
    Of a list of scores, one per threshold of a sweep, the middle one, 0.5, is shown. Raises ValueError for a benchmark
    that the task's tables do not have.
    """
    return '\n\n'.join(title + '\n' + ('\n' if markdown else '') + table(rows, columns, None, decimals, markdown)
                       for title, columns, decimals, rows in grids(task, ours, oracle, paper))


def grids(task, ours, oracle, paper):
    """Yield (title, columns, decimals, rows) for each table of the task that has a row."""
    if strange := set(ours) - {benchmark for _, benchmarks, _ in TABLES[task] for benchmark in benchmarks}:
        raise ValueError(f'{TASK_NAMES[task]} has no table with {", ".join(sorted(strange))}.')
    for number, benchmarks, headings in TABLES[task]:
        if any('AP_textbook' in ours.get(benchmark, {}) for benchmark in benchmarks):
            headings = {**headings, 'AP_textbook': 'textbook AP'}       # of --reading paper
        rows = []
        for benchmark in (b for b in benchmarks if b in ours):
            printed = lambda row: paper_scores().get((task, benchmark, row)) if paper else None
            lines = [('ours', ours[benchmark]), (ROW_NAMES.get(paper), printed(paper))]
            if task in ORACLE_TASKS:
                lines += [('oracle', (oracle or {}).get(benchmark)), ('paper, oracle', printed('clipseg_gt_text'))]
            for i, (name, scores) in enumerate(lines):
                if scores or name in ('ours', 'oracle'):
                    rows.append([BENCHMARK_NAMES[benchmark] if i == 0 else '', name,
                                 *(_score(scores or {}, metric) for metric in headings), _count(scores or {})])
        if rows:
            decimals = [2 if 'FPR' in metric else 1 for metric in headings]
            columns = ['benchmark', 'row', *headings.values(), 'n']
            yield f'{TASK_NAMES[task]} ({number})', columns, [0, 0, *decimals, 0], rows


def _score(scores, metric):
    value = scores.get(metric)
    if metric == 'recall_precision_gap' and None not in (scores.get('recall'), scores.get('precision')):
        value = abs(scores['recall'] - scores['precision'])
    value = value[len(value) // 2] if isinstance(value, list) else value
    return None if value is None else float(value)


def _count(scores):
    n, of = scores.get('n'), scores.get('n_expected')
    return n if n is None or of in (None, n) else f'{n} of {of}'

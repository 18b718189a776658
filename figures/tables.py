"""Tables 1 to 8 of section 4.2 as text, each in the shape and the order of the paper.

    scores = {'is4': {'cIoU': 65.9, 'AUC': 53.5, 'n': 480, 'n_expected': 480}}
    print(task_tables('single', {'ours': scores}, paper='av'))

paper_tables.csv holds the paper's own numbers as printed: in per cent, FPR and G_FPR as fractions.
"""

import csv
import numbers
from collections import defaultdict
from pathlib import Path

TASK_NAMES = {'single': 'Single sound source localization',
              'robustness': 'Audio-visual robustness',
              'segmentation': 'Audio-visual segmentation',
              'interactive': 'Interactive sound source localization',
              'multisource': 'Sound source localization in mixtures'}
BENCHMARK_NAMES = {
    'vggss': 'VGG-SS', 'flickr': 'Flickr-SoundNet', 'is4': 'IS4', 'vpo_ss': 'VPO-SS',
    'vpo_ms': 'VPO-MS', 'avs_s4': 'AVSBench S4', 'avs_ms3': 'AVSBench MS3', 'ade20k': 'ADE20K',
    'ext_vggss': 'Extended VGG-SS', 'ext_flickr': 'Extended Flickr',
    'robust_s4': 'AVSBench-Robust S4', 'robust_ms3': 'AVSBench-Robust MS3',
    'vgg_instruments': 'VGGSound-Instruments', 'vgg_duet': 'VGGSound-Duet'}
ROW_NAMES = {'av': "paper's AV alignment", 'av_llm': "paper's AV + LLM alignment"}
ORACLE_TASKS = ('single', 'segmentation', 'interactive')    # the paper's tables with an oracle
ORACLE = 'clipseg_gt_text'      # the row 'oracle' in files
ADAPTED = 'w/ Adap.'
EXTENDED = ('ext_vggss', 'ext_flickr')
ROBUST = ('robust_s4', 'robust_ms3')
# task: [(the paper's tables, benchmarks in their order, {metric: heading} in their order)]
TABLES = {
    'single': [('Tables 1 and 2',
                ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'),
                {'cIoU': 'cIoU', 'cIoU_adap': ADAPTED, 'AUC': 'AUC', 'AUC_adap': ADAPTED})],
    'robustness': [
        ('Table 3', EXTENDED, {'AP': 'AP', 'max_F1': 'max-F1', 'LocAcc': 'LocAcc'}),
        ('Table 4', EXTENDED,
         {'AP': 'AP', 'max_F1': 'max-F1', 'precision': 'Precision', 'recall': 'Recall',
          'LocAcc': 'LocAcc', 'recall_precision_gap': '|Recall - Precision|'}),
        # in three parts, as a terminal has no room for its fourteen columns
        ('Table 5, positive and silence', ROBUST,
         {'mIoU_positive': 'positive mIoU', 'F_positive': 'F',
          'mIoU_silence': 'silence mIoU', 'F_silence': 'F', 'FPR_silence': 'FPR'}),
        ('Table 5, noise and offscreen', ROBUST,
         {'mIoU_noise': 'noise mIoU', 'F_noise': 'F', 'FPR_noise': 'FPR',
          'mIoU_offscreen': 'offscreen mIoU', 'F_offscreen': 'F', 'FPR_offscreen': 'FPR'}),
        ('Table 5, global', ROBUST, {'G_mIoU': 'G-mIoU', 'G_F': 'G-F', 'G_FPR': 'G-FPR'})],
    'segmentation': [('Table 6', ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'),
                      {'mIoU': 'mIoU', 'mIoU_adap': ADAPTED, 'F': 'F-Score', 'F_adap': ADAPTED})],
    'interactive': [('Table 7', ('is4', 'vpo_ms'), {'IIoU': 'IIoU', 'IIoU_adap': ADAPTED,
                                                    'IAUC': 'IAUC', 'IAUC_adap': ADAPTED})],
    'multisource': [('Table 8', ('vgg_instruments', 'vgg_duet'), {
        name: name for name in ('CAP', 'PIAP', 'AUC', 'CIoU@10', 'CIoU@30', 'CIoU@50')})]}


def task_tables(task, rows, paper=None):
    """The tables of a task with their titles, as text.

    rows: {row: {benchmark: {metric: value, 'n': N, 'n_expected': M} or None}}, rows of any names,
    all of the same benchmarks, all dashes for None. 'oracle' is left out of Tables 3 to 5 and 8,
    and where it has no score (--heatmaps).
    paper: the variant ('av', 'av_llm') whose row in the paper stands below 'ours' or 'heatmaps',
    and every other row has the paper's below it, where the paper has one; or None. Of a list of
    scores, one per threshold of a sweep, the middle one is shown: threshold 0.5.
    """
    return '\n\n'.join(f'{title}\n{table(lines, columns, decimals)}'
                       for title, columns, decimals, lines in grids(task, rows, paper))


def grids(task, rows, paper):
    """Yield (title, columns, decimals, lines) for each table of the task that has a line."""
    first = next(iter(rows.values()))
    for number, benchmarks, headings in TABLES[task]:
        shown = [benchmark for benchmark in benchmarks if benchmark in first]
        if any('AP_textbook' in (first[benchmark] or ()) for benchmark in shown):
            headings = {**headings, 'AP_textbook': 'textbook AP'}       # of --reading paper
        lines = []
        for benchmark in shown:
            title = BENCHMARK_NAMES[benchmark]
            for name, scores in named_rows(task, benchmark, rows, paper):
                lines.append([title, name, *(score_of(scores, metric) for metric in headings),
                              count_of(scores)])
                title = ''
        if lines:
            decimals = [2 if 'FPR' in metric else 1 for metric in headings]
            columns = ['benchmark', 'row', *headings.values(), 'n']
            yield f'{TASK_NAMES[task]} ({number})', columns, [0, 0, *decimals, 0], lines


def named_rows(task, benchmark, rows, paper):
    """-> [(name of a row, its scores)] of one benchmark. The paper lacks some of its own."""
    printed = paper_scores() if paper else {}
    named = []
    for row, sets in rows.items():
        if row == 'oracle' and (task not in ORACLE_TASKS or not any(sets.values())):
            continue
        named.append((row, sets.get(benchmark) or {}))
        key = {'ours': paper, 'heatmaps': paper, 'oracle': ORACLE}.get(row, row)
        if printed.get((task, benchmark, key)):             # a row of dashes is left out
            title = ROW_NAMES.get(key, f'paper, {row}')
            named.append((title, printed[task, benchmark, key]))
    return named


def paper_scores(numbers=range(1, 9)):
    """The paper's Tables with these numbers. -> {(task, benchmark, row): {metric: value}}

    In the order of the print, without its dashes. row: 'av', 'av_llm', a baseline ('wav2clip'), or
    a prior work by its printed name ('SLAVC (w/ OGL) NeurIPS22'). Tables 9 to 15 use some names
    twice, so ask for one of them at a time; its rows are 'A' to 'F' (9), the modality of the
    captions (10), the number of tokens (11), the prompt (12), --image-mask and --feature-mask (13),
    p+ and p- (14), lambda (15).
    Paper [85]: a number stands as it is printed, even where the paper contradicts itself.
    """
    scores = defaultdict(dict)
    text = Path(__file__).with_name('paper_tables.csv').read_text(encoding='utf-8')
    for line in csv.DictReader(text.splitlines()):
        if int(line['table']) in numbers:
            row = scores[line['task'], line['benchmark'], line['row']]
            if line['value']:
                row[line['metric']] = float(line['value'])
    return scores


def score_of(scores, metric):
    """-> a float, of a sweep that at threshold 0.5; None where there is none"""
    value = scores.get(metric)
    if metric == 'recall_precision_gap' and scores.get('recall') is not None:
        value = abs(scores['recall'] - scores['precision'])
    if isinstance(value, list):
        value = value[len(value) // 2]
    return None if value is None else float(value)


def count_of(scores):
    """The column n: how many samples were scored, and of how many if some are missing."""
    n = scores.get('n')
    expected = scores.get('n_expected')
    return n if n == expected else f'{n} of {expected}'


def table(rows, columns, decimals=None):
    """Aligned text for a terminal, without a last newline.

    rows: lists of values in the order of columns, None for a dash. decimals: the places of floats,
    a number per column; default: 1.
    """
    decimals = decimals or [1] * len(columns)
    aligned = []
    for heading, places, *values in zip(columns, decimals, *rows):
        cells = [heading, *(cell_text(value, places) for value in values)]
        width = max(len(cell) for cell in cells)
        cells.insert(1, '-' * width)
        is_text = {type(value) for value in values if value is not None} == {str}
        aligned.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return '\n'.join('  '.join(line).rstrip() for line in zip(*aligned))


def cell_text(value, decimals):
    """A table's cell. None -> '-'; texts and integers as they are; floats rounded."""
    if value is None:
        return '-'
    if isinstance(value, (str, numbers.Integral)):
        return str(value)
    return f'{round(float(value), decimals) + 0.0:.{decimals}f}'        # + 0.0: no '-0.0'

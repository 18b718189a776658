"""Each number and picture stands under its heading and in its row: tables, page, contact sheets."""

import base64
import csv
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import metrics
from conftest import ROOT
from figures import report
from figures.pictures import heat_colours, overlay
from figures.tables import ORACLE_TASKS, TABLES, grids, paper_scores, table, task_tables
from metrics import CONDITIONS
from test_figures import example
from test_report import page_of

# The paper's tables: their benchmarks, their columns as printed and the metric that each must show.
SINGLE = 'vggss flickr is4 vpo_ss vpo_ms avs_s4 ade20k'.split()
MASKS = 'is4 vpo_ss vpo_ms avs_s4 avs_ms3 ade20k'.split()
EXTENDED = ['ext_vggss', 'ext_flickr']
ROBUST = ['robust_s4', 'robust_ms3']
OWN_ROWS = ('clipseg_gt_text', 'av', 'av_llm')
PRINTED = {
    'Tables 1 and 2': ('single', SINGLE, [('cIoU', 'cIoU'), ('w/ Adap.', 'cIoU_adap'),
                                          ('AUC', 'AUC'), ('w/ Adap.', 'AUC_adap')]),
    'Table 3': ('robustness', EXTENDED, [('AP', 'AP'), ('max-F1', 'max_F1'), ('LocAcc', 'LocAcc')]),
    'Table 4': ('robustness', EXTENDED, [
        ('AP', 'AP'), ('max-F1', 'max_F1'), ('Precision', 'precision'), ('Recall', 'recall'),
        ('LocAcc', 'LocAcc'), ('|Recall - Precision|', 'recall_precision_gap')]),
    'Table 5, positive and silence': ('robustness', ROBUST, [
        ('positive mIoU', 'mIoU_positive'), ('F', 'F_positive'),
        ('silence mIoU', 'mIoU_silence'), ('F', 'F_silence'), ('FPR', 'FPR_silence')]),
    'Table 5, noise and offscreen': ('robustness', ROBUST, [
        ('noise mIoU', 'mIoU_noise'), ('F', 'F_noise'), ('FPR', 'FPR_noise'),
        ('offscreen mIoU', 'mIoU_offscreen'), ('F', 'F_offscreen'), ('FPR', 'FPR_offscreen')]),
    'Table 5, global': ('robustness', ROBUST, [
        ('G-mIoU', 'G_mIoU'), ('G-F', 'G_F'), ('G-FPR', 'G_FPR')]),
    'Table 6': ('segmentation', MASKS, [('mIoU', 'mIoU'), ('w/ Adap.', 'mIoU_adap'),
                                        ('F-Score', 'F'), ('w/ Adap.', 'F_adap')]),
    'Table 7': ('interactive', ['is4', 'vpo_ms'], [('IIoU', 'IIoU'), ('w/ Adap.', 'IIoU_adap'),
                                                   ('IAUC', 'IAUC'), ('w/ Adap.', 'IAUC_adap')]),
    'Table 8': ('multisource', ['vgg_instruments', 'vgg_duet'], [
        (name, name) for name in ('CAP', 'PIAP', 'AUC', 'CIoU@10', 'CIoU@30', 'CIoU@50')])}
NAMES = {'vggss': 'VGG-SS', 'flickr': 'Flickr-SoundNet', 'is4': 'IS4', 'ade20k': 'ADE20K',
         'vpo_ss': 'VPO-SS', 'vpo_ms': 'VPO-MS',
         'avs_s4': 'AVSBench S4', 'avs_ms3': 'AVSBench MS3',
         'ext_vggss': 'Extended VGG-SS', 'ext_flickr': 'Extended Flickr',
         'robust_s4': 'AVSBench-Robust S4', 'robust_ms3': 'AVSBench-Robust MS3',
         'vgg_instruments': 'VGGSound-Instruments', 'vgg_duet': 'VGGSound-Duet'}
LABELS = {'av': "paper's AV alignment", 'av_llm': "paper's AV + LLM alignment"}


def distinct(task, first):
    """{benchmark: {metric: a number that no other cell has}}, in steps of 0.1, and an own n."""
    number = first
    scores = {}
    for other, benchmarks, columns in PRINTED.values():
        for benchmark in benchmarks if other == task else ():
            n = 7000 + round(10 * number)
            mine = scores.setdefault(benchmark, {'n': n, 'n_expected': 9999})
            for _, metric in columns:
                if metric not in mine and metric != 'recall_precision_gap':
                    mine[metric] = round(number, 2)
                    number += .1
    return scores


def papers_own():
    """Our rows and the oracle's of paper_tables.csv: {(task, benchmark, row): {metric: value}}."""
    scores = {}
    for line in csv.DictReader((ROOT / 'figures/paper_tables.csv').read_text().splitlines()):
        if int(line['table']) <= 8 and line['row'] in OWN_ROWS and line['value']:
            row = scores.setdefault((line['task'], line['benchmark'], line['row']), {})
            row[line['metric']] = float(line['value'])
    return scores


def cells(scores, columns):
    """The texts that a row with these scores must show."""
    shown = []
    scores = scores or {}
    for _, metric in columns:
        value = scores.get(metric)
        if metric == 'recall_precision_gap' and value is None and 'recall' in scores:
            value = abs(scores['recall'] - scores['precision'])
        shown.append('-' if value is None else f'{value:.{2 if "FPR" in metric else 1}f}')
    return shown + [f'{scores["n"]} of 9999' if 'n' in scores else '-']


def wanted_rows(task, number, ours, oracle, paper):
    """Every line of one table: [benchmark, row, cells ...]."""
    _, benchmarks, columns = PRINTED[number]
    rows = []
    own = papers_own() if paper else {}
    for benchmark in benchmarks:
        lines = [('ours', ours[benchmark]), (LABELS.get(paper), own.get((task, benchmark, paper)))]
        if task in ('single', 'segmentation', 'interactive'):
            lines.append(('oracle', oracle[benchmark]))
            lines.append(('paper, oracle', own.get((task, benchmark, 'clipseg_gt_text'))))
        for name, scores in lines:
            if scores or name in ('ours', 'oracle'):
                first = NAMES[benchmark] if name == 'ours' else ''
                rows.append([first, name, *cells(scores, columns)])
    return rows


def given(task):
    """Scores of ours and of the oracle, which some benchmarks lack."""
    oracle = distinct(task, 40.1)
    return distinct(task, 0.1), {**oracle, **dict.fromkeys(('flickr', 'ade20k'))}


def headings(number):
    return ['benchmark', 'row', *(heading for heading, _ in PRINTED[number][2]), 'n']


def cells_of(lines):
    """The cells of a table in the terminal, cut where its rule of dashes has gaps."""
    columns = [column.span() for column in re.finditer('-+', lines[1])]
    return [[line[start:end].strip() for start, end in columns] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize('paper', [None, 'av', 'av_llm'])
@pytest.mark.parametrize('task', dict.fromkeys(task for task, *_ in PRINTED.values()))
def test_every_cell_stands_under_its_heading_and_in_its_row(task, paper, tmp_path):
    ours, oracle = given(task)
    numbers = [number for number, (other, *_) in PRINTED.items() if other == task]
    wanted = {number: [headings(number), *wanted_rows(task, number, ours, oracle, paper)]
              for number in numbers}
    rows = {'ours': ours, 'oracle': oracle}
    parts = [part.split('\n') for part in task_tables(task, rows, paper).split('\n\n')]
    assert [re.search(r'\((Tables? .*)\)$', part[0])[1] for part in parts] == numbers
    for number, (_, *lines) in zip(numbers, parts):
        assert cells_of(lines) == wanted[number]
    # the report's page has the same cells in the same order
    words = [word for word in page_of(tmp_path, [], {task: (rows, paper)}).words if word]
    place = 0
    for line in (line for number in numbers for line in wanted[number]):
        shown = [cell for cell in line if cell]
        length = len(shown)
        place += next(k for k in range(len(words)) if words[place + k:place + k + length] == shown)
        place += length


@pytest.mark.parametrize('task', TABLES)
def test_a_terminal_of_140_columns_shows_every_table(task):
    scores = dict.fromkeys([metric for _, _, names in TABLES[task] for metric in names], 100.0)
    scores |= {'n': 12000, 'n_expected': 12345}
    for rows in (['ours', 'oracle'], ['clipseg_wav2clip_text'], ['nearest_text']):
        sets = dict.fromkeys([name for _, names, _ in TABLES[task] for name in names], scores)
        text = task_tables(task, dict.fromkeys(rows, sets), 'av_llm')
        assert max(map(len, text.split('\n'))) <= 140


def test_a_table_in_the_terminal():
    ours = {'is4': {'cIoU': 60.04, 'AUC': 50.0, 'AUC_adap': 1, 'n': 7, 'n_expected': 9},
            'flickr': {'cIoU': [10.0] * 9 + [55.55] + [90.0] * 9,               # a sweep
                       'n': 250, 'n_expected': 250}}
    oracle = {'is4': {'cIoU': 74.3, 'n': 9, 'n_expected': 9}, 'flickr': None}
    assert task_tables('single', {'ours': ours, 'oracle': oracle}).split('\n') == [
        'Single sound source localization (Tables 1 and 2)',
        'benchmark        row     cIoU  w/ Adap.   AUC  w/ Adap.       n',
        '---------------  ------  ----  --------  ----  --------  ------',
        'Flickr-SoundNet  ours    55.5         -     -         -     250',
        '                 oracle     -         -     -         -       -',
        'IS4              ours    60.0         -  50.0       1.0  7 of 9',
        '                 oracle  74.3         -     -         -       9']


def test_robustness_has_only_the_tables_with_a_benchmark_that_was_scored():
    extended = {'AP': 70.0, 'max_F1': 66.66, 'precision': 75.0, 'recall': 60.0, 'LocAcc': 50.0,
                'n': 4, 'n_expected': 4}
    third, fourth = task_tables('robustness', {'ours': {'ext_flickr': extended}}).split('\n\n')
    assert third.split('\n')[3:] == ['Extended Flickr  ours  70.0    66.7    50.0  4']
    assert fourth.split('\n')[3].split()[3:] == '70.0 66.7 75.0 60.0 50.0 15.0 4'.split()


def test_table_aligns_and_dashes():
    text = table([['cIoU', 38.14, 49.5, None], ['mIoU', 5.0, float('nan'), -0.001]],
                 ['', 'untrained', 'trained', 'oracle'])
    assert text.split('\n') == ['      untrained  trained  oracle',
                                '----  ---------  -------  ------',
                                'cIoU       38.1     49.5       -',
                                'mIoU        5.0      nan     0.0']
    assert table([['ours', 1200, np.float32(0.25)], ['chance', None, 0.031]],
                 ['method', 'n', 'AUC'], decimals=[0, 0, 2]).split('\n') == [
        'method     n   AUC', '------  ----  ----', 'ours    1200  0.25', 'chance     -  0.03']


def test_global_scores_of_the_papers_table_5_follow_from_its_other_columns():
    deviating = []
    for (_, benchmark, row), scores in paper_scores([5]).items():
        for kind in ('mIoU', 'F'):
            negative = np.mean([scores[f'{kind}_{name}'] for name in CONDITIONS[1:]])
            follows = metrics.global_score(scores[f'{kind}_positive'], negative)
            if abs(follows - scores[f'G_{kind}']) > 0.1:
                deviating.append((benchmark, row, kind))
    assert deviating == [('robust_s4', 'MarginNCE ICASSP23', 'F'),      # as printed
                         ('robust_s4', 'DenseAV CVPR24', 'F'),
                         ('robust_ms3', 'DenseAV CVPR24', 'F')]


def test_every_row_of_the_paper_has_every_metric_of_its_table():
    scores = {key: row for key, row in paper_scores().items() if row and key[2] in OWN_ROWS}
    found = set()
    assert scores == papers_own()
    for task, tables in TABLES.items():
        for number, benchmarks, names in tables:
            for benchmark in benchmarks:
                if (number, benchmark) == ('Table 4', 'ext_vggss'):     # Table 4 is of Flickr only
                    continue
                oracle = task in ORACLE_TASKS and benchmark not in ('flickr', 'ade20k')
                for row in ['av', 'av_llm'] + (['clipseg_gt_text'] if oracle else []):
                    assert names.keys() <= scores[task, benchmark, row].keys()
                    found.add((task, benchmark, row))
    assert scores.keys() == found and len(found) == 54                  # and there is no other row
    assert all(0 <= value <= 100 for row in scores.values() for value in row.values())


def test_tables_are_printed_without_matplotlib_or_pil():
    code = 'import sys, figures.tables; print({"matplotlib", "PIL", "torch"} & set(sys.modules))'
    assert subprocess.check_output([sys.executable, '-c', code], cwd=ROOT) == b'set()\n'


def test_textbook_ap_is_the_last_column_of_the_extended_sets():
    scores = {'ext_flickr': {'AP': 1.0, 'max_F1': 2.0, 'precision': 3.0, 'recall': 5.0,
                             'LocAcc': 6.0, 'AP_textbook': 7.0, 'n': 4, 'n_expected': 4}}
    (_, columns, _, [row]), (_, more, _, [longer]) = grids('robustness', {'ours': scores}, None)
    assert columns[2:] == ['AP', 'max-F1', 'LocAcc', 'textbook AP', 'n']
    assert row[2:] == [1, 2, 6, 7, 4]
    assert more[-3:] == ['|Recall - Precision|', 'textbook AP', 'n'] and longer[-3:] == [2, 7, 4]


def test_the_papers_numbers_agree_where_it_prints_them_twice():
    own = papers_own()
    for row in ('av', 'av_llm'):
        for extended, plain in (('ext_vggss', 'vggss'), ('ext_flickr', 'flickr')):  # Tables 3 and 1
            assert own['robustness', extended, row]['LocAcc'] == own['single', plain, row]['cIoU']
        for robust, plain in (('robust_s4', 'avs_s4'), ('robust_ms3', 'avs_ms3')):  # Tables 5 and 6
            positive = own['robustness', robust, row]['mIoU_positive']
            assert positive == own['segmentation', plain, row]['mIoU']


def test_the_papers_numbers_are_in_the_order_that_their_meaning_demands():
    pairs = {'single': ('cIoU', 'AUC'), 'segmentation': ('F', 'mIoU'),
             'interactive': ('IIoU', 'IAUC')}
    for (task, _, _), scores in papers_own().items():
        if task in pairs:
            high, low = pairs[task]
            assert scores[f'{high}_adap'] > scores[f'{low}_adap']
            for metric in pairs[task]:                      # adaptive gives the source's size away
                assert scores[metric] < scores[f'{metric}_adap']
        if task == 'multisource':
            assert scores['CIoU@10'] > scores['CIoU@30'] > scores['CIoU@50']
            assert scores['PIAP'] > scores['CAP']


# ------------------------------------------------------------------------------------------------
# Contact sheets and cards: which picture stands in which column
# ------------------------------------------------------------------------------------------------

def flat(level):
    return np.full((56, 56), level, np.float32)


def sheet_rows(monkeypatch, tmp_path, task, benchmark, examples):
    """What is drawn: [{heading: tile}] and the labels of the rows."""
    drawn = []
    monkeypatch.setattr(report, 'contact_sheet', lambda *given: drawn.append(given))
    report.example_sheet(task, benchmark, examples, tmp_path / 'sheet.png')
    [(rows, _, columns, labels, _)] = drawn
    return [dict(zip(columns, row)) for row in rows], labels


def test_a_row_shows_frame_truth_heatmap_and_overlay_of_one_example(monkeypatch, tmp_path):
    frames = [np.full((64, 64, 3), value, np.uint8) for value in (250, 120)]
    mine = [example('single', 'vggss', frame=frame, heats={'overlay': flat(.2 + .5 * k)[None]},
                    scores={'IoU': .25 + .5 * k},
                    label=f'sound {k}') for k, frame in enumerate(frames)]
    rows, labels = sheet_rows(monkeypatch, tmp_path, 'single', 'vggss', mine)
    for k, (row, frame) in enumerate(zip(rows, frames)):
        assert np.array_equal(row['frame'], frame)
        assert np.array_equal(row['heatmap'], heat_colours(flat(.2 + .5 * k)))
        assert np.array_equal(row['overlay'], overlay(frame, flat(.2 + .5 * k)))
        assert (row['ground truth'][28, 28] == frame[0, 0]).all()       # inside the box
        assert (row['ground truth'][2, 2] < frame[0, 0]).all()          # dimmed outside
    assert labels == ['sound 0\nIoU 0.25', 'sound 1\nIoU 0.75']


def test_robustness_shows_each_condition_s_own_overlay_whatever_their_order(monkeypatch, tmp_path):
    heat = dict(zip(CONDITIONS, (.2, .4, .6, .8)))
    mine = [example('robustness', 'robust_s4', group='g', condition=condition,
                    heats={'overlay': flat(heat[condition])[None]}, scores={'IoU': heat[condition]})
            for condition in reversed(CONDITIONS)]
    [row], labels = sheet_rows(monkeypatch, tmp_path, 'robustness', 'robust_s4', mine)
    assert list(row) == ['frame', *(f'{condition}\noverlay' for condition in CONDITIONS)]
    for condition in CONDITIONS:
        wanted = overlay(row['frame'], flat(heat[condition]))
        assert np.array_equal(row[f'{condition}\noverlay'], wanted)
    assert labels == ['dog\nIoU 0.20']                                  # of the sound that is there


def test_each_sound_of_a_frame_has_its_own_truth_and_overlay(monkeypatch, tmp_path):
    truths = [np.zeros((224, 224)), np.zeros((224, 224))]
    truths[0][:, :112] = 1
    truths[1][:, 112:] = 1
    mine = [example('interactive', 'is4', group='g', truth=truths[k][None],
                    heats={'overlay': flat(.3 + .4 * k)[None]})
            for k in (0, 1)]
    [row], _ = sheet_rows(monkeypatch, tmp_path, 'interactive', 'is4', mine)
    for k in (0, 1):
        tile, shown = (row[f'sound {k + 1}\n{what}'] for what in ('ground truth', 'overlay'))
        assert (tile[32, 16].min() > 200) == (k == 0) and (tile[32, 48].min() > 200) == (k == 1)
        assert np.array_equal(shown, overlay(row['frame'], flat(.3 + .4 * k)))


def test_each_source_of_a_mixture_has_its_own_truth_and_overlay(monkeypatch, tmp_path):
    frame = np.full((224, 448, 3), 255, np.uint8)
    left = np.zeros((224, 448))
    right = np.zeros((224, 448))
    left[50:150, 50:150] = 1
    right[50:150, 300:400] = 1
    heat = [np.full((224, 448), level) for level in (.3, .7)]
    mine = [example('multisource', 'vgg_duet', frame=frame, label=['dog', 'cat'],
                    truth=[left, right], heats={'overlay': heat})]
    [row], labels = sheet_rows(monkeypatch, tmp_path, 'multisource', 'vgg_duet', mine)
    assert list(row) == ['frame', 'ground truth 1', 'overlay 1', 'ground truth 2', 'overlay 2']
    for k in (0, 1):
        tile = row[f'ground truth {k + 1}']
        assert (tile[100, (100, 350)[k]] == 255).all() and (tile[100, (350, 100)[k]] < 100).all()
        assert np.array_equal(row[f'overlay {k + 1}'], overlay(frame, heat[k]))
    assert labels[0].startswith('dog + cat')


def mean_colour(attributes):
    data = base64.b64decode(attributes['src'].removeprefix('data:image/jpeg;base64,'))
    return np.asarray(Image.open(io.BytesIO(data))).mean((0, 1))


def test_the_page_shows_ours_and_the_oracles_map_under_their_captions(tmp_path):
    mine = example('single', 'vggss', heats={'overlay': flat(.1)[None]}, oracle=flat(.9))
    images = {image['alt']: mean_colour(image) for image in page_of(tmp_path, [mine]).all('img')}
    frame = mine['frame']
    wanted = {'frame': frame, 'heatmap': heat_colours(flat(.1)),
              'overlay': overlay(frame, flat(.1)), 'text oracle': overlay(frame, flat(.9))}
    for caption, picture in wanted.items():
        assert np.allclose(images[caption], picture.mean((0, 1)), atol=3), caption

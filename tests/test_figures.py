"""Figures: colours on a fixed scale, the ground truth's outline, the layout of contact sheets, curves, tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import metrics  # noqa: E402
from figures import pictures as figures, report  # noqa: E402
from figures.curves import loss_curve, precision_recall_picture, read_log, series, smooth  # noqa: E402
from figures.pictures import (OUTLINE, TURBO, contact_sheet, fit_text, ground_truth_tile,  # noqa: E402
                              heat_colours, overlay)
from figures.report import example_sheet  # noqa: E402
from figures.tables import CONDITIONS, ORACLE_TASKS, TABLES, paper_scores, table, task_tables  # noqa: E402

LOWEST = TURBO[0].astype(np.uint8)
LONG = 'a church bell that rings far away in the distance behind Llanfairpwllgwyngyllgogerychwyrndrobwll, IoU 0.42'


def frame(H=40, W=60, value=200):
    return np.full((H, W, 3), value, np.uint8)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'))


# ------------------------------------------------------------------------------------------------
# Tiles
# ------------------------------------------------------------------------------------------------

def test_heatmap_is_coloured_on_a_fixed_scale():
    assert (heat_colours(np.zeros((5, 7))) == LOWEST).all()                  # an empty map looks empty
    faint = heat_colours(np.linspace(0, 0.1, 12).reshape(3, 4))
    assert faint[..., 0].max() < 75 and faint[..., 1].max() < 95             # and a faint one is not stretched
    same = heat_colours(np.array([[0.3, 1.0]]))[0, 0]
    assert (heat_colours(np.array([[0.3]]))[0, 0] == same).all()             # whatever else the map holds
    assert (heat_colours(np.ones((2, 2), np.float16)) == TURBO[-1]).all()    # heatmaps are saved in float16


def test_heat_colours_follow_turbo():
    matplotlib = pytest.importorskip('matplotlib')
    scale = np.linspace(0, 1, 256)
    turbo = matplotlib.colormaps['turbo'](scale)[:, :3] * 255
    assert np.abs(heat_colours(scale[None])[0] - turbo).max() < 8


@pytest.mark.parametrize('bad', [np.full((3, 3), 7.0), np.full((3, 3), -0.5), np.full((3, 3), np.nan),
                                 np.zeros((1, 3, 3)), np.zeros((0, 3))])
def test_what_is_no_heatmap_is_refused(bad):
    with pytest.raises(ValueError, match='A heatmap'):
        heat_colours(bad)
    with pytest.raises(ValueError, match='A heatmap'):
        overlay(frame(), bad)


def test_overlay_keeps_shape_and_type_and_puts_heat_where_it_is():
    heatmap = np.zeros((4, 6))
    heatmap[:, 4:] = 1                                                       # hot at the right
    for weight in (0.0, 0.5, 1.0):
        picture = overlay(frame(), heatmap, weight)
        assert picture.shape == (40, 60, 3) and picture.dtype == np.uint8
    assert (overlay(frame(), heatmap, 0) == 200).all()
    assert (overlay(frame(), heatmap, 1)[:, 0] == TURBO[0]).all()
    assert (overlay(frame(), heatmap, 1)[:, -1] == TURBO[-1]).all()
    between = overlay(frame(), heatmap, 1)[20, 35:45]                        # bilinear: no jump between cells
    assert len(np.unique(between, axis=0)) > 5
    assert (overlay(frame(), heatmap)[0, 0] == np.round((200 + TURBO[0]) / 2)).all()


def test_frames_that_are_no_uint8_rgb_are_refused():
    for bad in (frame() / 255, frame()[..., 0], np.zeros((3, 40, 60), np.uint8)):
        with pytest.raises(ValueError, match='uint8'):
            overlay(bad, np.zeros((2, 2)))


def test_ground_truth_dims_outside_and_outlines():
    mask = np.zeros((128, 128), bool)
    mask[32:96, 20:70] = True
    picture = ground_truth_tile(frame(128, 128), mask)
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    assert (picture[64, 45] == 200).all() and (picture[5, 5] == 60).all()
    assert (picture[32, 40] == OUTLINE).all() and (picture[64, 69] == OUTLINE).all()
    assert (picture[~mask] == 60).all()                                      # the outline lies inside
    box = ground_truth_tile(frame(128, 128), [20, 32, 70, 96])
    assert (box == picture).all()
    assert (ground_truth_tile(frame(128, 128), mask * np.uint8(255)) == picture).all()
    assert (ground_truth_tile(frame(128, 128), np.array([[20, 32, 50, 96], [40, 32, 70, 96]])) == picture).all()


def test_ground_truth_of_nothing_and_of_the_whole_frame():
    assert (ground_truth_tile(frame(), np.zeros((40, 60))) == 60).all()
    assert (ground_truth_tile(frame(), np.zeros((0, 4))) == 60).all()        # no box
    whole = ground_truth_tile(frame(), np.ones((40, 60)))
    assert (whole[0] == OUTLINE).all() and (whole[:, -1] == OUTLINE).all() and (whole[20, 30] == 200).all()
    assert (ground_truth_tile(frame(), [-5, -5, 99, 99]) == whole).all()     # a box may reach over the frame
    with pytest.raises(ValueError, match='A ground truth is'):
        ground_truth_tile(frame(), np.zeros((1, 40, 60)))


def test_consensus_of_annotators_is_shaded():
    consensus = np.zeros((128, 128))
    consensus[10:90, 10:90] = 0.5                                            # one of the two annotators
    consensus[40:90, 40:90] = 1                                              # both
    picture = ground_truth_tile(frame(128, 128), consensus)
    assert (picture[64, 64] == 200).all() and (picture[25, 25] == 130).all() and (picture[110, 110] == 60).all()
    assert (picture[10, 50] == OUTLINE).all() and (picture[40, 60] == 200).all()     # the outline is the outer one


def test_ground_truth_of_another_size_is_resized():
    mask = np.zeros((224, 224), bool)
    mask[56:168, 112:] = True
    small = np.zeros((40, 60), bool)
    small[10:30, 30:] = True
    assert (ground_truth_tile(frame(), mask) == ground_truth_tile(frame(), small)).all()


# ------------------------------------------------------------------------------------------------
# Contact sheets
# ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [11, 14, 30])
@pytest.mark.parametrize('width', [20, 60, 112])
@pytest.mark.parametrize('text', ['', 'dog', 'dog, IoU 0.81', LONG, 'one\ntwo\nthree\nfour', 'W' * 50, 'ä é ñ'])
def test_text_stays_in_its_space(text, width, size):
    font = ImageFont.load_default(size)
    for lines in (1, 2, 3):
        fitted = fit_text(text, font, width, lines)
        assert 1 <= len(fitted) <= lines
        assert all(font.getlength(line) <= width for line in fitted if len(line) > 1)
        shown = ''.join(fitted).replace(' ', '')
        assert shown == ''.join(text.split()) or shown.endswith('…')         # all of it, or it says that it is not


def test_sheet_size_follows_from_the_tiles(tmp_path):
    def size(n_rows, n_columns, tile):
        rows = [[frame()] * n_columns] * n_rows
        with Image.open(contact_sheet(rows, tmp_path / 'sheet.png', tile=tile)) as sheet:
            return np.array(sheet.size)
    assert (size(2, 3, 64) - size(2, 2, 64) == (64 + figures.GAP, 0)).all()
    assert (size(3, 2, 64) - size(2, 2, 64) == (0, 64 + figures.GAP)).all()
    assert (size(2, 3, 96) - size(2, 3, 64) == (3 * 32, 2 * 32)).all()


@pytest.mark.parametrize('tile', [32, 64, 128])
def test_long_labels_move_nothing_and_stay_in_their_column(tmp_path, tile):
    rows, red = [[frame(50, 50) * [1, 0, 0]] * 2] * 2, (200, 0, 0)
    rows = [[tile_.astype(np.uint8) for tile_ in row] for row in rows]
    sheets = [read(contact_sheet(rows, tmp_path / 'sheet.png', [heading] * 2, [label] * 2, tile, title='T'))
              for heading, label in (('a', 'b'), (LONG, LONG), (LONG, LONG + '\n' + LONG), ('W' * 99, 'W' * 99))]
    tiles = (sheets[0] == red).all(-1)                                       # (H, W)
    y = np.arange(len(tiles))
    assert tiles.sum() == 4 * tile * tile
    top, left = np.argwhere(tiles).min(0)
    columns = np.flatnonzero(tiles.any(0))
    for sheet in sheets:
        assert sheet.shape == sheets[0].shape
        assert ((sheet == red).all(-1) == tiles).all()                       # no letter on a tile
        ink = (sheet < 250).any(-1) & ~tiles                                 # (H, W), the letters
        assert not ink[:2].any() and not ink[-2:].any() and not ink[:, :8].any()
        assert not ink[top:, left - 4:].any()                                # labels end before the tiles
        assert not ink[top - figures.GAP // 2:top, left:].any()              # headings end above them
        below_title = ink[35:top, left - figures.GAP:]
        assert not below_title[:, :figures.GAP - 2].any()
        between = [x for x in range(columns[0], columns[-1]) if x not in columns]
        assert not ink[35:top, between[1:-1]].any()                          # headings of two columns do not touch
        gap = np.flatnonzero(~tiles.any(1) & (y > top) & (y < top + 2 * tile))
        assert not ink[gap[1:-1]].any()                                      # labels of two rows do not touch


def test_the_second_part_of_a_label_survives_a_long_name(tmp_path):
    scores = []
    for name in ('dog', LONG):
        path = contact_sheet([[None]], tmp_path / 'sheet.png', row_labels=[f'{name}\nIoU 0.42'], tile=64)
        label = read(path)[:, :100]                                          # (H, 100, 3), left of the tile
        bottom = np.flatnonzero((label < 250).any((1, 2))).max()
        scores.append(label[bottom - 9:bottom + 1])                          # the last line of the label
    assert (scores[0] == scores[1]).all() and scores[0].min() > 100          # the same, and grey


def test_tiles_keep_their_proportions_and_blanks_are_allowed(tmp_path):
    sheet = read(contact_sheet([[frame(20, 40, 0), None], [frame(40, 20, 0)]], tmp_path / 'sheet.png', tile=64))
    assert (sheet == 0).all(-1).sum() == 2 * 64 * 32
    assert (sheet == figures.BLANK).all(-1).sum() == 2 * 64 * 32 + 2 * 64 * 64
    assert (sheet[0, 0] == 255).all()


def test_sheets_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    for name, kind in (('new/folder/sheet.png', 'PNG'), ('sheet.JPG', 'JPEG'), ('sheet.jpeg', 'JPEG')):
        path = contact_sheet([[frame()]], tmp_path / name)
        with Image.open(path) as sheet:
            assert sheet.format == kind
    before = (tmp_path / 'sheet.jpeg').read_bytes()
    names = sorted(tmp_path.rglob('*'))
    assert not [path for path in names if 'tmp' in path.name]

    def broken(self, file, *args, **settings):
        file.write(b'half a picture')
        raise OSError('disk full')
    monkeypatch.setattr(Image.Image, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        contact_sheet([[frame()]], tmp_path / 'sheet.jpeg')
    assert (tmp_path / 'sheet.jpeg').read_bytes() == before and sorted(tmp_path.rglob('*')) == names


@pytest.mark.parametrize('rows, settings, message', [
    ([], {}, 'at least one row'), ([[]], {}, 'at least one row'),
    ([[None, None]], {'columns': ['one']}, '1 headings for 2 columns'),
    ([[None]], {'row_labels': ['one', 'two']}, '2 labels for 1 rows'),
    ([[frame() / 255]], {}, 'uint8'),
])
def test_wrong_sheets_are_refused(tmp_path, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(rows, tmp_path / 'sheet.png', **settings)
    with pytest.raises(ValueError, match='.png or .jpg'):
        contact_sheet([[frame()]], tmp_path / 'sheet.tiff')
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------
# Training curves
# ------------------------------------------------------------------------------------------------

def write_log(path, n=30, tail=''):
    lines = [dict(step=10 * k, epoch=k // 10, loss=3 - k / 20, acl_i=1.0, acl_f=1.0, reg=0.5, acl_c=None,
                  area_pos=0.5, area_neg=0.2, w=10 + k / 100, b=14.0, lr=1e-4, pairs_per_second=20.0)
             for k in range(n)]
    lines += [dict(step=10 * k, val_loss=3.0 - k / 30) for k in range(9, n, 10)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + tail)
    return path


def test_curve_of_a_log_with_a_torn_last_line(tmp_path):
    log = write_log(tmp_path / 'log.jsonl', tail='{"step": 300, "loss": 2.')
    assert len(read_log(log)) == 33
    path = loss_curve(log, tmp_path / 'new' / 'curve.png')
    picture = read(path)
    assert picture.shape[0] > 600 and picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50               # something coloured is drawn
    assert [file.name for file in path.parent.iterdir()] == ['curve.png']


@pytest.mark.parametrize('text', ['{"step": 1, "loss": 3.0}\n', '{"step": 1, "val_loss": NaN}\n', '{"loss": 2}\n',
                                  '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity, "w": 10}\n'])
def test_curve_of_short_and_broken_runs(tmp_path, text):
    (tmp_path / 'log.jsonl').write_text(text)
    assert read(loss_curve(tmp_path / 'log.jsonl', tmp_path / 'curve.png')).size


@pytest.mark.parametrize('text', ['', '\n', '{"step": 1, "lo', '{"step": 1, "loss": null}\n', '[1]\n'])
def test_curve_of_an_empty_log_names_the_file(tmp_path, text):
    (tmp_path / 'log.jsonl').write_text(text)
    with pytest.raises(ValueError, match=r'log\.jsonl holds no logged step yet'):
        loss_curve(tmp_path / 'log.jsonl', tmp_path / 'curve.png')
    assert not (tmp_path / 'curve.png').exists()
    with pytest.raises(FileNotFoundError):
        loss_curve(tmp_path / 'nowhere.jsonl', tmp_path / 'curve.png')


def test_precision_recall_curves_are_drawn_in_fractions(tmp_path):
    recall = np.linspace(0, 1, 30)
    curves = {'AV': (1 - recall / 2, recall, (0.7, 0.6)), 'one point': ([0.5], [0.5], None)}
    path = precision_recall_picture(curves, tmp_path / 'new' / 'curve.png')
    picture = read(path)
    assert min(picture.shape[:2]) > 500
    lines = [(np.abs(picture.astype(int) - colour).sum(-1) < 12).sum() for colour in ((31, 119, 180), (255, 127, 14))]
    assert lines[0] > 500 > lines[1] > 20                                    # a curve, and a dot with its legend
    for bad in ((80 * recall, recall, None), (recall, recall, (70, 60)), (recall[:3], recall, None)):
        with pytest.raises(ValueError, match='fractions in 0..1; those of AV'):
            precision_recall_picture({'AV': bad}, tmp_path / 'bad.png')
    assert not (tmp_path / 'bad.png').exists()


def test_series_of_a_resumed_run(tmp_path):
    log = tmp_path / 'log.jsonl'
    log.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo{"step": 2, "loss": 9}\n'
                   '{"step": 2, "loss": 1.5}\n{"val_loss": 4}\n')
    records = read_log(log)
    steps, values = series(records, 'loss')
    assert steps.tolist() == [1, 2] and values.tolist() == [3, 1.5]          # what was logged last counts
    assert series(records, 'val_loss')[0].tolist() == [2]                    # at the step it was logged after


def test_smoothing():
    assert smooth(np.array([])).size == 0 and smooth(np.array([3.0])).tolist() == [3]
    noisy = np.random.default_rng(0).normal(5, 1, 400)
    assert smooth(noisy)[50:].std() < 0.35 and abs(smooth(noisy).mean() - noisy.mean()) < 0.05
    assert smooth(noisy)[0] == pytest.approx(noisy[0])                       # a run begins where it began
    with_gap = np.where(np.arange(400) == 200, np.nan, 5.0)
    assert np.allclose(smooth(with_gap), 5)


def test_importing_figures_imports_neither_matplotlib_nor_torch():
    code = 'import sys, figures; assert not {"matplotlib", "torch"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------

def test_table_aligns_and_dashes():
    text = table([[38.14, 49.5, None], [5.0, float('nan')]], ['untrained', 'trained', 'oracle'], ['cIoU', 'mIoU'])
    assert text.split('\n') == ['      untrained  trained  oracle',
                                '----  ---------  -------  ------',
                                'cIoU       38.1     49.5       -',
                                'mIoU        5.0      nan       -']
    assert '0.123' in table([[0.1234]], ['FPR'], decimals=3)


def test_table_of_dicts_whole_numbers_and_text():
    rows = [{'method': 'ours', 'n': 1200, 'AUC': np.float32(0.25)}, {'method': 'chance', 'AUC': -0.001}]
    assert table(rows, ['method', 'n', 'AUC']).split('\n') == ['method     n  AUC',
                                                               '------  ----  ---',
                                                               'ours    1200  0.2',
                                                               'chance     -  0.0']
    assert table([], ['a', 'b']).split('\n') == ['a  b', '-  -']


def test_markdown_table():
    lines = table([[1.0, 'x|y'], [22.25]], ['AP', 'why'], ['one', 'two'], decimals=2, markdown=True).split('\n')
    assert lines == ['|      |    AP | why  |', '| ---- | ----: | ---- |', '| one  |  1.00 | x\\|y |',
                     '| two  | 22.25 | -    |']


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match='3 values for 2 columns'):
        table([[1, 2, 3]], ['a', 'b'])
    with pytest.raises(ValueError, match='1 names for 2 rows'):
        table([[1], [2]], ['a'], ['only'])


def test_decimals_may_differ_by_column():
    assert table([[1.25, 0.031]], ['mIoU', 'FPR'], decimals=[0, 2]).split('\n')[-1].split() == ['1', '0.03']


# ------------------------------------------------------------------------------------------------
# Tables 1 to 8
# ------------------------------------------------------------------------------------------------

def test_global_scores_of_the_papers_table_5_follow_from_its_other_columns():
    for benchmark in ('robust_s4', 'robust_ms3'):
        for row in ('av', 'av_llm'):
            scores = paper_scores()['robustness', benchmark, row]
            for kind in ('mIoU', 'F'):
                negative = np.mean([scores[f'{kind}_{name}'] for name in metrics.NEGATIVES])
                assert metrics.global_score(scores[f'{kind}_positive'], negative) == pytest.approx(
                    scores[f'G_{kind}'], abs=0.1)


def test_every_row_of_the_paper_has_every_metric_of_its_table():
    scores, rows = paper_scores(), 0
    for task, tables in TABLES.items():
        for number, benchmarks, headings in tables:
            for benchmark in benchmarks:
                if (number, benchmark) == ('Table 4', 'ext_vggss'):          # the paper has Table 4 for Flickr only
                    continue
                oracle = task in ORACLE_TASKS and benchmark not in ('flickr', 'ade20k')
                for row in ('av', 'av_llm', *['clipseg_gt_text'] * oracle):
                    assert headings.keys() <= scores[task, benchmark, row].keys()
                    rows += number != 'Table 4'
    assert len(scores) == rows == 54                                         # and there is no other row
    assert all(0 <= value <= 100 for row in scores.values() for value in row.values())
    for row in ('av', 'av_llm'):
        flickr = scores['robustness', 'ext_flickr', row]
        assert abs(flickr['recall'] - flickr['precision']) == pytest.approx(flickr['recall_precision_gap'])


@pytest.mark.parametrize('key, metric, value', [
    (('single', 'vggss', 'av'), 'cIoU', 49.46), (('single', 'flickr', 'av_llm'), 'AUC_adap', 67.04),
    (('single', 'vpo_ms', 'av'), 'cIoU', 38.2), (('single', 'avs_s4', 'av'), 'cIoU_adap', 81.2),
    (('single', 'is4', 'clipseg_gt_text'), 'AUC', 59.3), (('robustness', 'ext_vggss', 'av_llm'), 'AP', 46.72),
    (('robustness', 'robust_ms3', 'av'), 'mIoU_offscreen', 8.6), (('robustness', 'robust_s4', 'av_llm'), 'G_FPR', 0.024),
    (('segmentation', 'avs_ms3', 'av'), 'F', 46.7), (('interactive', 'is4', 'av'), 'IAUC_adap', 50.5),
    (('multisource', 'vgg_duet', 'av_llm'), 'CIoU@30', 55.9)])
def test_single_numbers_of_the_paper(key, metric, value):
    assert paper_scores()[key][metric] == value


def lines_of(*args, **settings):
    return [line.split() for line in task_tables(*args, **settings).split('\n')]


def test_tables_have_the_papers_order_and_dashes_for_an_oracle_without_text():
    ours = {'is4': {'cIoU': 60.04, 'AUC': 50.0, 'AUC_adap': 1, 'n': 7, 'n_expected': 9},
            'flickr': {'cIoU': [10.0] * 9 + [55.55] + [90.0] * 9, 'n': 250, 'n_expected': 250}}    # a sweep
    oracle = {'is4': {'cIoU': 74.3, 'n': 9, 'n_expected': 9}, 'flickr': None}
    assert task_tables('single', ours, oracle).split('\n') == [
        'Single sound source localization (Tables 1 and 2)',
        'benchmark        row     cIoU  w/ Adap.   AUC  w/ Adap.       n',
        '---------------  ------  ----  --------  ----  --------  ------',
        'Flickr-SoundNet  ours    55.5         -     -         -     250',
        '                 oracle     -         -     -         -       -',
        'IS4              ours    60.0         -  50.0       1.0  7 of 9',
        '                 oracle  74.3         -     -         -       9']


def test_rows_of_the_paper_stand_beside_ours():
    scores = {'cIoU': 1.0, 'cIoU_adap': 2.0, 'AUC': 3.0, 'AUC_adap': 4.0, 'n': 5, 'n_expected': 5}
    lines = lines_of('single', {'vggss': scores, 'ade20k': scores}, {'vggss': scores}, paper='av')
    assert lines[3:] == ['VGG-SS ours 1.0 2.0 3.0 4.0 5'.split(), 'paper, AV alignment 49.5 64.0 46.3 54.1 -'.split(),
                         'oracle 1.0 2.0 3.0 4.0 5'.split(), 'paper, oracle 49.5 65.3 48.6 55.7 -'.split(),
                         'ADE20K ours 1.0 2.0 3.0 4.0 5'.split(), 'paper, AV alignment 45.3 58.5 42.4 54.6 -'.split(),
                         'oracle - - - - -'.split()]
    assert 'paper, AV + LLM alignment' in task_tables('multisource', {'vgg_duet': {}}, None, paper='av_llm')
    assert 'paper' not in task_tables('multisource', {'vgg_duet': {}}, None)
    assert 'oracle' not in task_tables('multisource', {'vgg_duet': {}}, None, paper='av')


def test_robustness_has_three_tables_each_with_its_own_benchmarks():
    extended = {'AP': 70.0, 'max_F1': 66.66, 'precision': 60.0, 'recall': 75.0, 'LocAcc': 50.0, 'n': 4, 'n_expected': 4}
    robust = {metric: 0.125 if 'FPR' in metric else 12.5 for metric in TABLES['robustness'][2][2]}
    text = task_tables('robustness', {'robust_ms3': robust, 'ext_flickr': extended}, None)
    third, fourth, fifth = (part.split('\n') for part in text.split('\n\n'))
    assert [part[0].rsplit('(')[-1] for part in (third, fourth, fifth)] == ['Table 3)', 'Table 4)', 'Table 5)']
    assert third[3:] == ['Extended Flickr  ours  70.0    66.7    50.0  4'] and len(fourth) == len(fifth) == 4
    assert fourth[3].split()[3:] == ['70.0', '66.7', '60.0', '75.0', '50.0', '15.0', '4']     # |recall - precision|
    assert fifth[3].split()[3:] == ['12.5', '12.5'] + ['12.5', '12.5', '0.12'] * 4 + ['-']
    assert 'Table 5' not in task_tables('robustness', {'ext_flickr': extended}, None)
    markdown = task_tables('robustness', {'ext_flickr': extended}, None, markdown=True)
    assert '(Table 3)\n\n| benchmark' in markdown and '\\|Recall - Precision\\|' in markdown
    with pytest.raises(ValueError, match='no table with is4, vggss'):
        task_tables('robustness', {'vggss': {}, 'is4': {}}, None)


# ------------------------------------------------------------------------------------------------
# Sheets of examples
# ------------------------------------------------------------------------------------------------

def example(task, benchmark, id='a', **more):
    """One sample with a white frame, a box of truth and a map that is 1 everywhere."""
    truth = np.zeros((224, 224))
    truth[50:150, 50:150] = 1
    wav = (np.sin(np.arange(8000) / 20) / 4).astype(np.float32)
    return {'task': task, 'benchmark': benchmark, 'id': id, 'group': None, 'condition': None, 'label': 'dog',
            'frame': np.full((64, 64, 3), 255, np.uint8), 'truth': truth, 'heat': np.ones((56, 56), np.float32),
            'oracle': None, 'wav': wav, 'rate': 16000, 'score': 0.5, 'confidence': None, **more}


def mixture(**more):
    half = np.zeros((224, 448))
    half[50:150, 50:150] = 1
    return example('multisource', 'vgg_duet', label=['dog', 'cat'], frame=np.full((224, 448, 3), 255, np.uint8),
                   truth=[half, half[:, ::-1]], heat=[half, half[:, ::-1]], **more)


EXAMPLES = {
    'single': [example('single', 'vggss', str(i)) for i in range(3)],
    'segmentation': [example('segmentation', 'ade20k', label=None, score=None)],
    'extended': [example('robustness', 'ext_flickr', condition=c, truth=t, confidence=0.4)
                 for c, t in (('sounding', np.ones((224, 224))), ('silent', None))],
    'robust': [example('robustness', 'robust_s4', group=g, condition=c) for g in 'ab' for c in CONDITIONS
               if (g, c) != ('b', 'noise')],
    'interactive': [example('interactive', 'vpo_ms', group=g, label=name)
                    for g, name in (('a', 'dog'), ('b', 'cat'), ('a', 'cat'), ('c', 'cow'), ('a', 'hen'))],
    'multisource': [mixture(), mixture()]}
GRIDS = {'single': (3, ['frame', 'ground truth', 'heatmap', 'overlay']),
         'segmentation': (1, ['frame', 'ground truth', 'heatmap', 'overlay']),
         'extended': (2, ['frame', 'ground truth', 'heatmap', 'overlay']), 'robust': (2, ['frame', *CONDITIONS]),
         'interactive': (3, ['frame', *(f'sound {k} {what}' for k in (1, 2, 3) for what in ('ground truth', 'overlay'))]),
         'multisource': (2, ['frame', 'ground truth 1', 'heatmap 1', 'ground truth 2', 'heatmap 2'])}


@pytest.mark.parametrize('kind', EXAMPLES)
def test_sheet_of_each_task_has_the_papers_columns(tmp_path, kind, monkeypatch):
    seen, written = {}, contact_sheet
    monkeypatch.setattr(report, 'contact_sheet', lambda rows, path, columns, labels, **more: seen.update(
        rows=rows, columns=columns, labels=labels, **more)
        or written(rows, path, columns, labels, **more))
    mine = EXAMPLES[kind]
    path = example_sheet(mine[0]['task'], mine[0]['benchmark'], mine, tmp_path / f'{kind}.png')
    assert read(path).shape[1] > 128 * len(GRIDS[kind][1])
    assert (len(seen['rows']), seen['columns']) == GRIDS[kind]
    assert seen['tile'] == (192 if kind == 'multisource' else 128)           # for two frames
    assert all((row[0] == 255).all() for row in seen['rows'])                # each begins with the bare frame
    if kind == 'extended':
        assert seen['labels'][1] == 'dog\nsilent\nIoU 0.50\nconfidence 0.40'
        assert seen['rows'][1][1] is None                                    # nothing is to be found: a blank
    if kind == 'robust':                                                     # the missing noise is a blank
        assert [i for i, tile in enumerate(seen['rows'][1]) if tile is None] == [1 + CONDITIONS.index('noise')]
    if kind == 'interactive':                                                # the sounds of a frame, one after the other
        assert seen['labels'][0].startswith('dog / cat / hen') and [len(row) for row in seen['rows']] == [7, 3, 3]
    if kind == 'multisource':                                                # each source in its own half
        left, right = seen['rows'][0][1], seen['rows'][0][3]
        assert (left[100, 100] == 255).all() and (right[100, 100] < 100).all() and (right[100, 348] == 255).all()
    if kind == 'segmentation':
        assert seen['labels'] == ['a\n'] or seen['labels'] == ['a']          # the id stands in for a missing label


def test_sheets_of_nothing_and_of_unknown_conditions_are_refused(tmp_path):
    with pytest.raises(ValueError, match='at least one row'):
        example_sheet('single', 'vggss', [], tmp_path / 'sheet.png')
    with pytest.raises(ValueError, match="no condition .'music'"):
        example_sheet('robustness', 'robust_s4', [example('robustness', 'robust_s4', condition='music')], tmp_path / 's.png')
    assert not list(tmp_path.iterdir())

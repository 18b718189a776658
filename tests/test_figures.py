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
import figures  # noqa: E402
from figures import (OUTLINE, TURBO, contact_sheet, fit_text, ground_truth_tile, heat_colours,  # noqa: E402
                     loss_curve, overlay, read_log, series, smooth, table)

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

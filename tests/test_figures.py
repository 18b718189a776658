"""Tiles and contact sheets: colours on a fixed scale, the ground truth's outline, the layout."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from figures import pictures, report
from figures.pictures import (BLANK, DIMMED, GAP, OUTLINE, TILE, contact_sheet, ground_truth_tile,
                              heat_colours, overlay)
from figures.report import example_sheet
from metrics import CONDITIONS

COLDEST, HOTTEST = (48, 18, 59), (122, 4, 2)        # the ends of Turbo
LONG = 'a church bell far away behind Llanfairpwllgwyngyllgogerychwyrndrobwllllantysilio'


def frame(H=40, W=60, value=200):
    return np.full((H, W, 3), value, np.uint8)


def sheet_of(tmp_path, *given):
    contact_sheet(given[0], tmp_path / 'sheet.png', *given[1:])
    with Image.open(tmp_path / 'sheet.png') as picture:
        return np.asarray(picture.convert('RGB'))


# ------------------------------------------------------------------------------------------------
# Tiles
# ------------------------------------------------------------------------------------------------

def test_heatmap_is_coloured_on_a_fixed_scale():
    assert (heat_colours(np.zeros((5, 7))) == COLDEST).all()        # an empty map looks empty
    faint = heat_colours(np.linspace(0, 0.1, 12).reshape(3, 4))
    assert faint[..., 0].max() < 75 and faint[..., 1].max() < 95    # a faint one is not stretched
    same = heat_colours(np.array([[0.3, 1.0]]))[0, 0]
    assert (heat_colours(np.array([[0.3]]))[0, 0] == same).all()    # whatever else the map holds
    assert (heat_colours(np.ones((2, 2), np.float16)) == HOTTEST).all()     # as maps are saved


def test_heat_colours_go_from_blue_over_green_to_red():
    blue, green, red = heat_colours(np.array([[0.15, 0.5, 0.85]]))[0].argmax(1)
    assert (blue, green, red) == (2, 1, 0)


@pytest.mark.parametrize('bad', [7.0, -0.5, np.nan])
def test_what_is_no_heatmap_is_refused(bad):
    with pytest.raises(ValueError, match='A heatmap lies in 0..1, not in'):
        heat_colours(np.full((3, 3), bad))
    with pytest.raises(ValueError, match='A heatmap lies in 0..1, not in'):
        overlay(frame(), np.full((3, 3), bad))


def test_overlay_keeps_shape_and_type_and_puts_heat_where_it_is():
    heatmap = np.zeros((4, 6))
    heatmap[:, 4:] = 1                                              # hot at the right
    picture = overlay(frame(), heatmap)
    assert picture.shape == (40, 60, 3) and picture.dtype == np.uint8
    assert (picture[:, 0] == np.round((200 + np.array(COLDEST)) / 2)).all()
    assert (picture[:, -1] == np.round((200 + np.array(HOTTEST)) / 2)).all()
    assert len(np.unique(picture[20, 35:45], axis=0)) > 5           # bilinear: no jump


def test_ground_truth_dims_outside_and_outlines():
    mask = np.zeros((128, 128), bool)
    mask[32:96, 20:70] = True
    picture = ground_truth_tile(frame(128, 128), mask)
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    assert (picture[64, 45] == 200).all() and (picture[5, 5] == 60).all()
    assert (picture[32, 40] == OUTLINE).all() and (picture[64, 69] == OUTLINE).all()
    assert (picture[34, 40] == 200).all()                           # the outline is narrow
    assert (picture[~mask] == 200 * DIMMED).all()                   # and lies inside
    assert (ground_truth_tile(frame(128, 128), mask * np.uint8(255)) == picture).all()


def test_ground_truth_of_nothing_and_of_the_whole_frame():
    assert (ground_truth_tile(frame(), np.zeros((40, 60))) == 60).all()
    whole = ground_truth_tile(frame(), np.ones((40, 60)))
    assert (whole[0] == OUTLINE).all() and (whole[:, -1] == OUTLINE).all()
    assert (whole[20, 30] == 200).all()


def test_consensus_of_annotators_is_shaded():
    consensus = np.zeros((128, 128))
    consensus[10:90, 10:90] = 0.5                                   # one of the two annotators
    consensus[40:90, 40:90] = 1                                     # both
    picture = ground_truth_tile(frame(128, 128), consensus)
    assert (picture[64, 64] == 200).all() and (picture[25, 25] == 130).all()
    assert (picture[110, 110] == 60).all()
    assert (picture[10, 50] == OUTLINE).all() and (picture[40, 60] == 200).all()    # the outer one


def test_ground_truth_of_another_size_is_resized():
    mask = np.zeros((224, 224), bool)
    mask[56:168, 112:] = True
    small = np.zeros((40, 60), bool)
    small[10:30, 30:] = True
    assert (ground_truth_tile(frame(), mask) == ground_truth_tile(frame(), small)).all()


# ------------------------------------------------------------------------------------------------
# Contact sheets
# ------------------------------------------------------------------------------------------------

def test_sheet_size_follows_from_the_tiles(tmp_path):
    def size(n_rows, n_columns, tile):
        names = ['a'] * n_columns, ['b'] * n_rows
        return np.array(sheet_of(tmp_path, [[tile] * n_columns] * n_rows, *names).shape[:2])

    square = frame(64, 64)
    assert (size(2, 3, square) - size(2, 2, square) == (0, TILE + GAP)).all()
    assert (size(3, 2, square) - size(2, 2, square) == (TILE + GAP, 0)).all()
    assert (size(2, 3, frame(32, 64)) - size(2, 3, square) == (0, 3 * TILE)).all()     # two frames


@pytest.mark.parametrize('label', ['b', LONG, LONG + '\n' + '\n'.join(['IoU 0.42'] * 5), 'W' * 99])
def test_labels_and_headings_stay_beside_and_above_the_tiles(tmp_path, label):
    red = np.full((50, 50, 3), (200, 0, 0), np.uint8)
    sheet = sheet_of(tmp_path, [[red] * 2] * 2, ['sound 1\nground truth'] * 2, [label] * 2, 'Title')
    tiles = (sheet == (200, 0, 0)).all(-1)                          # (H, W)
    assert tiles.sum() == 4 * TILE * TILE                           # no letter on a tile
    top, left = np.argwhere(tiles).min(0)
    ink = (sheet < 250).any(-1) & ~tiles
    assert ink[top:, :left].any() and ink[:top, left:].any()
    assert not ink[:2].any() and not ink[-2:].any() and not ink[:, :8].any()
    assert not ink[top:, left - 4:].any()                           # labels end before the tiles
    assert not ink[top - GAP // 2:top, left:].any()                 # headings end above them
    assert not ink[35:top, left + TILE:left + TILE + GAP].any()     # and do not touch each other
    assert not ink[top + TILE:top + TILE + GAP].any()               # nor do labels of two rows


def test_a_long_name_ends_in_an_ellipsis_and_keeps_its_facts(tmp_path, monkeypatch):
    said, text = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', lambda self, place, words, ink, *given, **more:
                        said.append((words, ink)) or text(self, place, words, ink, *given, **more))
    sheet_of(tmp_path, [[frame()]], ['frame'], [f'{LONG * 3}\nIoU 0.42\nconfidence 0.10'])
    name = [words for words, ink in said[2:] if ink == pictures.INK]
    facts = [words for words, ink in said[2:] if ink == pictures.QUIET]
    assert facts == ['IoU 0.42', 'confidence 0.10']
    assert len(name) == 5 and name[-1].endswith('…')
    assert ' '.join(name).startswith(LONG)


@pytest.mark.parametrize('name', ['ADE_val_00000001_1097_whistle00_000000', '-Qj3-w-TqcI_000030'])
def test_an_id_is_not_broken_however_many_facts_stand_below_it(name):
    for facts in ('', '\nIoU 0.50' * 6):
        assert pictures.label_lines(name + facts)[0] == (name, pictures.INK)
        line, _ = pictures.label_lines(f'{name} / {name}' + facts)[0]
        assert line.startswith(name)


def test_tiles_keep_their_proportions_and_blanks_are_allowed(tmp_path):
    wide, tall = frame(20, 40, 0), frame(40, 20, 0)
    sheet = sheet_of(tmp_path, [[wide, None], [tall]], ['a', 'b'], ['c', 'd'])
    half = TILE // 2
    assert (sheet == 0).all(-1).sum() == TILE * 2 * TILE + TILE * half
    assert (sheet == BLANK).all(-1).sum() == 2 * TILE * 2 * TILE + TILE * (2 * TILE - half)
    assert (sheet[0, 0] == 255).all()


def test_tiles_of_the_cell_s_size_are_copied_to_the_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (TILE, TILE, 3), np.uint8)
    sheet = sheet_of(tmp_path, [[noise]], ['a'], ['b'])
    assert (sheet[-TILE - 2 * GAP:-2 * GAP, -TILE - 2 * GAP:-2 * GAP] == noise).all()


def test_each_tile_heading_and_label_stands_in_its_own_row_and_column(tmp_path):
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]]
    rows = [[np.full((TILE, TILE, 3), colour, np.uint8) for colour in row] for row in colours]
    sheet = sheet_of(tmp_path, rows, ['', 'truth'], ['', 'dog'])
    corner = lambda colour: np.argwhere((sheet == colour).all(-1)).min(0)           # y, x
    top, left = corner(colours[0][0])
    step = TILE + GAP
    for r, row in enumerate(colours):
        for c, colour in enumerate(row):
            assert corner(colour).tolist() == [top + r * step, left + c * step]
    dark = (sheet < 128).all(-1)
    assert np.argwhere(dark[:, :left])[:, 0].min() > top + step                     # 'dog'
    assert np.argwhere(dark[:top])[:, 1].min() > left + step                        # 'truth'


def test_sheets_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    sheet_of(tmp_path / 'new/folder', [[frame()]], ['a'], ['b'])
    path = tmp_path / 'new/folder/sheet.png'
    before = path.read_bytes()

    def broken(self, file, *args, **settings):
        file.write(b'half a picture')
        raise OSError('disk full')
    monkeypatch.setattr(Image.Image, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        contact_sheet([[frame()]], path, ['a'], ['b'])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------
# Sheets of examples
# ------------------------------------------------------------------------------------------------

def example(task, benchmark, id='a', **more):
    """One sample with a white frame, a box of truth and a map that is 1 everywhere."""
    truth = np.zeros((1, 224, 224))
    truth[:, 50:150, 50:150] = 1
    wav = (np.sin(np.arange(8000) / 20) / 4).astype(np.float32)
    return {'task': task, 'benchmark': benchmark, 'id': id, 'group': None, 'condition': None,
            'label': 'dog', 'frame': np.full((64, 64, 3), 255, np.uint8), 'truth': truth,
            'heats': {'overlay': np.ones((1, 56, 56), np.float32)}, 'oracle': None, 'wav': wav,
            'scores': {'IoU': 0.5}, **more}


def mixture(**more):
    half = np.zeros((224, 448))
    half[50:150, 50:150] = 1
    return example('multisource', 'vgg_duet', label=['dog', 'cat'],
                   frame=np.full((224, 448, 3), 255, np.uint8), scores={'CAP': 0.64},
                   truth=[half, half[:, ::-1]], heats={'overlay': [half, half[:, ::-1]]}, **more)


EXAMPLES = {
    'single': [example('single', 'vggss', str(i)) for i in range(3)],
    'segmentation': [example('segmentation', 'ade20k', label=None, scores={'IoU': None})],
    'extended': [example('robustness', 'ext_flickr', condition=c, truth=np.full((1, 224, 224), t),
                         scores={'IoU': 0.5, 'confidence': 0.4})
                 for c, t in (('sounding', 1.), ('silent', 0.))],
    'robust': [example('robustness', 'robust_s4', group=g, condition=c)
               for g in 'ab' for c in CONDITIONS if (g, c) != ('b', 'noise')],
    'interactive': [example('interactive', 'vpo_ms', group=g, label=name) for g, name in (
        ('a', 'dog'), ('b', 'cat'), ('a', 'cat'), ('c', 'cow'), ('a', 'hen'))],
    'multisource': [mixture(), mixture()]}
PLAIN = ['frame', 'ground truth', 'heatmap', 'overlay']
GRIDS = {
    'single': (3, PLAIN), 'segmentation': (1, PLAIN), 'extended': (2, PLAIN),
    'robust': (2, ['frame', *(f'{condition}\noverlay' for condition in CONDITIONS)]),
    'interactive': (3, ['frame', *(f'sound {k}\n{what}' for k in (1, 2, 3)
                                   for what in ('ground truth', 'overlay'))]),
    'multisource': (2, ['frame', 'ground truth 1', 'overlay 1', 'ground truth 2', 'overlay 2'])}


def test_no_method_has_an_iou_where_nothing_sounds():
    scores = {'IoU': 0.0, 'confidence': 0.25, 'by FNAC': 0.0}
    facts = {condition: report.facts_of({'condition': condition, 'scores': scores})
             for condition in ('silent', 'sounding')}
    assert facts['silent'] == ['silent', 'confidence 0.25']
    assert facts['sounding'] == ['sounding', 'IoU 0.00', 'confidence 0.25', 'by FNAC 0.00']


@pytest.mark.parametrize('kind', EXAMPLES)
def test_sheet_of_each_task_has_the_papers_columns(tmp_path, kind, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, 'contact_sheet', lambda *given: drawn.append(given))
    mine = EXAMPLES[kind]
    example_sheet(mine[0]['task'], mine[0]['benchmark'], mine, tmp_path / 'sheet.png')
    [(rows, path, columns, labels, title)] = drawn
    contact_sheet(rows, path, columns, labels, title)
    with Image.open(path) as picture:
        assert picture.width > TILE * len(columns)
    assert (len(rows), columns) == GRIDS[kind]
    assert all((row[0] == 255).all() for row in rows)               # each begins with the frame
    if kind == 'extended':
        assert labels[1] == 'dog\nsilent\nconfidence 0.40'      # nothing sounds: no IoU
        assert (rows[1][1] < 100).all()                             # nothing to be found: all dim
        assert title == 'Audio-visual robustness: Extended Flickr'
    if kind == 'robust':                                            # the missing noise is a blank
        blanks = [i for i, tile in enumerate(rows[1]) if tile is None]
        assert blanks == [1 + CONDITIONS.index('noise')]
    if kind == 'interactive':                                       # the sounds of a frame in a row
        assert labels[0] == 'dog / cat / hen\nIoU 0.50 / 0.50 / 0.50'
        assert [len(row) for row in rows] == [7, 3, 3]
    if kind == 'multisource':                                       # each source in its own half
        left, right = rows[0][1], rows[0][3]
        assert (left[100, 100] == 255).all() and (right[100, 100] < 100).all()
        assert (right[100, 348] == 255).all() and labels[0] == 'dog + cat\nCAP 0.64'
    if kind == 'segmentation':
        assert labels == ['a']                                      # the id, where no label is


def beside(mine, **levels):
    """The example with other methods' maps of a level everywhere beside it; None: no map."""
    heats = dict(mine['heats'])
    for method, level in levels.items():
        heats[f'by {method}'] = None if level is None else np.full((1, 56, 56), level)
    own = {f'by {method}': level for method, level in levels.items()}
    return {**mine, 'heats': heats, 'scores': {**mine['scores'], **own}}


def drawn_sheet(monkeypatch, examples):
    """-> [{heading: tile}], labels"""
    drawn = []
    monkeypatch.setattr(report, 'contact_sheet', lambda *given: drawn.append(given))
    example_sheet(examples[0]['task'], examples[0]['benchmark'], examples, 'sheet.png')
    [(rows, _, columns, labels, _)] = drawn
    return [dict(zip(columns, row)) for row in rows], labels


def test_other_methods_overlays_stand_after_ours(monkeypatch):
    mine = [beside(EXAMPLES['single'][0], FNAC=0.25, SLAVC=0.75),
            beside(EXAMPLES['single'][1], FNAC=0.5, SLAVC=None)]
    (first, second), labels = drawn_sheet(monkeypatch, mine)
    assert list(first) == [*PLAIN, 'by FNAC', 'by SLAVC']
    for method, level in (('FNAC', 0.25), ('SLAVC', 0.75)):
        assert (first[f'by {method}'] == overlay(first['frame'], np.full((56, 56), level))).all()
    assert second['by SLAVC'] is None                               # it has no map of this sample
    assert labels == ['dog\nIoU 0.50\nby FNAC 0.25\nby SLAVC 0.75', 'dog\nIoU 0.50\nby FNAC 0.50']


def test_other_methods_stand_beside_ours_in_each_condition_and_source(monkeypatch):
    mine = [beside(one, FNAC=0.25) for one in EXAMPLES['robust']]   # without the noise of b
    (first, second), _ = drawn_sheet(monkeypatch, mine)
    assert list(first) == ['frame', *(f'{condition}\n{what}' for condition in CONDITIONS
                                      for what in ('overlay', 'by FNAC'))]
    blanks = [heading for heading, tile in second.items() if tile is None]
    assert blanks == ['noise\noverlay', 'noise\nby FNAC']
    one = mixture()
    one['heats'] = {**one['heats'], 'by FNAC': one['heats']['overlay'][::-1]}
    [row], _ = drawn_sheet(monkeypatch, [one])
    assert list(row) == ['frame', *(f'{what} {k}' for k in (1, 2)
                                    for what in ('ground truth', 'overlay', 'by FNAC'))]
    assert (row['by FNAC 1'] == row['overlay 2']).all()
    assert (row['by FNAC 2'] == row['overlay 1']).all()


def test_labels_of_many_methods_stay_beside_their_tile():
    lines = pictures.label_lines('dog\n' + '\n'.join(f'by {k} 0.50' for k in range(20)))
    assert lines[0] == ('dog', pictures.INK) and len(lines) == TILE // pictures.LINE


def test_a_sheet_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match='at least one row'):
        example_sheet('single', 'vggss', [], tmp_path / 'sheet.png')
    assert not list(tmp_path.iterdir())

"""Pictures and tables: heatmaps over frames, contact sheets, curves, and Tables 1 to 8 of section 4.2.

    from figures import contact_sheet, ground_truth_tile, heat_colours, loss_curve, overlay, task_tables
    row = [frame, ground_truth_tile(frame, mask), heat_colours(heatmap), overlay(frame, heatmap)]
    contact_sheet([row], 'sheet.png', columns=['frame', 'ground truth', 'heatmap', 'overlay'],
                  row_labels=['dog, IoU 0.81'])
    loss_curve('runs/first/log.jsonl', 'curve.png')
    print(task_tables('single', {'is4': {'cIoU': 65.9, 'AUC': 53.5, 'n': 480, 'n_expected': 480}}, None, paper='av'))

Every heatmap is coloured on the fixed scale 0..1 and never stretched to its own minimum and maximum: a silent
clip's empty map looks empty, and two maps side by side can be compared.

Shapes: H W pixels of the frame, h w cells of the heatmap. Colours are uint8 RGB. Nothing here needs torch.
"""

import csv
import functools
import json
import math
import numbers
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEAT_WEIGHT = 0.5               # share of the heat's colour in an overlay; the rest is the frame
DIMMED = 0.3                    # brightness that is left outside the ground truth
OUTLINE = (90, 255, 110)        # green: a colour that few frames hold and that stands out from the dimmed part
INK, QUIET = (25, 25, 25), (110, 110, 110)      # text; what follows a newline in a row label
BLANK = (240, 240, 240)         # behind a tile that is missing or not square
GAP = 6                         # pixels between tiles
HEADING_LINES = 2               # most lines of a heading or the title; a row label has the height of its row

# Seventeen even steps through Google's Turbo (Mikhailov, 2019): the order of jet, which the paper's figures use,
# without jet's false edges at cyan and yellow. In between, linear: at most 7 of 255 from the full table.
TURBO = np.array([
    (48, 18, 59), (64, 64, 162), (70, 107, 227), (66, 148, 255), (40, 188, 235), (24, 221, 194), (50, 242, 152),
    (109, 254, 98), (164, 252, 60), (205, 236, 52), (238, 207, 58), (253, 172, 52), (251, 126, 33), (235, 80, 14),
    (208, 47, 5), (169, 22, 1), (122, 4, 3)], np.float32)


# ------------------------------------------------------------------------------------------------
# Tiles: one (H, W, 3) picture each
# ------------------------------------------------------------------------------------------------

def heat_colours(heatmap):
    """heatmap (h, w), numbers in 0..1 -> (h, w, 3) uint8: dark violet at 0, green at 0.5, dark red at 1.

    Raises ValueError for another shape and for values outside 0..1 (logits, per cent, NaN).
    """
    heatmap, steps = _unit(heatmap), np.linspace(0, 1, len(TURBO))
    colours = np.stack([np.interp(heatmap, steps, channel) for channel in TURBO.T], -1)     # (h, w, 3)
    return colours.round().astype(np.uint8)


def overlay(frame, heatmap, weight=HEAT_WEIGHT):
    """frame (H, W, 3) uint8 and heatmap (h, w) in 0..1 -> (H, W, 3) uint8, the heat's colours over the frame.

    The heatmap is resized to the frame bilinearly; weight in 0..1 is the share of its colours, the same at every
    pixel. Raises ValueError for other shapes, types or ranges.
    """
    frame = checked_rgb(frame)                                             # (H, W, 3)
    H, W, _ = frame.shape
    heatmap = Image.fromarray(_unit(heatmap)).resize((W, H), Image.Resampling.BILINEAR)     # (H, W)
    colours = heat_colours(heatmap)                                 # (H, W, 3)
    return ((1 - weight) * frame + weight * colours).round().astype(np.uint8)


def ground_truth_tile(frame, ground_truth):
    """The frame, dimmed outside the ground truth, with an outline around it: (H, W, 3) uint8.

    frame: (H, W, 3) uint8. ground_truth: a mask (h, w), bool or numbers, inside where it is at least 0.5, resized
    to the frame where its size is another (data.py's are 224 x 224); or one box (4,) or several (K, 4) as x0, y0,
    x1, y1 in pixels of the frame, x1 and y1 exclusive. Where a mask is less than 1, as the consensus of Flickr's
    annotators (Figure 5), its inside is half dimmed. An empty mask, of a sound that nothing in the frame makes, dims
    it all. Raises ValueError for other shapes.
    """
    frame = checked_rgb(frame)                                             # (H, W, 3)
    H, W, _ = frame.shape
    ground_truth = np.asarray(ground_truth)
    is_boxes = ground_truth.shape[-1:] == (4,) and ground_truth.shape != (H, W)
    if ground_truth.ndim == 2 and ground_truth.size and not is_boxes:
        masks = [Image.fromarray((ground_truth >= level).astype(np.float32)) for level in (0.5, 1)]
        inside, agreed = (np.asarray(mask.resize((W, H), Image.Resampling.BILINEAR)) >= 0.5 for mask in masks)  # (H, W)
    elif is_boxes and ground_truth.ndim <= 2:
        inside = np.zeros((H, W), bool)                             # (H, W), the union of the boxes
        for x0, y0, x1, y1 in ground_truth.reshape(-1, 4).clip(min=0).round().astype(int):
            inside[y0:y1, x0:x1] = True
        agreed = inside
    else:
        raise ValueError(f'A ground truth is a mask (h, w), box (4,) or boxes (K, 4), not {ground_truth.shape}.')
    # The outline is what erosion takes off, as wide as stays visible in a tile of 128. Padding with nothing lets
    # the mask erode, and so be outlined, at the edge of the frame too.
    width = max(1, round(min(H, W) / 64))
    padded = Image.fromarray(np.pad(inside, width).astype(np.uint8))
    eroded = np.asarray(padded.filter(ImageFilter.MinFilter(2 * width + 1)))[width:-width, width:-width]
    brightness = np.select([agreed, inside], [1, (1 + DIMMED) / 2], DIMMED)
    picture = frame * brightness[..., None]                         # (H, W, 3)
    picture[inside & (eroded == 0)] = OUTLINE
    return picture.round().astype(np.uint8)


def _unit(heatmap):
    heatmap = np.asarray(heatmap, np.float32)
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise ValueError(f'A heatmap is (h, w), not {heatmap.shape}.')
    if not (heatmap.min() >= -1e-3 and heatmap.max() <= 1 + 1e-3):     # written so that NaN fails too
        raise ValueError(f'A heatmap lies in 0..1, not in {heatmap.min():.3g}..{heatmap.max():.3g}.')
    return heatmap.clip(0, 1)


def checked_rgb(frame):
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise ValueError(f'A frame or tile is (H, W, 3) uint8, not {frame.shape} {frame.dtype}.')
    return frame


# ------------------------------------------------------------------------------------------------
# Contact sheets
# ------------------------------------------------------------------------------------------------

def fit_text(text, font, width, lines):
    """Break text into at most `lines` lines, none wider than `width` pixels in `font`. Returns a list of str.

    Breaks at spaces and given newlines, inside a word only where it alone is too wide, and ends in an ellipsis
    where text is left over.
    """
    fitted = []
    for paragraph in str(text).split('\n'):
        words, line = paragraph.split(), ''
        while words:
            longer = f'{line} {words[0]}'.strip()
            if font.getlength(longer) <= width:
                line, words = longer, words[1:]
            elif line:
                fitted, line = fitted + [line], ''
            else:
                cut = len(words[0])
                while cut > 1 and font.getlength(words[0][:cut]) > width:
                    cut -= 1
                fitted, words[0] = fitted + [words[0][:cut]], words[0][cut:]
                words = [word for word in words if word]
        fitted.append(line)
    if len(fitted) <= lines:
        return fitted
    last = fitted[lines - 1]
    while last and font.getlength(last + '…') > width:
        last = last[:-1]
    return fitted[:lines - 1] + [last.rstrip(' ,') + '…']


def contact_sheet(rows, path, columns=None, row_labels=None, tile=128, title=None):
    """Write a grid of pictures with a heading over each column and a label at the left of each row.

    rows: list of lists of (H, W, 3) uint8 tiles, or None for a blank; shorter rows end in blanks. Each is scaled
    into tile x tile pixels with its proportions kept. columns: a heading per column, row_labels: a label per row,
    or None for none. What follows a newline in a label is set in grey and keeps its place when the name before it
    is too long: 'dog\\nIoU 0.81'. path: .png, .jpg or .jpeg; its folder is made where it is missing, and a reader
    never sees half a file. Returns the path. Where tiles lie depends on their number, on `tile` and on the title,
    not on what labels and headings say.

    Raises ValueError for no tiles, tiles of another kind, too few labels or headings, or another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise ValueError(f'A contact sheet is written as .png or .jpg, not as {path.name}.')
    rows = [list(row) for row in rows]
    n_columns = max([len(row) for row in rows] + [len(columns or [])], default=0)
    if not rows or n_columns == 0:
        raise ValueError('A contact sheet needs at least one row of tiles.')
    if columns is not None and len(columns) != n_columns:
        raise ValueError(f'{len(columns)} headings for {n_columns} columns of tiles.')
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f'{len(row_labels)} labels for {len(rows)} rows of tiles.')

    font = ImageFont.load_default(max(11, round(tile / 9)))
    title_font = ImageFont.load_default(font.size + 3)
    step, title_step = round(1.25 * font.size), round(1.25 * title_font.size)      # from one line to the next
    margin = 2 * GAP
    label_width = 0 if row_labels is None else 8 * font.size       # about 16 letters
    left = margin + (0 if row_labels is None else label_width + margin)
    width = left + n_columns * (tile + GAP) - GAP + margin
    title_lines = [] if title is None else fit_text(title, title_font, width - 2 * margin, HEADING_LINES)
    head = margin + len(title_lines) * title_step + (GAP if title_lines else 0)
    top = head + (0 if columns is None else HEADING_LINES * step + GAP)
    height = top + len(rows) * (tile + GAP) - GAP + margin

    sheet = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(sheet)
    for k, line in enumerate(title_lines):
        draw.text((margin, margin + k * title_step), line, INK, title_font)
    for c, heading in enumerate(columns or []):
        lines = fit_text(heading, font, tile, HEADING_LINES)
        y = top - GAP - len(lines) * step                          # the last line stands on the tiles
        for k, line in enumerate(lines):
            draw.text((left + c * (tile + GAP) + tile / 2, y + k * step), line, INK, font, anchor='ma')
    for r, row in enumerate(rows):
        y = top + r * (tile + GAP)
        if row_labels is not None:
            name, _, rest = str(row_labels[r]).partition('\n')
            room = max(1, tile // step)                            # lines beside one tile
            rest = fit_text(rest, font, label_width, max(1, room // 2)) if rest and room > 1 else []
            name = fit_text(name, font, label_width, room - len(rest))
            first = y + (tile - len(name + rest) * step) // 2      # centred on the row
            for k, line in enumerate(name + rest):
                draw.text((margin, first + k * step), line, INK if k < len(name) else QUIET, font)
        for c in range(n_columns):
            x, picture = left + c * (tile + GAP), row[c] if c < len(row) else None
            draw.rectangle((x, y, x + tile - 1, y + tile - 1), BLANK)
            if picture is not None:
                H, W, _ = checked_rgb(picture).shape
                size = [max(1, round(side * tile / max(H, W))) for side in (W, H)]
                picture = Image.fromarray(np.asarray(picture)).resize(size, Image.Resampling.BICUBIC)
                sheet.paste(picture, (x + (tile - size[0]) // 2, y + (tile - size[1]) // 2))
    if path.suffix.lower() == '.png':
        write_file(path, lambda file: sheet.save(file, 'PNG', optimize=True))
    else:                                                          # subsampled colour would blur small letters
        write_file(path, lambda file: sheet.save(file, 'JPEG', quality=92, subsampling=0))
    return path


def write_file(path, save):
    """Call save(file) on a temporary file, then rename it to path (a link: to where it leads)."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            save(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def attempt(picture, draw, *arguments):
    """Call draw(*arguments), which writes the file `picture`. -> whether it did; prints why not."""
    try:
        draw(*arguments)
    except Exception as error:                              # no picture is worth the run's scores
        reason = str(error).strip() or type(error).__name__
        print(f'{picture} was not drawn: {reason.splitlines()[0]}')
        return False
    return True


# ------------------------------------------------------------------------------------------------
# Curves: a training run, precision and recall
# ------------------------------------------------------------------------------------------------

LOSSES = {'loss': ('total', '#222222'), 'acl_i': ('ACL$_I$, Eq. 1', '#1f77b4'),
          'acl_f': ('ACL$_F$, Eq. 3', '#e07b00'), 'reg': ('area, Eq. 4', '#2a9d4a'),
          'acl_c': ('ACL$_C$, Eq. 6', '#a03fa0')}
AREAS = {'area_pos': ('positive pairs', '#2a9d4a'), 'area_neg': ('negative pairs', '#c8352b')}
SCALARS = {'w': ('w', '#1f77b4'), 'b': ('b', '#e07b00')}


def read_log(log_path):
    """log.jsonl -> list of dicts in the order of the file. Raises FileNotFoundError where there is none.

    A run that was killed leaves its last line torn, and one that was resumed goes on after it; both are skipped.
    """
    records, step = [], 0
    for line in Path(log_path).read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            step = record.get('step') or step
            records.append({**record, 'step': step})               # a validation line without one takes the last
    return records


def series(records, key):
    """The (steps, values) of one key, two (n,) float arrays in rising order. Null and missing are left out.

    A resumed run logs again the steps since its checkpoint: what was logged last counts.
    """
    by_step = {r['step']: r[key] for r in records if isinstance(r.get(key), numbers.Real)}
    steps = sorted(by_step)
    return np.array(steps, float), np.array([by_step[s] for s in steps], float)


def smooth(values):
    """(n,) -> (n,), the mean over n / 40 values to either side, NaN left out.

    At the start the window narrows on both sides, so that a run is seen to begin where it began; at the end it
    keeps its left half, so that the last value does not look like a turn of the whole.
    """
    i, n = np.arange(len(values)), len(values)
    left = np.minimum(i, n // 40)                                  # (n,)
    right = np.minimum(left, n - 1 - i)
    known = np.isfinite(values)
    total = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])    # (n + 1,), total[k]: of the first k
    count = np.concatenate([[0], np.cumsum(known)])
    total, count = (sums[i + right + 1] - sums[i - left] for sums in (total, count))     # (n,)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def loss_curve(log_path, png_path, p_pos=0.4, p_neg=0.0):
    """Draw a training run in four panels: loss terms, validation loss, mask areas, w and b. Returns the path.

    log_path: a log.jsonl, one object per logged step. Drawn are step, loss, acl_i, acl_f, reg, acl_c, val_loss,
    area_pos and area_neg (fractions of the image), w and b, as far as they are there. Bold lines are smoothed,
    faint ones raw. p_pos, p_neg: the area priors of Eq. 4 (section 3.4), dotted. png_path is written as a PNG.

    Raises ValueError where the log holds nothing to draw yet, FileNotFoundError where there is no log.
    """
    records, png_path = read_log(log_path), Path(png_path)
    drawn = [*LOSSES, 'val_loss', *AREAS, *SCALARS]
    if not any(len(series(records, key)[0]) for key in drawn):
        raise ValueError(f'{log_path} holds no logged step yet, so there is no curve to draw.')

    figure, axes = _axes((10, 6.4), 2, ['Training loss', 'Validation loss', 'Mask area (fraction of the image)',
                                        'Mask projection $w M_G + b$'])
    losses, validation, areas, w_axis = axes
    for axis in axes:
        axis.sharex(losses)
        axis.tick_params(labelbottom=axis in axes[2:])
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)     # no step 0.96

    def draw(axis, key, label, colour, faint=0.22):
        steps, values = series(records, key)
        if len(steps) == 0:
            return
        marker = 'o' if len(steps) == 1 else None                  # a line of one point would be invisible
        axis.plot(steps, values, color=colour, alpha=faint, linewidth=0.8)
        axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label=label, marker=marker)

    for key, (label, colour) in LOSSES.items():
        draw(losses, key, label, colour)
    for key, (label, colour) in AREAS.items():
        draw(areas, key, label, colour)
    for prior, (_, colour), name in zip((p_pos, p_neg), AREAS.values(), ('p$^+$', 'p$^-$')):
        if areas.lines:
            areas.axhline(prior, color=colour, linestyle=':', linewidth=1.3, label=f'{name} = {prior:g}')
    steps, values = series(records, 'val_loss')
    if len(steps):                                                 # few points: each one shown, none smoothed
        validation.plot(steps, values, color='#222222', linewidth=1.8, marker='o', markersize=4)
        if np.isfinite(values).any():
            best = np.nanargmin(values)
            validation.plot(steps[best], values[best], 'o', color='#c8352b', markersize=7,
                            label=f'lowest, {values[best]:.3f} at step {steps[best]:.0f}')
    b_axis = w_axis.twinx()                                        # w and b move by little, each on its own scale
    b_axis.tick_params(length=0, labelsize=9)
    b_axis.spines[:].set_visible(False)
    for axis, (key, (label, colour)) in zip((w_axis, b_axis), SCALARS.items()):
        draw(axis, key, label, colour)
        axis.set_ylabel(label, color=colour, rotation=0, va='center', fontsize=12, fontweight='bold', labelpad=9)
        axis.yaxis.set_visible(bool(axis.lines))
        axis.tick_params(axis='y', labelcolor=colour)
        axis.ticklabel_format(axis='y', useOffset=False)
    for axis in axes:
        if not axis.lines and not (axis is w_axis and b_axis.lines):
            axis.text(0.5, 0.5, 'not logged', transform=axis.transAxes, ha='center', va='center', color='#888888')
            axis.set_yticks([])
        elif axis is not w_axis and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=9, frameon=False, loc='best')
    if areas.lines:
        areas.set_ylim(-0.03, None)
    for axis in (areas, w_axis):
        axis.set_xlabel('step', fontsize=10, color='#444444')
    write_file(png_path, lambda file: figure.savefig(file, format='png', facecolor='white'))
    return png_path


def precision_recall_picture(curves, path):
    """Figure 7: precision over recall of the extended sets, a curve per method. Returns the path of the PNG.

    curves: {name: (precision (T,), recall (T,), point)}, all fractions; point is the (precision, recall) at which
    F1 is highest, or None. The grey lines join points of equal F1. Raises ValueError for values outside 0..1.
    """
    figure, [axis] = _axes((5.6, 5), 1, ['Precision and recall'])
    x = np.linspace(0.02, 1, 200)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        y = f1 * x[x > f1 / 1.99] / (2 * x[x > f1 / 1.99] - f1)    # F1 = 2 x y / (x + y), solved for y
        axis.plot(x[x > f1 / 1.99][y <= 1], y[y <= 1], color='#d5d5d5', linewidth=0.8, zorder=1)
        axis.annotate(f'F1 {f1:g}', (1, f1 / (2 - f1)), (2, 0), textcoords='offset points', fontsize=8, color='#999999',
                      va='center', annotation_clip=False)
    for name, (precision, recall, point) in curves.items():
        precision, recall = np.asarray(precision, float), np.asarray(recall, float)
        if precision.shape != recall.shape or precision.ndim != 1 or not all(
                0 <= value <= 1 for value in (*precision, *recall, *(point or ()))):
            raise ValueError(f'Precision and recall are (T,) fractions in 0..1; those of {name} are not.')
        line, = axis.plot(recall, precision, linewidth=1.8, label=name, marker='o' if len(recall) == 1 else None)
        if point is not None:
            axis.plot(point[1], point[0], 'o', color=line.get_color(), markersize=7, markeredgecolor='white',
                      label=f'its max-F1, {200 * point[0] * point[1] / max(sum(point), 1e-9):.1f}')
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel='recall', ylabel='precision')
    axis.legend(fontsize=9, frameon=False, loc='lower left')
    write_file(Path(path), lambda file: figure.savefig(file, format='png', facecolor='white'))
    return Path(path)


def _axes(size, columns, titles):
    """A figure of `size` inches with one plain pair of axes per title. Returns figure, list of axes."""
    # matplotlib reads MPLBACKEND when it is imported, and refuses one that only a notebook knows.
    # It is imported here because that takes a second and no other figure needs it.
    inherited = os.environ.pop('MPLBACKEND', None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure                # without pyplot, no global state
    finally:
        if inherited is not None:
            os.environ['MPLBACKEND'] = inherited
    figure = Figure(figsize=size, dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)          # inches
    axes = list(figure.subplots(len(titles) // columns, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles):
        axis.set_title(title, loc='left', fontsize=11)
        axis.grid(color='#e6e6e6', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, labelsize=9, labelcolor='#444444')
        axis.spines[['top', 'right']].set_visible(False)
        axis.spines[['left', 'bottom']].set_color('#aaaaaa')
    return figure, axes


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------

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

"""Tiles and contact sheets."""

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

"""Tiles, one (H, W, 3) uint8 picture each, and contact sheets of them.

    row = [frame, ground_truth_tile(frame, mask), heat_colours(heatmap), overlay(frame, heatmap)]
    contact_sheet([row], 'sheet.png', ['frame', 'truth', 'heatmap', 'overlay'], ['dog\nIoU 0.81'])

Colours are on the fixed scale 0..1, not from a heatmap's minimum to its maximum: so the map of
silence looks empty, and two maps can be compared.
"""

import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from figures import import_matplotlib
from launch import write_file

HEAT_WEIGHT = 0.5           # of the heatmap's colours in an overlay; the rest is the frame
DIMMED = 0.3                # brightness of the frame outside the ground truth
OUTLINE = (90, 255, 110)    # of the ground truth: a green that is rare in frames
# A contact sheet, in pixels
TILE = 128                  # height of a tile
GAP = 6                     # between tiles
MARGIN = 12
LINE = 18                   # height of a line of text
LETTERS = 18                # in a line of a row's label; more where an id is longer
INK = (25, 25, 25)          # colour of a label's name
QUIET = (110, 110, 110)     # and of its facts
BLANK = (240, 240, 240)     # where a tile is missing, or narrower than its column


def heat_colours(heatmap):
    """(h, w) in 0..1 -> (h, w, 3) uint8: dark violet at 0, green at 0.5, dark red at 1.

    Turbo (Mikhailov, 2019): the hues of jet, which the paper's figures use, without jet's false
    edges at cyan and yellow. ValueError for values outside 0..1, as of logits.
    """
    heatmap = np.asarray(heatmap, np.float32)
    lowest = heatmap.min()
    highest = heatmap.max()
    if not (lowest >= -1e-3 and highest <= 1 + 1e-3):       # also refuses NaN
        raise ValueError(f'A heatmap lies in 0..1, not in {lowest:.3g}..{highest:.3g}.')
    return import_matplotlib().colormaps['turbo'](heatmap, bytes=True)[..., :3]


def overlay(frame, heatmap):
    """frame (H, W, 3), heatmap (h, w) in 0..1 -> (H, W, 3) uint8: both blended."""
    colours = heat_colours(resize(heatmap, frame))                              # (H, W, 3)
    return ((1 - HEAT_WEIGHT) * frame + HEAT_WEIGHT * colours).round().astype(np.uint8)


def ground_truth_tile(frame, ground_truth):
    """frame (H, W, 3), ground_truth (h, w) -> (H, W, 3) uint8: dimmed outside, with an outline.

    Inside: at least 0.5. Between 0.5 and 1, as where one of Flickr's two annotators disagrees
    (Figure 5), the frame is half dimmed. The empty ground truth of an off-screen sound dims all.
    """
    inside = resize(ground_truth >= 0.5, frame) >= 0.5                          # (H, W)
    agreed = resize(ground_truth >= 1, frame) >= 0.5
    picture = frame * np.select([agreed, inside], [1, (1 + DIMMED) / 2], DIMMED)[..., None]
    # The outline is what erosion removes; padding by zeros erodes the mask at the frame's edge too.
    width = max(1, round(min(inside.shape) / 64))
    padded = Image.fromarray(np.pad(inside, width).astype(np.uint8))
    eroded = ImageOps.crop(padded.filter(ImageFilter.MinFilter(2 * width + 1)), width)
    picture[inside & (np.asarray(eroded) == 0)] = OUTLINE
    return picture.round().astype(np.uint8)


def resize(values, frame):
    """To the size of a frame (H, W, 3), bilinearly. (h, w) -> (H, W) float32"""
    picture = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(picture.resize(frame.shape[1::-1], Image.Resampling.BILINEAR))


def contact_sheet(rows, path, columns, labels, title=''):
    """Write a PNG: a grid of tiles with a heading over each column and a label beside each row.

    rows: lists of (H, W, 3) uint8 tiles; None, and the end of a shorter row, are blank. All columns
    are as wide as the widest tile. labels: of each row a name and lines of facts, which are grey:
    'dog\\nIoU 0.81'. ValueError without any tile.
    """
    tiles = [tile for row in rows for tile in row if tile is not None]
    if not tiles:
        raise ValueError('A contact sheet needs at least one row of tiles.')
    cell = round(TILE * max(tile.shape[1] / tile.shape[0] for tile in tiles)), TILE
    font = ImageFont.load_default(14)
    title_font = ImageFont.load_default(17)
    labels = [label_lines(label) for label in labels]
    left = 2 * MARGIN + round(max(font.getlength(text) for lines in labels for text, _ in lines))
    lines_above = (1.5 if title else 0) + max(heading.count('\n') + 1 for heading in columns)
    top = MARGIN + round(LINE * lines_above) + GAP
    right = max(left + len(columns) * (cell[0] + GAP), MARGIN + round(title_font.getlength(title)))
    sheet = Image.new('RGB', (right + GAP, top + len(rows) * (TILE + GAP) + GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, title_font)
    for c, heading in enumerate(columns):
        x = left + c * (cell[0] + GAP)
        draw.text((x + cell[0] / 2, top - GAP), heading, INK, font, anchor='md', align='center')
        for r, row in enumerate(rows):
            tile = Image.new('RGB', cell, BLANK)
            if c < len(row) and row[c] is not None:
                tile = ImageOps.pad(Image.fromarray(row[c]), cell, color=BLANK)
            sheet.paste(tile, (x, top + r * (TILE + GAP)))
    for r, lines in enumerate(labels):
        y = top + r * (TILE + GAP) + (TILE - len(lines) * LINE) // 2        # centred on the row
        for k, (text, colour) in enumerate(lines):
            draw.text((MARGIN, y + k * LINE), text, colour, font)
    content = io.BytesIO()
    sheet.save(content, 'PNG', optimize=True)
    write_file(path, content.getvalue())


def label_lines(label):
    """-> [(text, colour)], as many as fit beside a tile: a longer name ends in an ellipsis.

    Breaks between words only, so that an id can be read and searched for.
    """
    name, *facts = label.split('\n')[:TILE // LINE]
    free = max(1, TILE // LINE - len(facts))
    width = max([LETTERS, *(len(word) + 1 for word in name.split())])       # 1: of the ellipsis
    lines = textwrap.wrap(name, width, break_on_hyphens=False, max_lines=free, placeholder='…')
    return [(line, INK) for line in lines] + [(fact, QUIET) for fact in facts]

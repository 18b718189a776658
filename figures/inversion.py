"""Figure 12 (section 4.4): where the class name leads, where the sound leads, and what it says."""

import textwrap

from figures import import_matplotlib
from figures.curves import save
from figures.pictures import ground_truth_tile, overlay
from media import displayable

COLUMNS = ('frame', 'ground truth', 'oracle: class name', 'ours: sound', 'what the sound says')
SIDE = 1.55         # of a tile, in inches
LETTERS = 30        # in a line of a sentence
LINES = 5           # of a sentence; a longer one ends in an ellipsis


def inversion_picture(samples, oracle, ours, sentences, path):
    """Write a PNG, a row per sample: frame, ground truth, two heatmaps over the frame, sentence.

    samples: of data.Benchmark; oracle, ours: maps (h, w) in 0..1, or None for a blank.
    """
    import_matplotlib()
    from matplotlib.figure import Figure                # pyplot would need a display
    figure = Figure((6.1 * SIDE, len(samples) * SIDE + 0.35), dpi=130, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(samples), 5, squeeze=False, width_ratios=[1, 1, 1, 1, 1.9])
    for axis, heading in zip(grid[0, :4], COLUMNS):
        axis.set_title(heading, fontsize=10)
    grid[0, 4].set_title(COLUMNS[4], fontsize=10, loc='left', x=0.03)
    for row, sample, by_name, by_sound, sentence in zip(grid, samples, oracle, ours, sentences):
        frame = displayable(sample['image'])
        truth = sample['boxes'] if sample['mask'] is None else sample['mask']
        tiles = [frame, ground_truth_tile(frame, truth.numpy())]
        tiles += [None if heat is None else overlay(frame, heat.numpy())
                  for heat in (by_name, by_sound)]
        for axis, tile in zip(row, tiles):
            if tile is not None:
                axis.imshow(tile, interpolation='bilinear')
        said = textwrap.wrap(sentence, LETTERS, max_lines=LINES, placeholder='…')
        row[4].text(0.03, 0.5, '\n'.join(said), fontsize=12, va='center')
        row[4].text(0.03, 0.03, f'class: {sample["label"]}', fontsize=9, color='#6e6e6e')
        for axis in row:
            axis.set_axis_off()
    save(figure, path)

"""Curves: a training run, precision and recall."""

import json
import numbers
import os
from pathlib import Path

import numpy as np

from figures.pictures import write_file

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

"""Curves: the losses of a training run, and precision over recall (Figure 7).

    loss_curve('runs/first/log.jsonl', 'loss.png', p_pos=0.4, p_neg=0.0)
    precision_recall_picture({'Extended VGG-SS': metric}, 'curve.png')      # a metrics.Extended
"""

import io
import json
import math
import numbers
from pathlib import Path

import numpy as np

from figures import import_matplotlib
from launch import write_file

GREEN = '#2a9d4a'
RED = '#c8352b'
# {key of log.jsonl: (panel, name, colour)}
LINES = {'loss': (0, 'total', '#222222'), 'acl_i': (0, 'ACL$_I$, Eq. 1', '#1f77b4'),
         'acl_f': (0, 'ACL$_F$, Eq. 3', '#e07b00'), 'reg': (0, 'area, Eq. 4', GREEN),
         'acl_c': (0, 'ACL$_C$, Eq. 6', '#a03fa0'),
         'val_loss': (1, 'total', '#222222'),
         'area_pos': (2, 'positive pairs', GREEN), 'area_neg': (2, 'negative pairs', RED),
         'w': (3, 'w', '#1f77b4'), 'b': (4, 'b', '#e07b00')}


def loss_curve(log_path, png_path, p_pos, p_neg):
    """Draw a log.jsonl in four panels: loss terms, validation loss, mask areas, w and b.

    p_pos, p_neg: the area priors of Eq. 4, dotted. ValueError where nothing was logged yet.
    """
    curves = read_log(log_path)
    if not curves.keys() & LINES.keys():
        raise ValueError(f'{log_path} holds no logged step yet, so there is no curve to draw.')
    titles = ['Training loss', 'Validation loss', 'Mask area (fraction of the image)',
              'Mask projection $w M_G + b$']
    figure, axes = axes_of((10, 6.4), 2, titles)
    losses, validation, areas, w_axis = axes
    b_axis = w_axis.twinx()             # small changes of w and of b, each on its own scale
    b_axis.spines[:].set_visible(False)
    for key, (panel, name, colour) in LINES.items():
        axis = [*axes, b_axis][panel]
        if key in ('w', 'b'):
            axis.set_ylabel(name, color=colour, rotation=0, va='center', labelpad=9, fontsize=12)
            axis.tick_params(axis='y', labelcolor=colour, labelsize=9, length=0)
            axis.ticklabel_format(axis='y', useOffset=False)
        if key in curves:
            steps, values = curves[key]
            style = '.-' if len(steps) < 40 else '-'    # a line of one point is invisible
            axis.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axis.plot(steps, smooth(values), style, color=colour, linewidth=1.8, label=name)
    if areas.lines:
        areas.axhline(p_pos, color=GREEN, linestyle=':', label=f'p$^+$ = {p_pos:g}')
        areas.axhline(p_neg, color=RED, linestyle=':', label=f'p$^-$ = {p_neg:g}')
        areas.set_ylim(-0.03, 1.7 * areas.get_ylim()[1])        # the legend above p+
    if 'val_loss' in curves:
        step, lowest = min(curves['val_loss'].T, key=lambda point: point[1])
        validation.plot(step, lowest, 'o', color=RED,
                        label=f'lowest, {lowest:.3f} at step {step:.0f}')
    for axis in axes:
        axis.sharex(losses)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)      # not 0.5
        axis.set_xlabel('step')
        if axis.lines and axis is not w_axis:
            axis.legend(fontsize=9, edgecolor='none')       # opaque: lines run below it
    save(figure, png_path)


def precision_recall_picture(metrics, path):
    """Figure 7: precision over recall of the extended sets; on a grey line F1 is constant.

    metrics: {name: Extended}.
    """
    figure, [axis] = axes_of((5.6, 5), 1, ['Precision and recall; a dot is max-F1'])
    r, p = np.meshgrid(np.linspace(0.01, 1, 100), np.linspace(0.01, 1, 100))
    f1 = 2 * p * r / (p + r)
    grey = axis.contour(r, p, f1, [0.2, 0.4, 0.6, 0.8], colors='#bbbbbb', linewidths=0.8)
    axis.clabel(grey, fmt='F1 %g', fontsize=8)
    for name, metric in metrics.items():
        precision, recall = metric.precision_recall(sorted(metric.confidence))
        f1, p, r = metric.f1_curve()
        best = f1.argmax()
        label = f'{name}, max-F1 {100 * f1[best]:.1f}'
        [line] = axis.plot(recall, precision, linewidth=1.8, label=label)
        axis.plot(r[best], p[best], 'o', color=line.get_color(), markersize=7,
                  markeredgecolor='white', clip_on=False, zorder=3)
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel='recall', ylabel='precision')
    figure.legend(fontsize=9, frameon=False, loc='outside lower center', ncols=2)
    save(figure, path)


def read_log(path):
    """log.jsonl -> {key: (2, n): steps in order, their values}, without null, NaN and infinity.

    A resumed run logs the steps since its checkpoint again: the last line of a step counts.
    """
    curves = {}
    for line in Path(path).read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:                    # a killed run leaves a truncated line
            continue
        for key, value in record.items():
            if isinstance(value, numbers.Real) and math.isfinite(value):
                curves.setdefault(key, {})[record['step']] = value
    return {key: np.array(sorted(by_step.items()), float).T for key, by_step in curves.items()}


def smooth(values):
    """Moving average of n values over n / 40 to either side, fewer at both ends. -> n means"""
    sides = np.minimum(np.arange(len(values)), len(values) // 40)
    return [values[i - side:i + side + 1].mean() for i, side in enumerate(sides)]


def axes_of(size, columns, titles):
    """-> a figure of `size` inches, and a list of its axes, one per title."""
    import_matplotlib()
    from matplotlib.figure import Figure                # pyplot would need a display
    figure = Figure(size, dpi=130, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)      # inches
    axes = list(figure.subplots(len(titles) // columns, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles):
        axis.set_title(title, loc='left', fontsize=11)
        axis.grid(color='#e6e6e6', linewidth=0.8)
        axis.tick_params(length=0, labelsize=9, labelcolor='#444444')
        axis.spines[['top', 'right']].set_visible(False)
        axis.spines[['left', 'bottom']].set_color('#aaaaaa')
    return figure, axes


def save(figure, path):
    """Write a figure of matplotlib as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format='png')
    write_file(path, content.getvalue())

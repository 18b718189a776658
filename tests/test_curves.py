"""Each line of the curves of a training is drawn from its own key, under its own name."""

import json

import numpy as np
import pytest

from figures import curves as figures


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """loss_curve of a made-up run. -> the four axes, and all of the figure"""
    made = []
    axes = figures._axes
    monkeypatch.setattr(figures, '_axes', lambda *given: made.append(axes(*given)) or made[0])
    logged = {'loss': 15, 'acl_i': 1, 'acl_f': 2, 'reg': 3, 'acl_c': 4, 'area_pos': 0.5,
              'area_neg': 0.1, 'w': 10, 'b': 1.5}
    lines = [{'step': step, **logged} for step in (10, 20, 30)]
    lines += [{'step': step, 'val_loss': loss} for step, loss in ((10, 3), (20, 2), (30, 2.5))]
    (tmp_path / 'log.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    figures.loss_curve(tmp_path / 'log.jsonl', tmp_path / 'a.png', p_pos=0.25, p_neg=0.0625)
    [(figure, four)] = made
    return four, figure


def levels(axis):
    """The lines of an axis that have a name, all of them level. -> {name: (height, colour)}"""
    found = {}
    for line in axis.lines:
        if not line.get_label().startswith('_'):
            [height] = np.unique(np.round(line.get_ydata(), 9))
            found[line.get_label()] = height, line.get_color()
    return found


def test_losses_and_areas_have_their_names_and_the_priors_their_area_s_colour(panels):
    (losses, _, areas, _), _ = panels
    assert losses.get_title('left') == 'Training loss'
    assert {name: height for name, (height, _) in levels(losses).items()} == {
        'total': 15, 'ACL$_I$, Eq. 1': 1, 'ACL$_F$, Eq. 3': 2, 'area, Eq. 4': 3,
        'ACL$_C$, Eq. 6': 4}
    found = levels(areas)
    assert {name: height for name, (height, _) in found.items()} == {
        'positive pairs': 0.5, 'negative pairs': 0.1, 'p$^+$ = 0.25': 0.25,
        'p$^-$ = 0.0625': 0.0625}
    assert found['positive pairs'][1] == found['p$^+$ = 0.25'][1]
    assert found['negative pairs'][1] == found['p$^-$ = 0.0625'][1] != found['positive pairs'][1]


def test_the_lowest_validation_loss_is_marked_at_its_step(panels):
    validation = panels[0][1]
    everything, best = validation.lines
    assert everything.get_xdata().tolist() == [10, 20, 30]
    assert everything.get_ydata().tolist() == [3, 2, 2.5]
    assert (np.ravel(best.get_xdata()), np.ravel(best.get_ydata())) == ([20], [2])
    assert best.get_label() == 'lowest, 2.000 at step 20'


def test_w_and_b_have_an_axis_each(panels):
    (*_, w_axis), figure = panels
    [b_axis] = [axis for axis in figure.axes if axis.get_ylabel() == 'b']
    assert w_axis.get_ylabel() == 'w'
    assert {height for height, _ in levels(w_axis).values()} == {10}
    assert {height for height, _ in levels(b_axis).values()} == {1.5}

"""The curves of a training, each from its own key and under its own name; precision and recall."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from figures import curves
from figures.curves import loss_curve, precision_recall_picture, read_log, smooth
from figures.report import draw_report
from metrics import Extended


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is drawn: [(figure, axes)]"""
    made, axes = [], curves.axes_of
    monkeypatch.setattr(curves, 'axes_of', lambda *given: made.append(axes(*given)) or made[-1])
    return made


@pytest.fixture
def panels(drawn, tmp_path):
    """loss_curve of a made-up run. -> the four axes, and all of the figure"""
    logged = {'loss': 15, 'acl_i': 1, 'acl_f': 2, 'reg': 3, 'acl_c': 4, 'area_pos': 0.5,
              'area_neg': 0.1, 'w': 10, 'b': 1.5}
    lines = [{'step': step, **logged} for step in (10, 20, 30)]
    lines += [{'step': step, 'val_loss': loss} for step, loss in ((10, 3), (20, 2), (30, 2.5))]
    (tmp_path / 'log.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    loss_curve(tmp_path / 'log.jsonl', tmp_path / 'new/a.png', p_pos=0.25, p_neg=0.0625)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.png']
    with Image.open(tmp_path / 'new/a.png') as picture:
        assert picture.width > 1000 and picture.height > 600
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 50      # in colour
    [(figure, four)] = drawn
    return four, figure


def levels(axis):
    """The lines of an axis that have a name, all of them level. -> {name: (height, colour)}"""
    found = {}
    for line in axis.lines:
        if not line.get_label().startswith('_'):
            [height] = np.unique(np.round(line.get_ydata(), 9))
            found[line.get_label()] = height, line.get_color()
    return found


def test_each_line_is_its_own(panels):
    (losses, validation, areas, w_axis), figure = panels
    assert losses.get_title('left') == 'Training loss'
    assert {name: height for name, (height, _) in levels(losses).items()} == {
        'total': 15, 'ACL$_I$, Eq. 1': 1, 'ACL$_F$, Eq. 3': 2, 'area, Eq. 4': 3,
        'ACL$_C$, Eq. 6': 4}
    found = levels(areas)
    assert {name: height for name, (height, _) in found.items()} == {
        'positive pairs': 0.5, 'negative pairs': 0.1, 'p$^+$ = 0.25': 0.25,
        'p$^-$ = 0.0625': 0.0625}
    assert found['positive pairs'][1] == found['p$^+$ = 0.25'][1]       # a prior has its colour
    assert found['negative pairs'][1] == found['p$^-$ = 0.0625'][1] != found['positive pairs'][1]
    _, everything, best = validation.lines
    assert everything.get_xdata().tolist() == [10, 20, 30]
    assert everything.get_ydata().tolist() == [3, 2, 2.5]
    assert (np.ravel(best.get_xdata()), np.ravel(best.get_ydata())) == ([20], [2])
    assert best.get_label() == 'lowest, 2.000 at step 20'
    [b_axis] = [axis for axis in figure.axes if axis.get_ylabel() == 'b']
    assert w_axis.get_ylabel() == 'w'
    assert {height for height, _ in levels(w_axis).values()} == {10}
    assert {height for height, _ in levels(b_axis).values()} == {1.5}


@pytest.mark.filterwarnings('error')
def test_a_run_of_one_step_is_a_dot_in_its_panel(drawn, tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"step": 1, "loss": 3.0, "acl_i": NaN}\n{"step": 2, "lo')
    loss_curve(tmp_path / 'log.jsonl', tmp_path / 'a.png', 0.4, 0)
    [(_, (losses, *others))] = drawn
    assert [line.get_marker() for line in losses.lines] == ['None', '.']
    assert not any(axis.lines for axis in others)


@pytest.mark.parametrize('text', ['', '\n', '{"step": 1, "lo', '{"step": 1, "loss": null}\n',
                                  '{"step": 1, "loss": NaN}\n'])
def test_curve_of_an_empty_log_names_the_file(tmp_path, text):
    (tmp_path / 'log.jsonl').write_text(text)
    with pytest.raises(ValueError, match=r'log\.jsonl holds no logged step yet'):
        loss_curve(tmp_path / 'log.jsonl', tmp_path / 'curve.png', 0.4, 0)
    assert not (tmp_path / 'curve.png').exists()


def test_log_of_a_resumed_run(tmp_path):
    (tmp_path / 'log.jsonl').write_text(
        '{"step": 2, "loss": 2}\n{"step": 1, "loss": 3}\n{"step": 3, "lo{"step": 2, "loss": 9}\n'
        '{"step": 2, "loss": 1.5}\n{"step": 2, "val_loss": 4, "acl_c": null}\n')
    found = read_log(tmp_path / 'log.jsonl')
    assert found.keys() == {'step', 'loss', 'val_loss'}
    assert found['loss'].tolist() == [[1, 2], [3, 1.5]]         # what was logged last counts
    assert found['val_loss'].tolist() == [[2], [4]]


def test_smoothing():
    assert smooth(np.array([3.0])) == [3]
    noisy = np.random.default_rng(0).normal(5, 1, 400)
    assert np.std(smooth(noisy)[50:]) < 0.35 and abs(np.mean(smooth(noisy)) - 5) < 0.1
    assert smooth(noisy)[0] == noisy[0]                         # a run begins where it began
    assert smooth(noisy)[200] == noisy[190:211].mean()
    assert smooth(noisy)[399] == noisy[389:].mean()


class Curve:
    """In place of metrics.Extended: F1 is highest at the second of its points."""
    confidence = [0.2, 0.1]

    def __init__(self, precision, recall, best):
        self.points = precision, recall
        p, r = torch.tensor([(0.1, 0.1), best]).T
        self.f1 = 2 * p * r / (p + r), p, r

    def precision_recall(self, levels):
        assert levels == [0.1, 0.2]
        return self.points

    def f1_curve(self):
        return self.f1


def test_precision_recall_curves(drawn, tmp_path):
    recall = np.linspace(0, 1, 30)
    methods = {'AV': Curve(1 - recall / 2, recall, (0.7, 0.6)),
               'one': Curve([0.5], [0.5], (0.5, 0.5))}
    precision_recall_picture(methods, tmp_path / 'curve.png')
    with Image.open(tmp_path / 'curve.png') as picture:
        assert min(picture.size) > 500
    [(_, [axis])] = drawn
    av, best, one, dot = axis.lines
    [grey] = axis.collections
    for path, f1 in zip(grey.get_paths(), (0.2, 0.4, 0.6, 0.8), strict=True):
        x, y = path.vertices.T
        assert np.allclose(2 * x * y / (x + y), f1, atol=0.01)
    assert (av.get_label(), one.get_label()) == ('AV, max-F1 64.6', 'one, max-F1 50.0')
    assert np.allclose(av.get_data(), (recall, 1 - recall / 2))
    assert np.ravel(best.get_data()).tolist() == pytest.approx([0.6, 0.7])
    assert dot.get_marker() == 'o'                              # all there is of a single point


def test_other_methods_curves_stand_in_a_picture_of_each_extended_set(drawn, tmp_path):
    rows = {}
    for row, level in (('ours', 0.9), ('by FNAC', 0.3)):
        rows[row] = Extended()
        heat = torch.full((2, 4, 4), level)
        rows[row].update(heat, torch.ones(2, 4, 4), [0.9, 0.1], ['sounding', 'silent'])
    rows['oracle'] = Extended()
    metrics = {'ext_flickr': {'robustness': rows}}
    draw_report(tmp_path, {}, metrics, [], {})
    names = [path.name for path in tmp_path.glob('*.png')]
    assert sorted(names) == ['precision_recall.png', 'precision_recall_ext_flickr.png']
    (_, [plain]), (_, [several]) = drawn
    assert plain.lines[0].get_label().startswith('Extended Flickr, max-F1')
    ours, _, theirs, _ = several.lines                              # each with its dot
    assert ours.get_label().startswith('ours,') and theirs.get_label().startswith('by FNAC,')
    assert np.allclose(ours.get_ydata(), (0.5, 1))
    assert np.allclose(theirs.get_ydata(), 0)                       # nothing is over 0.5

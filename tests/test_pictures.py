"""Pictures depend on nothing that a notebook leaves in the environment, and the failure of one costs no other and no score."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import evaluate
import train
from conftest import ROOT
from figures import curves, report
from model import load_model

CURVE = ('import os; from figures import curves; curves.precision_recall_picture({"a": ([1, 0.5], [0.2, 0.9], None)}, "curve.png"); '
         'print(os.environ.get("MPLBACKEND"))')


@pytest.mark.parametrize('backend', ['module://matplotlib_inline.backend_inline', 'nonsense', 'TkAgg', ''])
def test_curves_are_drawn_whatever_mplbackend_says(tmp_path, backend):
    done = subprocess.run([sys.executable, '-c', CURVE], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'MPLBACKEND': backend, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{backend}\n'                    # the notebook's own pictures still need it
    assert Image.open(tmp_path / 'curve.png').width > 500


def failing(what, draw, error):
    """draw, but for the picture whose path ends in `what`."""
    def wrapped(*arguments):
        if any(str(argument).endswith(what) for argument in arguments):
            raise error
        return draw(*arguments)
    return wrapped


def test_one_picture_s_failure_costs_no_other_and_no_score(small_world, tmp_path, monkeypatch, capsys):
    def run(name):
        evaluate.evaluate(evaluate.parse_args([
            '--task', 'robustness', '--benchmarks', 'ext_vggss', 'ext_flickr', '--data-root', str(small_world),
            '--json', str(tmp_path / f'{name}.json'), '--figures', str(tmp_path / name), '--examples', '1']))
        return capsys.readouterr().out

    run('good')
    pictures = {path.name for path in (tmp_path / 'good').iterdir()}
    assert pictures == {'robustness_ext_vggss.png', 'robustness_ext_flickr.png', 'precision_recall.png', 'report.html'}
    for broken, module, function, error in (
            ('robustness_ext_vggss.png', report, 'example_sheet', RuntimeError('no\nfont')),
            ('precision_recall.png', curves, 'precision_recall_picture', ImportError('No module named matplotlib')),
            ('report.html', report, 'report', MemoryError())):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, failing(broken, getattr(module, function), error))
            said = run(broken)
        assert {path.name for path in (tmp_path / broken).iterdir()} == pictures - {broken}
        reason = str(error).partition('\n')[0] or 'MemoryError'
        assert f'{tmp_path / broken / broken} was not drawn: {reason}\n' in said
        assert ('open it in a browser' in said) == (broken != 'report.html') and 'Table 3' in said
        assert json.loads((tmp_path / f'{broken}.json').read_text()) == json.loads((tmp_path / 'good.json').read_text())


@pytest.mark.parametrize('broken', ['loss_curve', 'before_after_sheet'])
def test_a_training_whose_picture_fails_has_the_other_and_its_summary(tmp_path, monkeypatch, capsys, broken):
    def fails(*arguments):
        raise RuntimeError('no font')

    draw = {'loss_curve': lambda log, path, *priors: path.write_text('drawn'),
            'before_after_sheet': lambda *arguments: arguments[-1].write_text('drawn'), broken: fails}
    monkeypatch.setattr(train, 'held_out', lambda *arguments: ({'ours': {'cIoU': 50.0}}, {'boxes': 4}))
    monkeypatch.setattr(curves, 'loss_curve', draw['loss_curve'])
    monkeypatch.setattr(train, 'before_after_sheet', draw['before_after_sheet'])
    model, tokenizer = load_model('miniature')
    state = {'untrained': None, 'skipped': 0, 'step': 3}
    train.finish(model, tokenizer, train.parse_args(['--out', str(tmp_path)]), state, 0, 0.0)
    name, other = ('loss.png', 'before_after.png') if broken == 'loss_curve' else ('before_after.png', 'loss.png')
    assert f'{tmp_path / name} was not drawn: no font\n' in capsys.readouterr().out
    assert (tmp_path / other).read_text() == 'drawn' and not (tmp_path / name).exists()
    assert json.loads((tmp_path / 'summary.json').read_text())['trained'] == {'cIoU': 50.0}

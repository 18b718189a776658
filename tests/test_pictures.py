"""Pictures depend on no notebook and no display, and the failure of one costs no other."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from conftest import ROOT
from figures import attempt, curves, report
from known_world import Run

CURVE = '''
import os, sys, types
from pathlib import Path
sys.modules["launch"] = types.SimpleNamespace(write_file=Path.write_bytes)      # without torch
from figures.curves import loss_curve
from figures.pictures import heat_colours
heat_colours([[0, 1]])
Path("log.jsonl").write_text('{"step": 1, "loss": 2}', encoding="utf-8")
loss_curve("log.jsonl", Path("curve.png"), 0.4, 0)
print(os.environ["MPLBACKEND"])
'''


def test_curves_are_drawn_whatever_mplbackend_says(tmp_path):
    environment = {**os.environ, 'MPLBACKEND': 'module://nonsense', 'PYTHONPATH': str(ROOT)}
    environment.pop('DISPLAY', None)
    done = subprocess.run([sys.executable, '-c', CURVE], cwd=tmp_path, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'module://nonsense\n'             # the notebook's own pictures need it
    with Image.open(tmp_path / 'curve.png') as picture:
        assert picture.width > 500


@pytest.mark.parametrize('error, reason', [
    (RuntimeError('no\nfont'), 'no'), (ImportError('No module named x'), 'No module named x'),
    (MemoryError(), 'MemoryError'), (OSError('\n disk full'), 'disk full')])
def test_a_picture_that_fails_is_named(error, reason, capsys):
    def draw(*arguments):
        assert arguments == (1, 2)
        raise error

    assert attempt('a.png', draw, 1, 2) is False
    assert capsys.readouterr().out == f'a.png was not drawn: {reason}\n'
    assert attempt('a.png', lambda: None) is True and capsys.readouterr().out == ''


def test_one_picture_s_failure_costs_no_other_and_no_score(tmp_path, monkeypatch, capsys):
    def draw(path, *rest):
        if path.name in broken:
            raise RuntimeError('no font')
        path.write_text('drawn')

    monkeypatch.setattr(curves, 'precision_recall_picture', lambda found, path: draw(path))
    run = Run(monkeypatch, tmp_path)
    monkeypatch.setattr(report, 'example_sheet', lambda *given: draw(given[-1]))
    monkeypatch.setattr(report, 'report', draw)
    names = {'robustness_ext_vggss.png', 'robustness_ext_flickr.png', 'precision_recall.png',
             'report.html'}
    scores = []
    for broken in (set(), {'robustness_ext_vggss.png'}, {'precision_recall.png', 'report.html'}):
        folder = tmp_path / f'pictures{len(broken)}'
        run('--task', 'robustness', '--benchmarks', 'ext_vggss', 'ext_flickr',
            '--json', tmp_path / 'a.json', '--figures', folder)
        said = capsys.readouterr().out
        assert {path.name for path in folder.iterdir()} == names - broken
        assert all(f'{folder / name} was not drawn: no font\n' in said for name in broken)
        assert ('open it in a browser' in said) == ('report.html' not in broken)
        assert 'Table 3' in said
        scores.append(json.loads((tmp_path / 'a.json').read_text()))
    assert scores[0] == scores[1] == scores[2]

"""Every script as on Windows, whose Python lacks what is of Unix, and with an ASCII locale.

And how the tests themselves are started.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, pytest_cmdline_main
from data import AudioFeatures, VGGSound, collate
from tiny import SECONDS, SIZE, tiny_beats, write_root

ELSEWHERE = '''
import builtins, importlib, os, signal, sys
from pathlib import Path
import multiprocessing.connection, multiprocessing.popen_spawn_posix        # keep what they know
import multiprocessing.resource_tracker
import subprocess, filelock, tqdm, torch, torch.utils.data, torch._dynamo
from transformers import AutoTokenizer, CLIPSegConfig, CLIPSegForImageSegmentation
import matplotlib.pyplot, soundfile, PIL.Image

ROOT, folder = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
OWN = {file.stem for file in ROOT.glob('*.py')}
for name in ('pthread_sigmask', 'sigwait', 'sigwaitinfo', 'sigpending', 'sigtimedwait',
             'SIG_BLOCK', 'SIGHUP', 'SIGUSR1', 'SIGCHLD', 'SIGKILL'):
    delattr(signal, name)
for name in ('setsid', 'sched_getaffinity', 'fork', 'killpg', 'mkfifo', 'geteuid'):
    delattr(os, name)
for name in ('fcntl', 'resource'):
    sys.modules[name] = None                    # to import it fails
multiprocessing.resource_tracker._HAVE_SIGMASK = False      # asked for when it was imported
opened = builtins.open

def strict_open(file, mode='r', buffering=-1, encoding=None, *more, **named):
    caller = sys._getframe(1).f_code.co_filename
    if 'b' not in mode and encoding is None and caller.startswith(str(ROOT)):
        raise AssertionError(f'{caller} opens {file} without an encoding')
    return opened(file, mode, buffering, encoding, *more, **named)

builtins.open = strict_open
scripts = ['train', 'evaluate', 'captions', 'data', 'metrics', 'model']
scripts += [name for name in ('speed.bench', 'benchmarks', 'figures')
            if (ROOT / f'{name.replace(".", "/")}.py').exists()
            or (ROOT / name / '__init__.py').exists()]
for name in scripts:
    importlib.import_module(name)

import dataclasses, gc
import checkpoint, model, tiny, train
model.PRESETS['miniature'] = dataclasses.replace(model.PRESETS['miniature'], image_size=tiny.SIZE,
                                                 seconds=tiny.SECONDS)
clipseg, tokenizer = tiny.tiny_clipseg()
model.load_clipseg = lambda path: (clipseg, tokenizer)
model.load_beats = lambda path: tiny.tiny_beats()
train.held_out = lambda *given, **more: ({}, {})
train.before_after_sheet = lambda *given: None
checkpoint.watch_signals()
common = ['--data-root', str(folder / 'data'), '--out', str(folder / 'run'), '--device', 'cpu',
          '--batch-size', '4', '--save-seconds', '0', '--cache-audio']
assert train.train(train.parse_args([*common, '--steps', '2'])) == 0
gc.collect()        # a run's lock goes with it
assert train.train(train.parse_args([*common, '--steps', '3', '--resume', '--overwrite'])) == 0
print('trained')
'''


def test_every_script_is_imported_and_trains_where_unix_is_not_and_text_is_ascii(tmp_path):
    root = write_root(tmp_path / 'data')
    (root / 'vggsound/val.csv').unlink()
    environment = {**os.environ, 'PYTHONUTF8': '0', 'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0'}
    done = subprocess.run([sys.executable, '-c', ELSEWHERE, str(ROOT), str(tmp_path)],
                          capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith('trained\n'), done.stderr[-3000:]


def test_loading_processes_start_by_spawn_as_on_windows_and_macos(tmp_path):
    pairs = VGGSound(write_root(tmp_path / 'data'), 'train', SIZE, SECONDS, augmented=True)
    pairs.features = AudioFeatures(tmp_path / 'cache', tiny_beats(), SECONDS, pairs.ids)
    pairs.features.of_batch(collate([pairs[0], pairs[1]]), tiny_beats(), torch.device('cpu'))
    pairs.epoch = 3
    loader = torch.utils.data.DataLoader(pairs, batch_size=3, num_workers=1, collate_fn=collate,
                                         multiprocessing_context='spawn')
    batch = next(iter(loader))
    assert batch['id'] == pairs.ids[:3]
    assert [features is None for features in batch['features']] == [False, False, True]
    assert torch.equal(batch['image'], torch.stack([pairs[k]['image'] for k in range(3)]))


@pytest.mark.parametrize('given, source, worker, processes', [
    ({}, 'TESTPATHS', False, 4), ({'numprocesses': 0}, 'TESTPATHS', False, 0),
    ({}, 'ARGS', False, None), ({}, 'INVOCATION_DIR', False, None), ({}, 'TESTPATHS', True, None),
    ({'keyword': 'loss'}, 'TESTPATHS', False, None), ({'usepdb': True}, 'TESTPATHS', False, None),
    ({'trace': True}, 'TESTPATHS', False, None), ({'capture': 'no'}, 'TESTPATHS', False, None)])
def test_only_the_complete_suite_without_a_debugger_starts_processes_and_never_from_one_of_them(
        monkeypatch, given, source, worker, processes):
    options = {'numprocesses': None, 'keyword': '', 'usepdb': False, 'trace': False,
               'capture': 'fd', **given}
    config = SimpleNamespace(option=SimpleNamespace(**options), pluginmanager=SimpleNamespace(
        has_plugin=lambda name: name == 'xdist'), args_source=pytest.Config.ArgsSource[source])
    monkeypatch.delenv('PYTEST_XDIST_WORKER', raising=False)
    if worker:
        monkeypatch.setenv('PYTEST_XDIST_WORKER', 'gw0')
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    pytest_cmdline_main(config)
    assert config.option.numprocesses == processes

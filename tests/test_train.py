"""Training: it learns, and it ends in the same bits wherever it is killed or stopped."""

import json
import subprocess
import sys

import pytest
import torch

import train
from conftest import ROOT, assert_equal
from miniature import world
from tiny import write_root


def test_a_short_miniature_training_learns_to_localise(tmp_path, capsys):
    root = world.build(tmp_path / 'world', seed=9, processes=2,
                       splits={'train': 160, 'val': 8, 'vggss': 8, 'is4': 16})
    args = train.parse_args(['--data-root', str(root), '--out', str(tmp_path / 'run'), '--steps',
                             '40', '--device', 'cpu'])
    assert train.train(args) == 0
    summary = json.loads((args.out / 'summary.json').read_text(encoding='utf-8'))
    before, after, oracle = (summary[k] for k in ('untrained', 'trained', 'oracle'))
    assert summary['n'] == {'boxes': 8, 'masks': 40, 'multi': 32, 'pairs': 16, 'silence': 8}
    # two sounding objects in a frame: the trained model tells them apart
    assert after['both_right'] > before['both_right'] + 30
    assert after['mIoU_multi'] > before['mIoU_multi'] + 5
    assert after['mIoU_multi'] > 0.65 * oracle['mIoU_multi']
    log = [json.loads(line) for line in (args.out / 'log.jsonl').read_text().splitlines()]
    losses = [entry['loss'] for entry in log if 'loss' in entry]
    assert len(losses) == 4 and losses[-1] < 0.85 * losses[0], losses
    assert any('val_loss' in entry for entry in log)
    for name in ('last.pt', 'loss.png', 'before_after.png'):
        assert (args.out / name).stat().st_size > 1000
    said = capsys.readouterr().out
    assert 'untrained' in said and 'oracle' in said         # the table
    with pytest.raises(FileExistsError, match='holds a finished run.*--overwrite'):
        train.train(args)


def entries(folder):
    lines = (folder / 'log.jsonl').read_text(encoding='utf-8').splitlines()
    entries = [json.loads(line) for line in lines]
    return [{k: v for k, v in entry.items() if k != 'pairs_per_second'} for entry in entries]


@pytest.mark.skipif(sys.platform != 'linux', reason='forks, and sends signals to a group')
def test_a_run_killed_or_stopped_anywhere_ends_in_the_bits_of_an_undisturbed_one(tmp_path):
    write_root(tmp_path / 'data')
    command = [sys.executable, str(ROOT / 'tests/tiny_process.py'), 'killed', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = torch.load(tmp_path / 'whole/last.pt', weights_only=True)
    for name in ('parts', 'stopped'):
        resumed = torch.load(tmp_path / name / 'last.pt', weights_only=True)
        for key in ('audio_proj', 'masker_i'):
            assert_equal(resumed[key], whole[key])
        assert_equal(resumed['trainer']['optimiser'], whole['trainer']['optimiser'])
        assert entries(tmp_path / name) == entries(tmp_path / 'whole')      # each step once
    for signal, step in (('SIGTERM', 2), ('Ctrl-C', 4)):
        words = f'train.py: stopped by {signal}; step {step} is saved in {tmp_path}/stopped/last.pt'
        assert done.stderr.count(words) == 1
    assert done.stderr.count('train.py: a loading process died (DataLoader worker') == 1
    assert 'Traceback' not in done.stderr
    assert (tmp_path / 'loader/last.pt').exists()           # and the run can go on


@pytest.mark.parametrize('flags', [
    ['--lr', 'nan'], ['--tau', '0'], ['--lambda-i', '-1'], ['--p-pos', '5'], ['--seed', '-1'],
    ['--steps', '0'], ['--batch-size', '1'], ['--workers', '-1']])
def test_options_out_of_range_are_named(flags, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags)
    assert flags[0] in capsys.readouterr().err


"""What a training saves and when: no weights that are not finite."""

import json
from types import SimpleNamespace

import pytest
import torch

import checkpoint
from tiny import tiny, tiny_root, training      # noqa: F401

# weights with which no gradient in fp16 overflows by itself
SMALL = '--lambda-i 0.015625 --lambda-f 0.03125 --lambda-reg 0.015625 --tau 1'.split()


def spoil(which, factor=float('nan')):
    """A hook that multiplies w's gradient in one forward pass, counted from 1."""
    def hook(seen, one):
        hook.seen = seen
        if len(seen.forwards) == which:
            hook.handle = one['self'].masker_i.w.register_hook(lambda gradient: gradient * factor)
        elif len(seen.forwards) == which + 1:
            hook.handle.remove()
    return hook


# ---- gradients that are not finite

def test_a_step_that_is_not_finite_is_neither_taken_nor_saved_nor_logged(training, tmp_path):
    hook = spoil(2)
    with pytest.raises(ValueError, match='gradient is not finite at step 1 .*run.last.pt'):
        training('--epochs', '1', '--save-seconds', '0', hook=hook)
    assert len(hook.seen.steps) == 1
    saved = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert saved['trainer']['step'] == 1 and saved['masker_i']['w'].isfinite()
    lines = (tmp_path / 'run/log.jsonl').read_text(encoding='utf-8').splitlines()
    assert [json.loads(line)['step'] for line in lines] == [0]


def test_weights_that_are_not_finite_are_not_saved_at_an_epoch_s_end(training, tmp_path):
    # in the first of the two batches of the last step
    with pytest.raises(ValueError, match='not finite at step 2 .*checkpoint: none yet'):
        training('--epochs', '1', '--batch-size', '2', '--accumulate', '2', hook=spoil(5))
    assert not (tmp_path / 'run/last.pt').exists()


def test_a_step_in_fp16_whose_gradients_overflow_is_left_out_and_the_scale_halved(training):
    seen = training('--precision', 'fp16', '--epochs', '1', *SMALL, hook=spoil(1, float('inf')))
    assert len(seen.forwards) == 3 and len(seen.steps) == 2
    assert seen.steps[0]['before']['masker_i.w'] == 1       # the miniature's first w
    assert seen.saved['trainer']['step'] == 3
    assert seen.saved['trainer']['scaler']['scale'] == 65536 / 2


# ---- when

def test_the_time_between_checkpoints_is_counted_from_the_last_one(training, monkeypatch):
    clock = SimpleNamespace(now=0.0, time=lambda: clock.now)
    monkeypatch.setattr(checkpoint, 'time', clock)

    def ten_seconds_a_batch(seen, one):
        clock.now = 10.0 * len(seen.forwards)

    # two batches and 20 s a step, three steps and 60 s an epoch
    seen = training('--epochs', '2', '--batch-size', '2', '--accumulate', '2',
                    '--save-seconds', '30', hook=ten_seconds_a_batch)
    assert seen.saves == [2, 3, 5, 6]
    assert [line['pairs_per_second'] for line in seen.log if 'loss' in line] == 6 * [4 / 20]
    assert seen.summary['seconds'] == 120

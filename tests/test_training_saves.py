"""What a training saves, and when: no weights that are not numbers, and all it needs to go on."""

import json
from types import SimpleNamespace

import pytest
import torch

import checkpoints
import train
from tiny import (name, pair_of_image, tiny, tiny_root, training, watch,    # noqa: F401
                  write_captions, write_root)

NOT_A_NUMBER = float('nan')
# weights with which no gradient in fp16 overflows by itself
SMALL = '--lambda-i 0.015625 --lambda-f 0.03125 --lambda-reg 0.015625 --tau 1'.split()


def spoil(which, factor=NOT_A_NUMBER, log_every=100):
    """A hook that multiplies w's gradient in one forward pass, counted from 1."""
    def hook(seen, one):
        checkpoints.LOG_EVERY = log_every
        if len(seen.forwards) == which:
            hook.handle = one['self'].masker_i.w.register_hook(lambda gradient: gradient * factor)
        elif len(seen.forwards) == which + 1:
            hook.handle.remove()
    return hook


def saved_in(folder):
    return torch.load(folder / 'last.pt', weights_only=True)


# ---- gradients that are not finite

def test_weights_that_are_not_numbers_are_not_saved_within_an_epoch(training, tmp_path):
    with pytest.raises(ValueError, match='gradient is not finite at step 1 .*run/last.pt'):
        training('--epochs', '1', '--save-seconds', '0', hook=spoil(2))
    saved = saved_in(tmp_path / 'run')
    assert saved['trainer']['step'] == 1 and saved['masker_i']['w'].isfinite()


def test_weights_that_are_not_numbers_are_not_saved_at_an_epoch_s_end(training, tmp_path):
    with pytest.raises(ValueError, match='not finite at step 2 .*checkpoint: none yet'):
        training('--epochs', '1', hook=spoil(3))
    assert not (tmp_path / 'run/last.pt').exists()


def test_a_step_that_is_not_finite_is_not_logged(training, tmp_path):
    with pytest.raises(ValueError, match='not finite at step 1'):
        training('--epochs', '1', hook=spoil(2, log_every=1))
    lines = (tmp_path / 'run/log.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [0]


def test_a_step_in_fp16_whose_gradients_overflow_is_left_out_and_the_scale_halved(training):
    seen = training('--precision', 'fp16', '--epochs', '1', *SMALL, hook=spoil(1, float('inf')))
    assert len(seen.forwards) == 3 and len(seen.steps) == 2
    assert seen.steps[0]['before']['masker_i.w'] == 1       # the miniature's first w
    assert seen.saved['trainer']['step'] == 3
    assert seen.saved['trainer']['scaler']['scale'] == 65536 / 2


# ---- going on within an epoch

def test_accumulated_batches_go_on_within_an_epoch_where_they_stopped(training):
    flags = '--batch-size 2 --accumulate 2 --lr-schedule constant'.split()
    pairs = lambda seen: [[pair_of_image(image) for image in one['image']] for one in seen.forwards]
    whole = training('--steps', '3', *flags, folder='whole')
    first = training('--steps', '1', *flags, folder='parts')
    rest = training('--steps', '3', '--resume', '--overwrite', *flags, folder='parts')
    assert pairs(first) + pairs(rest) == pairs(whole)
    assert rest.saved['trainer']['last_step'] == 3


def test_a_run_that_failed_within_an_epoch_goes_on_with_the_noise_it_would_have_had(training):
    def fail(seen, one):
        if len(seen.forwards) == 3:
            raise OSError('no memory')

    whole = training('--epochs', '1', folder='whole')
    with pytest.raises(OSError, match='no memory'):
        training('--epochs', '1', '--save-seconds', '0', folder='parts', hook=fail)
    rest = training('--epochs', '1', '--resume', folder='parts')
    assert len(rest.forwards) == 1
    assert torch.equal(rest.forwards[0]['random'], whole.forwards[2]['random'])


def test_the_time_between_checkpoints_is_counted_from_the_last_one(training, monkeypatch):
    clock = SimpleNamespace(now=0.0, time=lambda: clock.now)
    saved = []
    monkeypatch.setattr(train, 'time', clock)
    watch(monkeypatch, train, 'save_checkpoint', lambda _, *a: saved.append(a[5]['step']))

    def ten_seconds_a_step(seen, one):
        clock.now = 10.0 * len(seen.forwards)

    training('--epochs', '1', '--batch-size', '2', '--save-seconds', '15', hook=ten_seconds_a_step)
    assert saved == [2, 4, 6, 6]        # the last two at the epoch's end and after its validation


def resumed_as(monkeypatch, args, rank):
    """The first random number of process `rank` after it has resumed."""
    model = SimpleNamespace(audio_proj=torch.nn.Linear(1, 1), masker_i=torch.nn.Linear(1, 1))
    optimiser = torch.optim.Adam([*model.audio_proj.parameters(), *model.masker_i.parameters()])
    scaler = torch.amp.GradScaler('cpu')
    monkeypatch.setattr(checkpoints, 'rank_and_processes', lambda: (rank, 4))
    state = {'step': 5, 'seconds': 0.0, 'skipped': 0, 'untrained': None}
    if not (args.out / 'last.pt').exists():
        random = []
        for seed in (11, 12):
            torch.manual_seed(seed)
            random.append([torch.get_rng_state()])
        checkpoints.save_checkpoint(args.out, model, optimiser, scaler, args, state, random)
    checkpoints.resume(args.out, model, optimiser, scaler, args)
    return torch.rand(1).item()


def test_each_process_goes_on_with_its_own_noise_and_new_ones_with_noise_of_their_own(
        monkeypatch, tmp_path):
    args = train.parse_args(['--out', str(tmp_path), '--seed', '3'])
    found = [resumed_as(monkeypatch, args, rank) for rank in range(4)]
    for rank, seed in ((0, 11), (1, 12)):
        torch.manual_seed(seed)
        assert found[rank] == torch.rand(1).item()
    assert len(set(found)) == 4                             # ranks 2 and 3 were not in the run
    assert found == [resumed_as(monkeypatch, args, rank) for rank in range(4)]


# ---- pairs that cannot be used

def test_of_a_batch_the_usable_pairs_alone_reach_model_and_answers(training, tmp_path, monkeypatch):
    captions = write_captions(tmp_path / 'c.jsonl', lambda n: ['dog', 'bell', 'cat'][n % 3])
    monkeypatch.setattr(train, 'usable', lambda batch, state, args: 3)
    seen = training('--variant', 'av_llm', '--captions', str(captions),
                    '--cache-audio', str(tmp_path / 'cache'))
    given = seen.forwards[0]
    assert [len(given[key]) for key in ('image', 'wav', 'features')] == [3, 3, 3]
    words = [sorted(['dog', 'bell', 'cat'])[row] for row in seen.answers[0][1]]
    assert words == [['dog', 'bell', 'cat'][pair_of_image(image) % 3] for image in given['image']]


def test_batches_without_two_pairs_end_a_run_only_when_ten_come_in_a_row():
    args = train.parse_args(['--skip-bad-samples'])
    state = {'skipped': 0}
    lost = {'errors': ['a', 'b'], 'id': ['c']}
    for batch in (*9 * [lost], {'errors': [], 'id': ['d', 'e']}, *9 * [lost]):
        assert train.usable(batch, state, args) == (2 if not batch['errors'] else 0)
    with pytest.raises(ValueError, match='10 batches in a row .* 38 pairs are skipped'):
        train.usable(lost, state, args)
    with pytest.raises(ValueError, match='a; or --skip-bad-samples'):
        train.usable(lost, {'skipped': 0}, train.parse_args([]))


def test_a_run_without_a_readable_pair_says_so(training, tmp_path):
    root = write_root(tmp_path / 'root')
    for n in range(12):
        (root / f'vggsound/frames/{name(n)}.jpg').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='not one step was taken: all 12 pairs'):
        training('--epochs', '1', '--skip-bad-samples', root=root)


def test_sounds_that_cannot_be_cached_stop_a_run_or_are_left_out(training, tmp_path):
    root = write_root(tmp_path / 'root')
    (root / f'vggsound/audio/{name(3)}.wav').write_bytes(b'no sound')
    with pytest.raises(ValueError, match=f'{name(3)}.wav .*--skip-bad-samples'):
        training('--cache-audio', root=root, folder='a')
    training('--cache-audio', '--skip-bad-samples', root=root, folder='b')
    assert len((root / 'cache/beats/index.jsonl').read_text().splitlines()) == 1 + 11


# ---- the folder

@pytest.mark.parametrize('there, flags, words', [
    ('last.pt', '', 'unfinished run'), ('last.pt', '--resume', None),
    ('last.pt', '--overwrite', None), ('summary.json', '', 'finished run'),
    ('summary.json', '--resume', 'finished run'), ('summary.json', '--overwrite', None)])
def test_a_folder_that_holds_a_run_is_claimed_only_as_told(tmp_path, there, flags, words):
    (tmp_path / there).write_text('')
    args = train.parse_args(['--out', str(tmp_path), *flags.split()])
    if words:
        with pytest.raises(FileExistsError, match=f'holds an? {words}'):
            checkpoints.claim_folder(args)
    else:
        checkpoints.claim_folder(args).close()


def test_a_run_within_a_folder_that_it_reads_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(['--prepared', 'pairs', '--out', 'pairs/run'])
    assert '--out would overwrite --prepared' in capsys.readouterr().err

"""checkpoint.Run: a run's folder, its lock and log, what comes back of it, and damage."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import types
from pathlib import Path

import pytest
import torch

import checkpoint
from checkpoint import Run
from conftest import assert_equal
from test_checkpoint import asked      # noqa: F401
from test_launch import contents, full, needs_links

NAMES = ('last.pt', 'previous.pt')
SETTINGS = {'lr': 0.1, 'batch_size': 4, 'answers': 'abc'}


# ---- a run's folder

class Parts:
    """A model's trained parts, their optimiser and a scaler, in the place of the real ones."""

    def __init__(self, value=0.0, scale=1.0):
        self.model = types.SimpleNamespace(audio_proj=torch.nn.Linear(2, 2),
                                           masker_i=torch.nn.Linear(1, 1))
        trained = [*self.model.audio_proj.parameters(), *self.model.masker_i.parameters()]
        for parameter in trained:
            torch.nn.init.constant_(parameter, value)
            parameter.grad = torch.ones_like(parameter)
        self.optimiser = torch.optim.Adam(trained, 0.1)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        self.scaler.scale(torch.ones(1))    # which creates its scale

    def content(self, step):
        trainer = {'step': step, 'last_step': 9, 'seconds': 1.5, 'skipped': 2,
                   'untrained': {'cIoU': 1.0}, 'settings': SETTINGS,
                   'optimiser': self.optimiser.state_dict(), 'scaler': self.scaler.state_dict()}
        return {'audio_proj': self.model.audio_proj.state_dict(),
                'masker_i': self.model.masker_i.state_dict(), 'trainer': trainer}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with the checkpoints of steps 1 and 2. run.start(): a Run; run.resume(): a state"""
    monkeypatch.setattr(checkpoint, 'LOCK_SECONDS', 0.2)
    parts, folder = Parts(1.0, scale=128.0), tmp_path / 'run'
    parts.optimiser.step()

    def start(resume=True, overwrite=False):
        one = Run(folder, resume, overwrite)
        one.lock.release()                  # the end of a process would
        return one

    def resume(settings=SETTINGS, into=None):
        into = into or Parts()
        return start().resume(into.model, into.optimiser, into.scaler, settings)

    def save(step):
        start().save(parts.content(step))

    save(1)
    save(2)
    return types.SimpleNamespace(folder=folder, start=start, resume=resume, save=save, parts=parts)


def test_all_that_was_saved_comes_back(run):
    into = Parts()
    state = run.resume(into=into)
    assert state == {'step': 2, 'last_step': 9, 'seconds': 1.5, 'skipped': 2,
                     'untrained': {'cIoU': 1.0}}
    assert_equal(into.content(2), run.parts.content(2))
    assert into.scaler.get_scale() == 128.0
    assert into.model.masker_i.weight.item() == pytest.approx(0.9)      # after one step of 0.1
    [group] = into.optimiser.param_groups
    group['foreach'] = True                 # of this device, whatever the file says
    run.resume(into=into)
    assert into.optimiser.param_groups[0]['foreach']
    assert [torch.load(run.folder / name, weights_only=True)['trainer']['step']
            for name in NAMES] == [2, 1]
    assert Run(run.folder / 'new', resume=True).resume(None, None, None, {}) is None


@pytest.mark.parametrize('resume, overwrite, has, words', [
    (False, False, 'last.pt', 'unfinished run: go on with --resume'),
    (False, False, 'previous.pt', 'an unfinished run'),
    (False, False, 'summary.json', 'a finished run: choose another --out'),
    (True, False, 'summary.json', 'by --resume --overwrite and more'),
    (True, True, 'summary.json', None), (False, True, 'summary.json', None),
    (False, True, 'last.pt', None), (True, False, 'last.pt', None),
    (True, False, 'previous.pt', None), (False, False, 'log.jsonl', 'an unfinished run'),
    (False, False, 'loss.png', 'an unfinished run'), (True, False, 'log.jsonl', None)])
def test_a_folder_that_holds_a_run_is_taken_only_when_told(tmp_path, resume, overwrite, has, words):
    (tmp_path / has).write_bytes(b'mine')
    if words:
        with pytest.raises(FileExistsError, match=words):
            Run(tmp_path, resume, overwrite)
        assert os.listdir(tmp_path) == [has]
    else:
        Run(tmp_path, resume, overwrite)
        assert (tmp_path / has).read_bytes() == b'mine'     # until there are steps


def test_a_run_that_failed_before_its_first_checkpoint_is_begun_again(tmp_path):
    Run(tmp_path).write({'step': 0})
    with Run(tmp_path).steps_from(0, 0.0, 4):
        assert log_lines(tmp_path) == []


def test_two_processes_never_write_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'LOCK_SECONDS', 0.2)
    fork = multiprocessing.get_context('fork' if hasattr(os, 'fork') else 'spawn')
    ready = fork.Event()
    other = fork.Process(target=hold_the_lock, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(OSError, match='is being written by another process: wait for it'):
            Run(tmp_path)
    finally:
        other.kill()                        # the lock goes with the process
        other.join()
    Run(tmp_path)


def hold_the_lock(folder, ready):
    run = Run(folder)
    ready.set()
    threading.Event().wait()
    return run


def test_a_folder_that_cannot_be_made_or_is_a_file_is_named(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for folder in ('file', 'file/below'):
        with pytest.raises(OSError, match='cannot write into the folder .*choose another --out'):
            Run(tmp_path / folder)
    assert contents(tmp_path) == {'file': b'mine'}


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write')
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match='cannot write into the folder'):
        Run(tmp_path)


# ---- damage

@pytest.mark.parametrize('error', [PermissionError(errno.EACCES, 'Permission denied'),
                                   OSError(errno.EIO, 'Input/output error')])
def test_a_checkpoint_that_cannot_be_read_now_stops_the_run_and_costs_nothing(run, monkeypatch,
                                                                              error):
    read = Path.read_bytes

    def fails(path):
        if path.name == 'last.pt':
            raise error
        return read(path)

    before = contents(run.folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_bytes', fails)
        with pytest.raises(OSError, match=f'cannot read .*last.pt .{error.strerror}') as said:
            run.resume()
    assert not isinstance(said.value, FileNotFoundError)
    assert contents(run.folder) == before and run.resume()['step'] == 2


def test_a_damaged_checkpoint_is_kept_and_does_not_take_the_good_one_s_place(run, capsys):
    damaged = (run.folder / 'last.pt').read_bytes()[:1000]
    (run.folder / 'last.pt').write_bytes(damaged)
    assert run.resume()['step'] == 1
    assert not (run.folder / 'last.pt').exists()
    with pytest.raises(FileExistsError, match='an unfinished run'):     # to be saved over
        run.start(resume=False)
    run.save(2)
    assert (run.folder / 'last.damaged.pt').read_bytes() == damaged
    said = capsys.readouterr().out
    assert 'trying the one before it' in said and 'the damaged last.pt is kept as' in said
    for name in NAMES:
        (run.folder / name).write_bytes(b'garbage')
    before = contents(run.folder)
    with pytest.raises(ValueError, match='previous.pt is no checkpoint .*: put a good copy'):
        run.resume()
    assert contents(run.folder) == before


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil',)


@needs_links
@pytest.mark.parametrize('what', ['absent', 'empty', 'folder', 'pipe', 'link', 'foreign', 'code',
                                  'every byte'])
def test_the_checkpoint_before_is_taken_whatever_lies_in_the_last_one_s_place(run, what,
                                                                              monkeypatch):
    monkeypatch.chdir(run.folder)
    path = run.folder / 'last.pt'
    good = path.read_bytes()
    path.unlink()
    if what == 'folder':
        path.mkdir()
    elif what == 'pipe':
        os.mkfifo(path)                                     # reading would wait for a writer
    elif what == 'link':
        path.symlink_to('nowhere')
    elif what == 'foreign':
        torch.save([torch.ones(2)], path)
    elif what == 'code':
        torch.save({'audio_proj': Evil()}, path)
    elif what == 'every byte':
        path.write_bytes(bytes(255 - byte for byte in good))
    elif what == 'empty':
        path.write_bytes(b'')
    assert run.resume()['step'] == 1 and not (run.folder / 'evil').exists()
    run.save(5)
    assert run.resume()['step'] == 5


@pytest.mark.parametrize('change', [
    lambda saved: saved.clear(),
    lambda saved: saved.update(trainer=None),
    lambda saved: saved.update(trainer=3),
    lambda saved: saved.pop('trainer'),
    lambda saved: saved.pop('masker_i'),
    lambda saved: saved['audio_proj'].update(weight=torch.ones(3)),
    lambda saved: saved['audio_proj'].update({3: torch.ones(3)}),
    lambda saved: saved['trainer'].pop('skipped'),
    lambda saved: saved['trainer'].update(step='2'),
    lambda saved: saved['trainer'].update(step=2.0),
    lambda saved: saved['trainer'].update(last_step=None),
    lambda saved: saved['trainer'].update(seconds='long'),
    lambda saved: saved['trainer'].update(untrained=[1]),
    lambda saved: saved['trainer'].update(settings='lr'),
    lambda saved: saved['trainer'].update(settings={'lr': torch.ones(2)}),
    lambda saved: saved['trainer'].update(scaler=3),
    lambda saved: saved['trainer'].update(optimiser=3),
    lambda saved: saved['trainer']['optimiser'].pop('state')])
def test_a_checkpoint_with_an_odd_state_is_named_and_kept(run, change):
    path = run.folder / 'last.pt'
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    before = contents(run.folder)
    with pytest.raises(ValueError, match='last.pt holds no usable state of a training: rename it'):
        run.resume()
    assert contents(run.folder) == before
    path.rename(run.folder / 'odd.pt')
    assert run.resume()['step'] == 1


@pytest.mark.parametrize('name, value, words', [
    ('lr', 0.5, 'was trained with --lr 0.1, not 0.5: resume with that, or choose another'),
    ('batch_size', 8, 'with --batch-size 4, not 8'),
    ('answers', 'x', 'with other answers of the language model: give it the same --captions'),
    ('new', 1, 'with --new None, not 1')])
def test_a_resume_with_another_setting_is_refused_and_moves_no_file(run, name, value, words):
    (run.folder / 'last.pt').write_bytes(b'damaged')
    before = contents(run.folder)
    with pytest.raises(ValueError, match=words):
        run.resume({**SETTINGS, name: value})
    assert contents(run.folder) == before


def test_a_full_disk_names_the_checkpoint_that_is_left(run, monkeypatch):
    good = (run.folder / 'last.pt').read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='free some space and --resume; .*last.pt is the last go'):
            run.save(3)
        with pytest.raises(OSError, match='free some space and --resume; there is no earlier'):
            Run(run.folder.parent / 'empty').save(run.parts.content(1))
    assert (run.folder / 'last.pt').read_bytes() == good
    assert sorted(contents(run.folder)) == sorted(NAMES) and run.resume()['step'] == 2


@pytest.mark.parametrize('write', range(2))
def test_a_run_killed_while_it_saves_resumes_from_the_step_before(run, monkeypatch, write):
    class Killed(BaseException):
        pass

    replaced, replace = [], os.replace

    def dies(*paths):
        if len(replaced) == write:
            raise Killed
        replaced.append(paths)
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', dies)
        with pytest.raises(Killed):
            run.save(3)
    assert len(list(run.folder.glob('*.partial*'))) == 1
    assert run.resume()['step'] == 2                        # last.pt, or a copy of it
    assert sorted(contents(run.folder)) == sorted(NAMES)


@needs_links
def test_checkpoints_behind_links_are_updated_where_they_lie(run, tmp_path):
    for name in NAMES:
        os.replace(run.folder / name, tmp_path / name)
        (run.folder / name).symlink_to(tmp_path / name)
    run.save(5)
    assert all((run.folder / name).is_symlink() for name in NAMES)
    steps = [torch.load(tmp_path / name, weights_only=True)['trainer']['step'] for name in NAMES]
    assert steps == [5, 2]


# ---- log.jsonl, and --overwrite

def log_lines(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text('utf-8').splitlines()]


def test_the_log_loses_what_was_written_after_the_checkpoint(run):
    kept = [{'step': 0}, {'step': 1}, {'step': 2, 'val_loss': 1.0}]
    lost = [{'step': 2}, {'step': 3, 'val_loss': 1.0}]
    lines = [json.dumps(entry) for entry in kept + lost]
    odd = ['4', '[1]', '"x"', '{"step": "y"}', '{"loss": 1}', '', 'caf\xe9', '{"step": 1, "lo']
    log = run.folder / 'log.jsonl'
    log.write_bytes('\n'.join(lines + odd).encode('latin-1'))
    for _ in range(2):                  # the second time it loses nothing
        with run.start().steps_from(2, 0.0, 4):
            assert log_lines(run.folder) == kept


def test_a_line_of_the_log_is_the_mean_of_its_batches_and_the_speed(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=100.0, time=lambda: clock.now)
    monkeypatch.setattr(checkpoint, 'time', clock)
    run = Run(tmp_path)
    with run.steps_from(10, 7.0, 4):
        clock.now += 2
        values = [{'loss': torch.tensor(1.0)}, {'loss': torch.tensor(3.0)}]
        assert run.log(10, 1, values, lr=0.1) == {'loss': 2.0}
        clock.now += 5
        run.log(20, 2, values[:1])
        assert run.seconds() == 14.0
    assert log_lines(tmp_path) == [
        {'step': 10, 'epoch': 1, 'loss': 2.0, 'lr': 0.1, 'pairs_per_second': 2.0},
        {'step': 20, 'epoch': 2, 'loss': 1.0, 'pairs_per_second': 8.0}]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    run = Run(tmp_path)
    (tmp_path / 'log.jsonl').mkdir()
    with pytest.raises(OSError, match='cannot write .*log.jsonl .*--resume goes on'):
        run.write({'step': 0})


def test_overwriting_gives_up_the_old_run_only_for_something_new(run):
    for name in ('log.jsonl', 'summary.json', 'loss.png'):
        (run.folder / name).write_text('old')
    (run.folder / 'mine.txt').write_text('mine')
    old = {name: content for name, content in contents(run.folder).items() if name != 'mine.txt'}
    aside = {f'{name}.old': content for name, content in old.items()}
    one = run.start(resume=False, overwrite=True)
    assert contents(run.folder).keys() == {*old, 'mine.txt'}        # until there are steps
    with one.steps_from(0, 0.0, 4):
        assert contents(run.folder) == {**aside, 'mine.txt': b'mine'}
        one.write({'step': 0})
    # a second attempt, after one that saved nothing
    one = run.start(resume=False, overwrite=True)
    with one.steps_from(0, 0.0, 4):
        assert contents(run.folder) == {**aside, 'mine.txt': b'mine', 'log.jsonl': b''}
        one.save(run.parts.content(7))
    assert contents(run.folder).keys() == {'last.pt', 'log.jsonl', 'mine.txt'}
    # killed after its first checkpoint, before the old one was deleted
    newer = (run.folder / 'last.pt').read_bytes()
    (run.folder / 'last.pt.old').write_text('old')
    with run.start(resume=False, overwrite=True).steps_from(0, 0.0, 4):
        assert not (run.folder / 'last.pt').exists()
        assert (run.folder / 'last.pt.old').read_bytes() == newer


def test_a_finished_run_that_goes_on_keeps_all_but_its_summary(run):
    before = contents(run.folder)
    (run.folder / 'summary.json').write_text('old')
    one = run.start(resume=True, overwrite=True)
    with one.steps_from(2, 0.0, 4):         # killed from here on, it is not a finished run
        assert contents(run.folder) == {**before, 'summary.json.old': b'old'}
        one.save(run.parts.content(7))
    assert not (run.folder / 'summary.json.old').exists()


# ---- when to save, and signals

def test_a_checkpoint_is_saved_when_due_after_a_while_or_when_asked_to_stop(tmp_path, monkeypatch,
                                                                            asked):
    clock = types.SimpleNamespace(now=100.0, time=lambda: clock.now)
    monkeypatch.setattr(checkpoint, 'time', clock)
    saved = []
    run = Run(tmp_path, save_seconds=10)
    run.save = saved.append
    with run.steps_from(0, 0.0, 4):
        for now, due in ((105, False), (109, True), (118, False), (120, False), (129, False)):
            clock.now = now
            assert run.save_if_due_or_asked(due, lambda: clock.now) == 0
        assert saved == [109, 120]
        asked.append(signal.SIGTERM)
        assert run.save_if_due_or_asked(False, lambda: clock.now) == signal.SIGTERM
    assert saved == [109, 120, 129]


def test_the_other_processes_write_nothing(tmp_path, monkeypatch, asked, capsys):
    monkeypatch.setattr(checkpoint, 'rank_and_processes', lambda: (1, 2))
    monkeypatch.setattr(checkpoint, 'largest', lambda number: number)
    run = Run(tmp_path / 'run', save_seconds=0)
    with run.steps_from(0, 0.0, 4):
        run.log(0, 0, [{'loss': torch.tensor(1.0)}])
        asked.append(signal.SIGTERM)
        run.save_if_due_or_asked(True, lambda: {})
    assert run.leave(signal.SIGTERM, 1) == 143
    assert not (tmp_path / 'run').exists() and capsys.readouterr() == ('', '')


def test_leaving_names_the_signal_the_step_and_what_to_do(tmp_path, capsys):
    run = Run(tmp_path)
    assert run.leave(signal.SIGINT, 7) == 130 and run.leave(signal.SIGTERM, 7) == 143
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f'train.py: stopped by Ctrl-C; step 7 is saved in {tmp_path}')
    assert 'stopped by SIGTERM;' in second and '--resume goes on' in second

"""checkpoint.py: files complete or not at all, a run's folder, its lock and log, signals."""

import argparse
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

import checkpoint
from checkpoint import Run, write_file
from conftest import ROOT, assert_equal

NAMES = ('last.pt', 'previous.pt')
SETTINGS = {'lr': 0.1, 'batch_size': 4, 'answers': 'abc'}
needs_links = pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='links and pipes of Unix')


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'lock'}


# ---- write_file

def test_a_file_is_written_as_utf_8_or_bytes_and_its_folders_with_it(tmp_path):
    path = tmp_path / 'a/b/c'
    write_file(path, 'Geräusch\n')
    assert path.read_bytes() == 'Geräusch\n'.encode('utf-8')
    write_file(str(path), b'\xff')
    assert path.read_bytes() == b'\xff' and os.listdir(path.parent) == ['c']


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    write_file(tmp_path / 'a', 'old')
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match='cannot write .*a .No space left on device.: sell some'):
        write_file(tmp_path / 'a', 'new', 'sell some')
    assert contents(tmp_path) == {'a': b'old'}


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path, monkeypatch, call):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    write_file(tmp_path / 'a', 'old')
    monkeypatch.setattr(os, call, die)
    with pytest.raises(Killed):
        write_file(tmp_path / 'a', 'new')
    assert (tmp_path / 'a').read_text() == 'old'
    monkeypatch.undo()
    write_file(tmp_path / 'a', 'new')
    assert (tmp_path / 'a').read_text() == 'new'


def test_what_is_no_file_and_a_folder_that_is_a_file_are_named(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('mine')
    for path, words in (('folder', 'it is no file'), ('file/below', 'cannot write .*below')):
        with pytest.raises(OSError, match=words):
            write_file(tmp_path / path, 'new')
    assert (tmp_path / 'file').read_text() == 'mine' and not list((tmp_path / 'folder').iterdir())


@needs_links
def test_a_result_written_through_links_goes_to_their_target(tmp_path):
    target, link, chain = tmp_path / 'disk/target', tmp_path / 'link', tmp_path / 'chain'
    target.parent.mkdir()
    target.write_text('old')
    link.symlink_to('disk/target')
    chain.symlink_to(link)
    write_file(chain, 'new')
    assert target.read_text() == 'new' and chain.is_symlink() and link.is_symlink()
    target.unlink()
    write_file(link, 'again')                               # a dangling link makes its target
    assert target.read_text() == 'again' and link.is_symlink() and not target.is_symlink()
    assert os.listdir(target.parent) == ['target']
    os.mkfifo(tmp_path / 'pipe')                            # writing would wait for a reader
    with pytest.raises(OSError, match='pipe: it is no file'):
        write_file(tmp_path / 'pipe', 'new')


# ---- the command line

def test_given_options_are_those_of_the_command_line_even_with_their_default():
    parser = argparse.ArgumentParser()
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--tau', type=float, default=0.5)
    assert checkpoint.given_options(parser, []) == {}
    assert checkpoint.given_options(parser, ['--batch-size', '4', '--resume']) == {
        'batch_size': '--batch-size', 'resume': '--resume'}
    for empty in ('', ' '):
        with pytest.raises(argparse.ArgumentTypeError, match='the path is empty'):
            checkpoint.some_path(empty)
    assert checkpoint.some_path('a b') == 'a b'


@needs_links
def test_an_output_that_would_overwrite_an_input_or_another_output_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    for name in ('a', 'folder/b'):
        Path(name).write_text('mine')
    Path('link').symlink_to('a')
    Path('hard').hardlink_to('a')
    lost = [([('--out', 'a')], [('--in', 'link')]), ([('--out', 'hard')], [('--in', 'a')]),
            ([('--out', './folder/new')], [('--in', 'folder')]),
            ([('--in', 'new'), ('--out', 'folder/../new')], [])]
    for outputs, inputs in lost:
        assert '--out would overwrite --in' in checkpoint.overwritten(outputs, inputs)
    fine = [([('--out', 'folder2')], [('--in', 'folder')]), ([('--out', None)], [('--in', None)]),
            ([('--out', 'b'), ('--csv', 'c')], [('--in', 'a')])]
    for outputs, inputs in fine:
        assert checkpoint.overwritten(outputs, inputs) is None


@pytest.mark.parametrize('problem, code, words', [
    (None, 0, ''), (3, 3, ''),
    (ValueError('x is odd: write y'), 1, 'a.py: x is odd: write y\n'),
    (FileNotFoundError('no x'), 1, 'a.py: no x\n'),
    (OSError(errno.EACCES, 'Permission denied', 'x.wav'), 1,
     'a.py: cannot use x.wav (Permission denied): name another place\n'),
    (MemoryError(), 1, 'a.py: the device has too little memory: lower --batch-size\n'),
    (torch.OutOfMemoryError('CUDA'), 1, 'too little memory'),
    (RuntimeError('DefaultCPUAllocator: can\'t allocate memory: you'), 1, 'too little memory'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. \nmore'), 1,
     'a.py: a loading process died (DataLoader worker (pid 7) is killed by signal: Killed): free '
     'memory or lower --workers; --resume goes on\n'),
    (RuntimeError('a bug'), 1, 'Traceback'), (KeyError('bug'), 1, 'Traceback'),
    (KeyboardInterrupt(), 130, 'a.py: broken off\n'), (SystemExit(2), 2, '')])
def test_a_script_ends_with_one_sentence_and_a_code(monkeypatch, capsys, problem, code, words):
    def main():
        if isinstance(problem, BaseException):
            raise problem
        return problem

    monkeypatch.delenv('ACL_DEBUG', raising=False)
    with pytest.raises(SystemExit) as end:
        checkpoint.run_script('a.py', main, 'broken off')
    said = capsys.readouterr().err
    assert end.value.code == code and (words in said if words else said == '')
    assert ('Traceback' in said) == (words == 'Traceback')


def test_acl_debug_shows_where_it_happened(monkeypatch, capsys):
    def main():
        raise ValueError('x is odd')

    monkeypatch.setenv('ACL_DEBUG', '1')
    with pytest.raises(SystemExit) as end:
        checkpoint.run_script('a.py', main, '')
    said = capsys.readouterr().err
    assert end.value.code == 1 and 'in main' in said and 'ValueError: x is odd' in said


# ---- devices and processes

def test_the_best_device_that_is_there_or_the_one_that_was_asked_for(monkeypatch):
    for cuda, mps, best in ((True, True, 'cuda'), (False, True, 'mps'), (False, False, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        assert checkpoint.pick_device() == torch.device(best)
        assert checkpoint.pick_device('cpu') == torch.device('cpu')
    with pytest.raises(ValueError, match='--device cuda is not there: .* has cpu$'):
        checkpoint.pick_device('cuda')


@pytest.mark.parametrize('gpus, name, backend, device', [
    (True, None, 'cpu:gloo,cuda:nccl', 'cuda:3'), (True, 'cpu', 'gloo', 'cpu'),
    (False, None, 'gloo', 'cpu')])
def test_each_process_of_torchrun_joins_with_its_own_device(monkeypatch, gpus, name, backend,
                                                            device):
    chosen, joined = [], []
    monkeypatch.setenv('LOCAL_RANK', '3')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda d: chosen.append(str(d)))
    monkeypatch.setattr(checkpoint.dist, 'init_process_group',
                        lambda backend, timeout: joined.append((backend, timeout.total_seconds())))
    monkeypatch.delenv('RANK', raising=False)
    assert str(checkpoint.start_processes(name)) == device and not joined
    monkeypatch.setenv('RANK', '3')
    assert str(checkpoint.start_processes(name)) == device
    assert joined == [(backend, 12 * 3600)]
    assert chosen == (['cuda:3', 'cuda:3'] if device == 'cuda:3' else [])


def test_one_process_alone_gathers_its_own_and_waits_for_none():
    checkpoint.wait_for_all()
    checkpoint.agree(3, 'never said')
    assert checkpoint.gather_lists([1, 2]) == [1, 2] and checkpoint.largest(-1.5) == -1.5
    assert checkpoint.rank_and_processes() == (0, 1)


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
    (True, False, 'previous.pt', None), (False, False, 'log.jsonl', None)])
def test_a_folder_that_holds_a_run_is_taken_only_when_told(tmp_path, resume, overwrite, has, words):
    (tmp_path / has).write_bytes(b'mine')
    if words:
        with pytest.raises(FileExistsError, match=words):
            Run(tmp_path, resume, overwrite)
        assert os.listdir(tmp_path) == [has]
    else:
        Run(tmp_path, resume, overwrite)
        assert (tmp_path / has).read_bytes() == b'mine'     # until there are steps


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
    damaged = [(run.folder / 'last.pt').read_bytes()[:1000], b'another']
    for k, content in enumerate(damaged):
        (run.folder / 'last.pt').write_bytes(content)
        assert run.resume()['step'] == 1 + k
        assert not (run.folder / 'last.pt').exists()
        run.save(2 + k)
        run.save(3 + k)
    assert (run.folder / 'last.damaged.pt').read_bytes() == damaged[0]
    assert (run.folder / 'last.damaged2.pt').read_bytes() == damaged[1]
    said = capsys.readouterr().out
    assert 'trying the one before it' in said and 'the damaged last.pt is kept as' in said
    for name in NAMES:
        (run.folder / name).write_bytes(b'garbage')
    before = contents(run.folder)
    with pytest.raises(ValueError, match='last.pt is damaged and there is no good .*--overwrite'):
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


@pytest.mark.parametrize('change, words', [
    (lambda saved: saved.update(trainer=None), 'no state of a training'),
    (lambda saved: saved.pop('trainer'), 'no state of a training'),
    (lambda saved: saved['trainer'].update(settings=None), 'no state of a training'),
    (lambda saved: saved['trainer'].update(step='2'), 'no usable state'),
    (lambda saved: saved['trainer'].update(step=1.5), 'no usable state'),
    (lambda saved: saved['trainer'].update(step=-1), 'no usable state'),
    (lambda saved: saved['trainer'].update(seconds=None), 'no usable state'),
    (lambda saved: saved['trainer'].pop('skipped'), 'no usable state'),
    (lambda saved: saved['trainer'].update(optimiser=3), 'no usable state'),
    (lambda saved: saved['trainer']['optimiser'].pop('state'), 'no usable state'),
    (lambda saved: saved.pop('masker_i'), 'no usable state'),
    (lambda saved: saved['audio_proj'].update(weight=torch.ones(3)), 'no usable state')])
def test_a_checkpoint_with_an_odd_state_is_named_and_kept(run, change, words):
    path = run.folder / 'last.pt'
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    before = contents(run.folder)
    with pytest.raises(ValueError, match=f'last.pt holds .*{words}'):
        run.resume()
    assert contents(run.folder) == before


@pytest.mark.parametrize('name, value, words', [
    ('lr', 0.5, 'was trained with --lr 0.1, not 0.5: resume with the same settings'),
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
    assert run.resume()['step'] == 2                        # last.pt, or a copy of it


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


def test_a_finished_run_that_goes_on_keeps_all_but_its_summary(run):
    before = contents(run.folder)
    (run.folder / 'summary.json').write_text('old')
    one = run.start(resume=True, overwrite=True)
    with one.steps_from(2, 0.0, 4):         # killed from here on, it is not a finished run
        assert contents(run.folder) == {**before, 'summary.json.old': b'old'}
        one.save(run.parts.content(7))
    assert not (run.folder / 'summary.json.old').exists()


def test_the_signals_stay_blocked_while_the_world_is_drawn_and_its_processes_can_be_ended(tmp_path):
    # One process is killed while the other sleeps, which the pool then ends by SIGTERM. (Three
    # pieces of eight jobs: with two, Python may watch for the end of the first process only.)
    code = ('import signal, checkpoint\n'
            'from miniature import world\n'
            'if __name__ == "__main__":\n'
            '    signal.pthread_sigmask(signal.SIG_BLOCK, checkpoint.HELD)\n'
            '    checkpoint.watch_signals()\n'
            '    jobs = ["import os; os._exit(1)"] * 8 + ["import time; time.sleep(1000)"] * 16\n'
            '    try:\n'
            '        world.in_parallel(exec, jobs, "drawing", 2)\n'
            '    except OSError as error:\n'
            '        print(error)\n'
            '    assert checkpoint.HELD <= signal.pthread_sigmask(signal.SIG_BLOCK, ())\n')
    (tmp_path / 'pool.py').write_text(code)
    done = subprocess.run([sys.executable, tmp_path / 'pool.py'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'a process that was drawing has ended' in done.stdout


# ---- when to save, and signals

@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(checkpoint, 'asked', [])
    return checkpoint.asked


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


class Ended(BaseException):
    pass


def hear(monkeypatch, numbers, steps):
    """_watch on these signals, `steps` of them during the steps. -> what it did after each"""
    done, signals = [], iter(numbers)

    def sigwait(held):
        assert held == checkpoint.HELD
        if len(done) == steps:
            checkpoint.taking_steps.clear()
        done.append('')
        try:
            return next(signals)
        except StopIteration:
            raise Ended from None

    def end(code):
        done[-1] = f'ended {code}'
        raise Ended

    def interrupt():
        done[-1] = 'interrupted'

    monkeypatch.setattr(signal, 'sigwait', sigwait, raising=False)
    monkeypatch.setattr(checkpoint._thread, 'interrupt_main', interrupt)
    monkeypatch.setattr(os, '_exit', end)
    if steps:
        checkpoint.taking_steps.set()
    try:
        checkpoint._watch()
    except Ended:
        pass
    finally:
        checkpoint.taking_steps.clear()
    return done[:len(numbers)]


def test_signals_wait_for_the_end_of_a_step_and_a_second_ctrl_c_does_not(monkeypatch, asked,
                                                                         capsys):
    TERM, INT = signal.SIGTERM, signal.SIGINT
    assert hear(monkeypatch, [INT], 0) == ['interrupted'] and not asked
    assert hear(monkeypatch, [TERM], 0) == ['ended 143'] and not asked
    assert hear(monkeypatch, [TERM, TERM, INT], 3) == ['', '', 'ended 130']
    assert asked == [TERM, TERM] and checkpoint.stop_asked() == TERM
    assert capsys.readouterr().err.count('stopping after this step') == 2
    asked.clear()
    assert hear(monkeypatch, [INT, INT], 2) == ['', 'ended 130'] and asked == [INT]
    asked.clear()
    assert hear(monkeypatch, [INT, INT], 1) == ['', 'interrupted']      # the pictures were drawn


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='not on Windows')
def test_train_py_blocks_what_it_waits_for_before_anything_starts_a_thread():
    """The first statement after the docstring and `import signal`, in the process of a script."""
    path = Path(checkpoint.__file__).with_name('train.py')
    head = path.read_text(encoding='utf-8').partition('\nimport argparse')[0]
    assert 'import torch' not in head and head.count('\nimport ') == 1
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        exec(compile(head, 'train.py', 'exec'), {'__name__': '__main__'})
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert blocked >= checkpoint.HELD | {signal.SIGCHLD}
    exec(compile(head, 'train.py', 'exec'), {'__name__': 'train'})      # imported: it blocks none
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

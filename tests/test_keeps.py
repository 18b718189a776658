"""What is the user's stays: checkpoints on --resume and --overwrite, and files behind symbolic links."""

import errno
import os
import signal
import threading
import types
from pathlib import Path

import pytest
import torch

import checkpoints
import train
from miniature import world
from model import load_model, read_checkpoint
from resumable import write_whole

NAMES = ('last.pt', 'previous.pt')


@pytest.fixture
def run(tmp_path):
    """A folder with two checkpoints, of steps 1 and 2. -> function that resumes it, the folder"""
    args = train.parse_args(['--out', str(tmp_path / 'run'), '--resume'])
    model, _ = load_model('miniature')
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    args.out.mkdir()
    state = {'seconds': 1.0, 'skipped': 0, 'untrained': None}
    save = lambda step: checkpoints.save_checkpoint(args.out, model, optimiser, scaler, args, {'step': step, **state},
                                                    checkpoints.random_states())
    save(1), save(2)
    resume = lambda: checkpoints.resume(args.out, model, optimiser, scaler, args)
    return types.SimpleNamespace(folder=args.out, resume=resume, save=save, args=args)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('error', [PermissionError(errno.EACCES, 'Permission denied'), OSError(errno.EIO, 'Input/output error')])
def test_a_checkpoint_that_cannot_be_read_now_stops_the_run_and_costs_nothing(run, monkeypatch, error):
    read = Path.read_bytes

    def fails(path):
        if path.name == 'last.pt':
            raise error
        return read(path)

    before = contents(run.folder)
    monkeypatch.setattr(Path, 'read_bytes', fails)
    with pytest.raises(OSError, match=f'cannot read .*last.pt .{error.strerror}') as said:
        run.resume()
    assert not isinstance(said.value, FileNotFoundError)
    monkeypatch.undo()
    assert contents(run.folder) == before and run.resume()['step'] == 2


def test_a_damaged_checkpoint_is_kept_and_does_not_take_the_good_one_s_place(run, capsys):
    damaged = [(run.folder / 'last.pt').read_bytes()[:1000], b'another']
    for k, content in enumerate(damaged):
        (run.folder / 'last.pt').write_bytes(content)
        assert run.resume()['step'] == 1 + k
        run.save(2 + k), run.save(3 + k)
        (run.folder / 'previous.pt').write_bytes((run.folder / 'last.pt').read_bytes())
        run.save(2 + k), run.save(3 + k)
    assert (run.folder / 'last.damaged.pt').read_bytes() == damaged[0]
    assert (run.folder / 'last.damaged2.pt').read_bytes() == damaged[1]
    assert 'the damaged last.pt is kept as' in capsys.readouterr().out
    for name in NAMES:
        (run.folder / name).write_bytes(b'garbage')
    before = contents(run.folder)
    with pytest.raises(ValueError, match='last.pt is damaged and there is no good'):
        run.resume()
    assert contents(run.folder) == before


def test_a_resume_that_is_refused_leaves_a_damaged_checkpoint_in_its_place(run):
    (run.folder / 'last.pt').write_bytes(b'damaged')
    run.args.lr = 0.5
    before = contents(run.folder)
    with pytest.raises(ValueError, match='--lr'):
        run.resume()
    assert contents(run.folder) == before


def test_a_folder_with_previous_pt_alone_holds_a_run(run):
    (run.folder / 'last.pt').unlink()
    with pytest.raises(FileExistsError, match='unfinished run'):
        checkpoints.claim_folder(types.SimpleNamespace(out=run.folder, resume=False, overwrite=False))


def test_a_second_overwrite_does_not_give_up_the_old_run_for_an_attempt_that_saved_nothing(run):
    args = types.SimpleNamespace(out=run.folder, resume=False, overwrite=True)
    (run.folder / 'log.jsonl').write_text('old')
    old = contents(run.folder)
    checkpoints.set_aside(args)
    (run.folder / 'log.jsonl').write_text('failed at once')
    checkpoints.set_aside(args)
    assert {name: content for name, content in contents(run.folder).items() if name != 'log.jsonl'} == {
        f'{name}.old': content for name, content in old.items()}
    run.save(7)                                             # now there is something new
    assert not list(run.folder.glob('*.old'))


def test_what_is_no_checkpoint_and_what_is_not_there_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        read_checkpoint(tmp_path / 'none.pt')
    os.mkfifo(tmp_path / 'pipe.pt')                         # to read it would wait for its writer
    with pytest.raises(FileNotFoundError, match='no checkpoint at .*pipe.pt'):
        read_checkpoint(tmp_path / 'pipe.pt')
    (tmp_path / 'a.pt').write_bytes(b'')
    with pytest.raises(ValueError, match='is not a checkpoint'):
        read_checkpoint(tmp_path / 'a.pt')
    odd = torch.ones(2, device='meta')                      # no values, so not even infinite ones
    torch.save({'audio_proj': {'a': odd}, 'masker_i': {}}, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match='a.pt is not a checkpoint'):
        read_checkpoint(tmp_path / 'a.pt')


@pytest.mark.parametrize('change, words', [
    (lambda saved: saved.update(trainer=None), 'no state of a training'),
    (lambda saved: saved['trainer'].update(settings=None), 'no state of a training'),
    (lambda saved: saved['trainer'].update(step='2'), 'no usable state'),
    (lambda saved: saved['trainer'].update(step=1.5), 'no usable state'),
    (lambda saved: saved['trainer'].update(step=-1), 'no usable state'),
    (lambda saved: saved['trainer'].update(seconds=None), 'no usable state'),
    (lambda saved: saved['trainer'].pop('skipped'), 'no usable state'),
    (lambda saved: saved['trainer'].pop('untrained'), 'no usable state')])
def test_a_checkpoint_with_an_odd_state_is_named_and_kept(run, change, words):
    path = run.folder / 'last.pt'
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    before = contents(run.folder)
    with pytest.raises(ValueError, match=f'last.pt holds .*{words}'):
        run.resume()
    assert contents(run.folder) == before


def test_a_training_in_another_thread_leaves_the_signals_alone():
    found = []

    def stop():
        with checkpoints.asked_to_stop() as asked:
            found.append(asked)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    thread.join()
    assert found == [[]] and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize('write', [lambda path: write_whole(path, 'new')])
def test_a_result_written_through_a_link_goes_to_its_target(tmp_path, write):
    target, link, chain = tmp_path / 'disk/target', tmp_path / 'link', tmp_path / 'chain'
    target.parent.mkdir()
    target.write_text('old')
    link.symlink_to('disk/target')
    chain.symlink_to(link)
    write(chain)
    assert target.read_text() == 'new' and chain.is_symlink() and link.is_symlink() and not target.is_symlink()
    target.unlink()
    write(link)                                             # a dangling link makes its target
    assert target.read_text() == 'new' and link.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ['target']


def test_checkpoints_behind_links_are_updated_where_they_lie(run, tmp_path):
    for name in NAMES:
        os.replace(run.folder / name, tmp_path / name)
        (run.folder / name).symlink_to(tmp_path / name)
    run.save(5)
    assert all((run.folder / name).is_symlink() for name in NAMES)
    assert torch.load(tmp_path / 'last.pt', weights_only=True)['trainer']['step'] == 5
    assert torch.load(tmp_path / 'previous.pt', weights_only=True)['trainer']['step'] == 2


def test_a_world_is_drawn_where_a_link_leads(tmp_path):
    place, link = tmp_path / 'disk/place', tmp_path / 'data'
    link.symlink_to(place)
    for _ in ('the link dangles', 'an empty folder'):
        root = world.build(link, splits={'val': 1}, processes=1)
        assert link.is_symlink() and (place / 'vggsound/val.csv').is_file() and root == link
        for file in sorted(place.rglob('*'), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()

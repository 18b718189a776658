"""launch.py: files complete or not at all, options, devices, processes."""

import argparse
import errno
import os
import sys
from pathlib import Path

import pytest
import torch

import launch
from conftest import ROOT
from launch import write_file

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
    assert launch.given_options(parser, []) == {}
    assert launch.given_options(parser, ['--batch-size', '4', '--resume']) == {
        'batch_size': '--batch-size', 'resume': '--resume'}
    assert launch.given_options(parser, ['--tau', '0']) == {'tau': '--tau'}
    for empty in ('', ' '):
        with pytest.raises(argparse.ArgumentTypeError, match='the path is empty'):
            launch.some_path(empty)
    assert launch.some_path('a b') == 'a b'


@pytest.mark.parametrize('text, sentence', [
    ('0', 'must be 1 to 10, not 0'), ('11', 'must be 1 to 10, not 11'), ('2.5', 'invalid int')])
def test_a_number_lies_between_its_limits(text, sentence, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--n', type=launch.between(int, 1, 10))
    parser.add_argument('--x', type=launch.between(float, 0))
    both = parser.parse_args(['--n', '10', '--x', '0'])
    assert both.n == 10 and both.x == 0.0
    for option in (['--n', text], ['--x', 'nan'], ['--x', '-1']):
        with pytest.raises(SystemExit):
            parser.parse_args(option)
    error = capsys.readouterr().err
    assert f'argument --n: {sentence}' in error
    assert error.count('argument --x: must be at least 0, not') == 2
    with pytest.raises(SystemExit):                     # torch would overflow much later
        parser.parse_args(['--x', str(2**64)])
    assert 'argument --x: must be 0 to 9.22337e+18, not 18446744073709551616' in (
        capsys.readouterr().err)



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
        assert '--out would overwrite --in' in launch.overwritten(outputs, inputs)
    fine = [([('--out', 'folder2')], [('--in', 'folder')]), ([('--out', None)], [('--in', None)]),
            ([('--out', 'b'), ('--csv', 'c')], [('--in', 'a')])]
    for outputs, inputs in fine:
        assert launch.overwritten(outputs, inputs) is None


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
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that '
                  'dataloader\'s workers are out of shared memory.'), 1, 'enlarge /dev/shm'),
    (RuntimeError('unable to open shared memory object </torch_7> in read-write mode: '
                  'Too many open files (24)'), 1,
     'a.py: too many open files: lower --workers, down to 0, or raise the limit by ulimit -n; '),
    (OSError(errno.EMFILE, 'Too many open files', '/tmp/x'), 1, 'a.py: too many open files: '),
    (RuntimeError('[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer'), 1,
     'a.py: another process of this torchrun has ended, as what it printed says, or its machine is '
     'out of reach\n'),
    (RuntimeError('a bug'), 1, 'Traceback'), (KeyError('bug'), 1, 'Traceback'),
    (KeyboardInterrupt(), 130, 'a.py: broken off\n'), (SystemExit(2), 2, '')])
def test_a_script_ends_with_one_sentence_and_a_code(monkeypatch, capsys, problem, code, words):
    def main():
        if isinstance(problem, BaseException):
            raise problem
        return problem

    monkeypatch.delenv('ACL_DEBUG', raising=False)
    with pytest.raises(SystemExit) as end:
        launch.run_script('a.py', main, 'broken off')
    said = capsys.readouterr().err
    assert end.value.code == code and (words in said if words else said == '')
    assert ('Traceback' in said) == (words == 'Traceback')


@pytest.mark.parametrize('stdout, code', [(None, 0), ('/dev/full', 1)])
def test_a_closed_or_full_stdout_gives_no_traceback(monkeypatch, capsys, stdout, code):
    if stdout and not os.path.exists(stdout):
        pytest.skip('no /dev/full here')
    monkeypatch.setattr(sys, 'stdout', open(stdout, 'w') if stdout else None)
    with pytest.raises(SystemExit) as end:
        launch.run_script('a.py', lambda: print('scores'), '')
    said = capsys.readouterr().err
    assert end.value.code == code and 'Traceback' not in said
    assert ('No space left' in said) == (code == 1)


def test_acl_debug_shows_where_it_happened(monkeypatch, capsys):
    def main():
        raise ValueError('x is odd')

    monkeypatch.setenv('ACL_DEBUG', '1')
    with pytest.raises(SystemExit) as end:
        launch.run_script('a.py', main, '')
    said = capsys.readouterr().err
    assert end.value.code == 1 and 'in main' in said and 'ValueError: x is odd' in said


# ---- devices and processes

def test_cuda_or_the_cpu_is_taken_unless_another_device_is_asked_for(monkeypatch):
    for cuda, mps, best in ((True, True, 'cuda'), (False, True, 'cpu'), (False, False, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        assert launch.pick_device() == torch.device(best)
        assert launch.pick_device('cpu') == torch.device('cpu')
        if mps:
            assert launch.pick_device('mps') == torch.device('mps')
    with pytest.raises(ValueError, match='--device cuda is not there: .* has cpu$'):
        launch.pick_device('cuda')


@pytest.mark.parametrize('gpus, name, backend, device', [
    (True, None, 'cpu:gloo,cuda:nccl', 'cuda:3'), (True, 'cpu', 'gloo', 'cpu'),
    (False, None, 'gloo', 'cpu')])
def test_each_process_of_torchrun_joins_with_its_own_device(monkeypatch, gpus, name, backend,
                                                            device):
    chosen, joined = [], []
    monkeypatch.setenv('LOCAL_RANK', '3')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda d: chosen.append(str(d)))
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    monkeypatch.setattr(launch.dist, 'init_process_group',
                        lambda backend, timeout: joined.append((backend, timeout.total_seconds())))
    monkeypatch.delenv('RANK', raising=False)
    assert str(launch.start_processes(name)) == device and not joined
    monkeypatch.setenv('RANK', '3')
    assert str(launch.start_processes(name)) == device
    assert joined == [(backend, 12 * 3600)]
    assert chosen == (['cuda:3', 'cuda:3'] if device == 'cuda:3' else [])
    assert torch.backends.cudnn.allow_tf32 == (device == 'cpu')


def test_more_processes_than_gpus_or_several_on_mps_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    monkeypatch.setenv('RANK', '2')
    with pytest.raises(ValueError, match=r'has 2 GPU\(s\).*nproc_per_node=2'):
        launch.start_processes()
    with pytest.raises(ValueError, match='no backend for mps: --device cpu'):
        launch.start_processes('mps')


def test_one_process_alone_gathers_its_own_and_waits_for_none():
    launch.wait_for_all()
    launch.agree(3, 'never said')
    assert launch.gather_lists([1, 2]) == [1, 2] and launch.largest(-1.5) == -1.5
    assert launch.rank_and_processes() == (0, 1)

"""What is the user's stays: what is no checkpoint, and links."""

import os

import pytest
import torch

from launch import read_weights
from miniature import world
from model import read_checkpoint


def test_what_is_no_checkpoint_and_what_is_not_there_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match='is a folder, not a file: .* its last.pt'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no file'):
        read_checkpoint(tmp_path / 'none.pt')
    os.mkfifo(tmp_path / 'pipe.pt')                         # to read it would wait for its writer
    with pytest.raises(FileNotFoundError, match='there is no file .*pipe.pt: train one'):
        read_checkpoint(tmp_path / 'pipe.pt')
    (tmp_path / 'a.pt').write_bytes(b'')
    with pytest.raises(ValueError, match='a.pt is no checkpoint'):
        read_checkpoint(tmp_path / 'a.pt')
    odd = torch.ones(2, device='meta')                      # no values, so not even infinite ones
    torch.save({'audio_proj': {'a': odd}, 'masker_i': {}}, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match='a.pt is not a checkpoint'):
        read_checkpoint(tmp_path / 'a.pt')


def test_a_world_is_drawn_where_a_link_leads(tmp_path):
    place, link = tmp_path / 'disk/place', tmp_path / 'data'
    link.symlink_to(place)
    for _ in ('the link dangles', 'an empty folder'):
        root = world.build(link, splits={'val': 1}, processes=1)
        assert link.is_symlink() and (place / 'vggsound/val.csv').is_file() and root == link
        for file in sorted(place.rglob('*'), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize('mapped', [False, True])
def test_a_checkpoint_with_a_hole_of_zeros_is_damaged(tmp_path, mapped):
    path = tmp_path / 'last.pt'
    torch.save({'v': torch.ones(1000)}, path)
    content = path.read_bytes()
    assert read_weights(path, 'train one', mapped)['v'].sum() == 1000
    start = content.index(torch.ones(100).numpy().tobytes())
    holed = content[:start] + bytes(400) + content[start + 400:]
    disks = content.rindex(b'PK\6\7') + 16                  # of the zip, here 1
    for damaged in (holed, content[:disks] + b'\7' + content[disks + 1:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='last.pt is no checkpoint .it is damaged .*: train'):
            read_weights(path, 'train one', mapped)
    torch.save({'v': torch.ones(9)}, path, _use_new_zipfile_serialization=False)
    assert read_weights(path, 'train one', mapped)['v'].sum() == 9


@pytest.mark.parametrize('full', [MemoryError(), RuntimeError("can't allocate memory: you tried")])
def test_a_checkpoint_for_which_memory_is_too_small_is_not_damaged(tmp_path, monkeypatch, full):
    torch.save({'v': torch.ones(9)}, tmp_path / 'last.pt')

    def load(*given, **more):
        raise full
    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(type(full)) as said:
        read_weights(tmp_path / 'last.pt', 'train one')
    assert said.value is full

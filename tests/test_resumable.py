"""resumable.py: files whole or not at all, and each batch of a stage once, whoever did it."""

import errno
import json
import os

import pytest

import resumable

SETTINGS = {'stage': 'image', 'batch_size': 2}


def write_lines(path, *lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_a_hash_depends_on_names_and_on_all_of_the_content(tmp_path):
    first, other = tmp_path / 'first', tmp_path / 'other'
    first.write_bytes(bytes(3000))
    other.write_bytes(bytes(3000))
    before = resumable.file_hash([first])
    assert before == resumable.file_hash([first]) != resumable.file_hash([other])
    first.write_bytes(bytes(2999) + b'x')
    assert resumable.file_hash([first]) != before and len(before) == 12


def test_a_line_is_utf_8_and_what_is_no_text_is_replaced():
    assert resumable.as_bytes({'id': 'é'}) == '{"id": "é"}\n'.encode()
    assert resumable.as_bytes({'id': '\ud800'}) == b'{"id": "?"}\n'


def test_captions_made_elsewhere_lose_line_breaks_and_one_missing_pair_is_named(tmp_path):
    write_lines(tmp_path / 'a.jsonl', {'id': 'x', 'audio_caption': ' a dog\n barks  '})
    assert resumable.read_audio_captions(tmp_path / 'a.jsonl', ['x']) == {'x': 'a dog barks'}
    with pytest.raises(ValueError, match='lacks 1 of the 2 pairs, the first y'):
        resumable.read_audio_captions(tmp_path / 'a.jsonl', ['x', 'y'])


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'a'
    resumable.write_whole(path, 'old')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='cannot write .*a .No space left on device.: free some'):
        resumable.write_whole(path, 'new')
    assert [file.name for file in tmp_path.iterdir()] == ['a'] and path.read_text() == 'old'
    with open(path, 'ab') as file, pytest.raises(OSError, match='cannot write .*a .No space'):
        resumable.append(file, b'more')


def test_parts_are_joined_in_the_list_s_order_and_batches_cut_off_are_left_out(tmp_path):
    path = tmp_path / 'a.jsonl'
    line = lambda name, text: {'id': name, 'text': text}
    write_lines(path, {'settings': SETTINGS}, line('e', 'own'), line('f', 'own'))
    write_lines(tmp_path / 'a.jsonl.part1', line('a', 'part'), line('b', 'part'),
                line('e', 'part'), line('c', 'part'))
    batches = [['a', 'b'], ['c', 'd'], ['e', 'f']]
    assert resumable.gather(path, SETTINGS, batches, lambda line: True) == [0, 2]
    found = [json.loads(text) for text in path.read_text().splitlines()]
    assert found == [{'settings': SETTINGS}, line('a', 'part'), line('b', 'part'),
                     line('e', 'own'), line('f', 'own')]
    assert [file.name for file in tmp_path.iterdir()] == ['a.jsonl']


def test_lines_that_fail_again_stay_in_the_file(tmp_path):
    asked = []

    def work(batch):
        asked.append(batch)
        return [{'id': name, 'error': 'x' if name == 'b' else None} for name in batch]

    ids = ['a', 'b', 'c']
    keep = lambda line: not line['error']
    for times in (2, 3):                                    # the second time the first batch alone
        lines = resumable.fill(tmp_path / 'a.jsonl', SETTINGS, ids, lambda: work, keep, 'test')
        assert [line['id'] for line in lines] == ids and len(asked) == times
    assert asked == [['a', 'b'], ['c'], ['a', 'b']]

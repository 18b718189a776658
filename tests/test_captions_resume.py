"""captions.py goes on after a kill, again where pairs failed, over with --overwrite."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

import captions
from stand_ins import (NAMES, calls, contents, lines_of, pairs_of, root, run,  # noqa: F401
                       settings_of)


# ---- going on, again, and over

def test_what_is_finished_is_not_asked_again_and_failed_pairs_only_on_request(root, calls):
    frame = root / f'vggsound/frames/{NAMES[4]}.jpg'
    frame.write_bytes(b'no picture')
    assert list(run(root, 'image', '--batch-size', 3)) == [NAMES[4]]
    assert list(run(root, 'all', '--batch-size', 3)) == [NAMES[4]]
    Image.new('RGB', (16, 16), (80,) * 3).save(frame)
    for stage in ('image', 'audio', 'object'):
        calls[stage].clear()
    assert list(run(root, 'all', '--batch-size', 3)) == [NAMES[4]]
    assert not calls['image'] + calls['audio'] + calls['object']
    assert run(root, 'all', '--batch-size', 3, '--retry-failed') == {}
    assert pairs_of(calls, 'image') == pairs_of(calls, 'object') == [[3, 4, 5]]     # its batch
    assert not calls['audio']
    assert lines_of(root.parent / 'out/captions.jsonl')[4]['object'] == 'drum'


@pytest.mark.parametrize('changed, word', [
    (['--image-model', 'another'], 'model'), (['--dtype', 'float16'], 'dtype'),
    (['--batch-size', '2'], 'batch_size'), (['--image-tokens', '9'], 'max_new_tokens'),
    (['--ids', 'reversed.csv'], 'list of pairs')])
def test_a_file_is_continued_with_its_own_settings_only(root, calls, monkeypatch, changed, word):
    monkeypatch.chdir(root)
    (root / 'reversed.csv').write_text('\n'.join(NAMES[::-1]))
    run(root, 'image')
    with pytest.raises(ValueError, match=f'image_captions was begun with another {word}, '):
        run(root, 'image', *changed)
    assert len(calls['image']) == 1


def test_settings_of_a_stage_that_has_no_batch_yet_may_change(root, calls):
    with pytest.raises(ValueError, match='run captions.py image for them first'):
        run(root, 'object', '--object-tokens', 9)
    run(root, 'all', '--object-tokens', 7)
    assert settings_of(root.parent / 'out/captions.answers')['max_new_tokens'] == 7


def test_overwrite_starts_over_with_the_stages_that_run(root, calls):
    run(root, 'all', '--batch-size', 3)
    folder = root.parent / 'out'
    (folder / 'image_captions/mine.jsonl').write_text('kept')
    before = contents(folder)
    for name in NAMES:
        Image.new('RGB', (16, 16)).save(root / f'vggsound/frames/{name}.jpg')
    run(root, 'object', '--overwrite', '--batch-size', 3)
    assert len(calls['object']) == 6 and len(calls['image']) == len(calls['audio']) == 3
    assert contents(folder) == before
    run(root, 'image', '--overwrite', '--batch-size', 7)
    images = [name.partition('/')[2] for name in contents(folder) if name.startswith('image')]
    assert sorted(images) == ['000000.json', 'mine.jsonl', 'settings.json']
    assert (folder / 'captions.jsonl').read_bytes() == before['captions.jsonl']
    run(root, 'object', '--batch-size', 3)                  # answers to other captions are not kept
    assert pairs_of(calls, 'object')[6:] == [[0, 1, 2], [3, 4, 5], [6]]
    assert {line['image_caption'] for line in lines_of(folder / 'captions.jsonl')} == {'frame 0'}


@pytest.mark.parametrize('killed', range(1, 10))
def test_a_killed_run_started_again_leaves_what_an_undisturbed_one_leaves(
        root, calls, monkeypatch, killed):
    run(root, 'all', '--batch-size', 3, out='undisturbed/captions.jsonl')
    began = {stage: len(calls[stage]) for stage in captions.STAGES}
    written, write = [], captions.write_file

    def dies(path, content, remedy):
        if path.name == 'settings.json':
            return write(path, content, remedy)
        written.append(path)
        if len(written) == killed:                          # before its content is complete
            path.with_name(f'{path.name}.partial17').write_text(content[:9])
            raise KeyboardInterrupt
        return write(path, content, remedy)

    monkeypatch.setattr(captions, 'write_file', dies)
    with pytest.raises(KeyboardInterrupt):
        run(root, 'all', '--batch-size', 3)
    monkeypatch.setattr(captions, 'write_file', write)
    run(root, 'all', '--batch-size', 3)
    assert contents(root.parent / 'out') == contents(root.parent / 'undisturbed')
    again = sum(len(calls[stage]) - began[stage] for stage in captions.STAGES)
    assert again == 9 + 1                                   # the batch that it was killed in


@pytest.mark.parametrize('killed', range(1, 4))
def test_a_run_killed_among_captions_made_elsewhere_goes_on(root, calls, monkeypatch, killed):
    made = root / 'gama.csv'
    made.write_text(''.join(f'{name},a sound {k}\n' for k, name in enumerate(NAMES)))
    options = ['--batch-size', 3, '--audio-captions', made]
    run(root, 'all', *options, out='undisturbed/captions.jsonl')
    written, write = [], captions.write_file

    def dies(path, content, remedy):
        written.append(path)
        if [file.parent.name for file in written[3:]] == ['audio_captions'] * killed:
            raise KeyboardInterrupt
        return write(path, content, remedy)

    monkeypatch.setattr(captions, 'write_file', dies)       # after three settings.json
    with pytest.raises(KeyboardInterrupt):
        run(root, 'all', *options)
    monkeypatch.setattr(captions, 'write_file', write)
    run(root, 'all', *options)
    assert contents(root.parent / 'out') == contents(root.parent / 'undisturbed')
    file = root.parent / 'out/audio_captions/000001.json'
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))           # lacks a line
    run(root, 'all', *options)
    assert contents(root.parent / 'out') == contents(root.parent / 'undisturbed')
    assert not calls['audio']


def test_a_model_that_fails_within_a_batch_costs_that_batch(root, calls, monkeypatch):
    run(root, 'all', '--batch-size', 3, out='undisturbed/captions.jsonl')
    stage = captions.STAGES['audio']

    def fails(model, processor, wavs, max_new_tokens):
        if len(wavs) == 1:
            raise torch.OutOfMemoryError
        return stage.describe(model, processor, wavs, max_new_tokens)

    monkeypatch.setitem(captions.STAGES, 'audio', replace(stage, describe=fails))
    with pytest.raises(torch.OutOfMemoryError):
        run(root, 'all', '--batch-size', 3)
    monkeypatch.setitem(captions.STAGES, 'audio', stage)
    run(root, 'all', '--batch-size', 3)
    assert contents(root.parent / 'out') == contents(root.parent / 'undisturbed')


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(root, calls, monkeypatch):
    run(root, 'all', '--batch-size', 3, out='undisturbed/captions.jsonl')
    fsync, written = os.fsync, []

    def full(number):
        written.append(number)
        if len(written) == 7:
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(number)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device.: free some .*without --overwrite'):
        run(root, 'all', '--batch-size', 3)
    assert not list(root.parent.glob('out/*/*.partial*'))
    run(root, 'all', '--batch-size', 3)
    assert contents(root.parent / 'out') == contents(root.parent / 'undisturbed')


def test_a_damaged_batch_is_named_and_made_again_when_deleted(root, calls):
    run(root, 'all')
    folder = root.parent / 'out'
    before = contents(folder)
    name = 'audio_captions/000000.json'
    for damaged in (before[name][:40], b'', bytes(40), b'null', b'3', b'{}', b'[{}]', b'[[]]',
                    b'["a"]', before[name].replace(b'audio_caption', b'caption'),
                    before[name].replace(b'"sound 3"', b'3')):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f'{name} is damaged: delete it'):
            run(root, 'all')
    (folder / name).unlink()
    run(root, 'all')
    assert contents(folder) == before
    answers = folder / 'captions.answers/000000.json'
    answers.write_bytes(before['captions.answers/000000.json'].replace(b'answer', b'object'))
    with pytest.raises(ValueError, match='000000.json is damaged: delete it'):
        run(root, 'all')
    answers.unlink()
    run(root, 'all')
    name = 'captions.answers/settings.json'
    for damaged in (before[name][:40], b'null', b'[]', b'{}', b'[{}]', b'"model"'):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f'{name} is damaged: .* start over'):
            run(root, 'all')
    (folder / name).unlink()
    with pytest.raises(ValueError, match='begun with another stage, .* start over'):
        run(root, 'all')
    run(root, 'all', '--overwrite')
    assert contents(folder) == before


@pytest.mark.parametrize('processes', [2, 3, 8])
def test_several_processes_share_the_batches_and_leave_what_one_leaves(
        root, calls, monkeypatch, processes):
    """The processes are threads here, the group is a barrier."""
    options = ['--batch-size', 2, '--retry-failed']
    (root / f'vggsound/frames/{NAMES[3]}.jpg').write_bytes(b'no picture')
    run(root, 'all', *options[:2], out='one/captions.jsonl')
    shutil.copytree(root.parent / 'one', root.parent / 'several')
    (root.parent / 'several/audio_captions/000002.json').unlink()
    Image.new('RGB', (16, 16), (60,) * 3).save(root / f'vggsound/frames/{NAMES[3]}.jpg')
    run(root, 'all', *options, out='one/captions.jsonl')
    calls['load'].clear()
    barrier = threading.Barrier(processes)
    monkeypatch.setattr(captions, 'wait_for_all', lambda: barrier.wait(60))

    def one_process(rank):
        args = captions.parse_args(['all', '--data-root', str(root), *map(str, options), '--out',
                                    str(root.parent / 'several/captions.jsonl')])
        return captions.caption_pairs(args, torch.device('cpu'), rank, processes)

    with ThreadPoolExecutor(processes) as pool:
        assert list(pool.map(one_process, range(processes))) == [{}] * processes
    assert contents(root.parent / 'several') == contents(root.parent / 'one')
    assert len(calls['load']) == 3                          # one batch of each stage was to be made

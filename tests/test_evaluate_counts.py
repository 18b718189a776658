"""Which samples of a benchmark are counted, by which process, and what is said of the others."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest

import data
import evaluate
from data import SampleError
from figures.scores import without_nan
from known_world import Run, build, known_map, one_thread  # noqa: F401


def test_what_cannot_be_read_is_counted_out_and_named(monkeypatch, tmp_path, capsys):
    run = Run(monkeypatch, tmp_path)
    (tmp_path / 'c_1.wav').unlink()                         # missing: never opened
    (tmp_path / 'a_1.png').write_bytes(b'no picture')       # there, but unreadable
    results = run('--benchmarks', 'is4', '--batch-size', 1)
    for scores in (results['single']['is4'], results['clipseg_gt_text']['single']['is4']):
        assert (scores['n'], scores['n_expected']) == (2, 4)
    assert results['single']['is4']['cIoU_adap'] == 50      # faint and bad are left
    assert results['interactive']['is4']['IAUC'] == 5 * 4.5     # and of complete frames, bad alone
    assert 'is4: scored 2 of 4 samples, not e.g. is4.c_1' in capsys.readouterr().out


def test_a_sample_that_cannot_be_read_counts_once(monkeypatch, tmp_path, capsys):
    run = Run(monkeypatch, tmp_path)
    for name in ('a_1', 'b_1'):                             # in one batch with the others
        (tmp_path / f'{name}.png').write_bytes(b'no picture')
    scores = run('--benchmarks', 'vggss')['single']['vggss']
    assert (scores['n'], scores['n_expected']) == (2, 4)
    said = capsys.readouterr().out
    assert f'vggss: scored 2 of 4 samples, not e.g. {tmp_path / "a_1.png"} is not' in said


def test_a_set_in_which_one_sample_lacks_its_mask_has_no_segmentation(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    complete = data.BENCHMARKS['is4'](tmp_path)
    complete[-1].masks.clear()
    monkeypatch.setitem(data.BENCHMARKS, 'is4', lambda root: complete)
    with pytest.raises(ValueError, match='is4 below given has no masks, which segmentation needs'):
        run('--benchmarks', 'is4')


def test_an_unreadable_frame_is_printed_once_and_counts_for_each_of_its_sounds(capsys):
    dataset = SimpleNamespace(name='is4', unreadable=[])
    lost = {'error': SampleError('a.png is broken')}
    assert evaluate.readable(dataset, [lost, {'id': 'b'}, lost]) == [{'id': 'b'}]
    assert dataset.unreadable == 2 * ['a.png is broken']
    assert capsys.readouterr().out.count('is4: a.png is broken') == 1

    class Broken(list):
        name = 'is4'
        unreadable = []
        batches = lambda self, size: [[0, 1]]
    with pytest.raises(ValueError, match='no sample of is4 .* because a.png is broken'):
        evaluate.score_benchmark(Broken([lost, lost]), {}, None, [], 2)


def test_maps_that_cannot_be_read_are_counted_out_and_named(monkeypatch, tmp_path, capsys):
    run = Run(monkeypatch, tmp_path)
    folder = tmp_path / 'maps/vggss'
    folder.mkdir(parents=True)
    for name in ('a_1', 'a_2', 'c_1'):
        np.save(folder / f'vggss.{name}.npy', known_map(f'vggss.{name}').half().numpy())
    again = ('--heatmaps', tmp_path / 'maps', '--benchmarks', 'vggss')
    scores = run(*again)['single']['vggss']
    assert (scores['n'], scores['n_expected']) == (3, 4)
    said = capsys.readouterr().out
    assert f'vggss: scored 3 of 4 samples, not e.g. no heatmap {folder / "vggss.b_1.npy"}' in said
    for file in folder.iterdir():
        file.unlink()
    folder.rename(folder.with_name('ext_vggss'))
    for name in ('vggss', 'ext_vggss'):
        (tmp_path / 'maps' / name).mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=f'no sample of {name} .* because no heatmap'):
            run(*again[:-1], name)


def test_every_process_takes_complete_frames_and_none_is_lost(monkeypatch, tmp_path):
    build(tmp_path, monkeypatch)
    for name in ('robust_s4', 'is4'):
        complete = evaluate.Benchmark(name, tmp_path, 96, 2.0)
        groups = [sample.group for sample in complete.samples]
        for batch_size in (1, 2, 3, 5, 8, 9):
            for processes in (1, 2, 3, 4):
                parts = []
                for rank in range(processes):
                    monkeypatch.setattr(evaluate, 'rank_and_processes', lambda: (rank, processes))
                    parts.append(evaluate.share(complete.batches(batch_size)))
                batches = sum(parts, [])
                assert sorted(sum(batches, [])) == list(range(len(complete)))
                for group in groups:
                    assert sum(group in {groups[i] for i in batch} for batch in batches) == 1
                assert max(map(len, parts)) - min(map(len, parts[:-1] or parts)) <= len(batches)


def test_what_other_processes_found_is_gathered(monkeypatch, tmp_path):
    """Another process is stood in for by what merging and gather_lists add to ours."""
    run = Run(monkeypatch, tmp_path)
    merged = []

    def merge(metric):
        other = copy.deepcopy(metric)
        other.ids = [name.replace('ext_flickr', 'another') for name in metric.ids]
        metric.merge(other)
        merged.append(metric)
        return metric

    def gather(mine):
        if mine and isinstance(mine[0], tuple):
            return [*mine, *(({**sample, 'id': 'another.b_1'}, maps) for sample, maps in mine[:1])]
        return mine
    monkeypatch.setattr(evaluate, 'gather_lists', gather)
    monkeypatch.setattr(evaluate, 'merge_across_ranks', merge)
    run('--benchmarks', 'ext_flickr', '--figures', tmp_path / 'p', '--examples', 5,
        '--save-heatmaps', tmp_path / 'm')
    confidences = (tmp_path / 'm/ext_flickr/confidence.csv').read_text().splitlines()
    assert len(confidences) == 1 + 5 + 5 and confidences[-1] == 'another.d_1,0.5'
    shown = run.sheets['robustness', 'ext_flickr'][0][-1]
    assert (shown['id'], shown['scores']['confidence']) == ('another.b_1', 0.8) and len(merged) == 2
    run('--benchmarks', 'is4')
    assert len(merged) == 2 + 6                             # ours and the oracle of three tasks


def test_what_other_processes_could_not_read_is_gathered_too(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    told = []
    (tmp_path / 'a_1.png').write_bytes(b'no picture')
    is_text = lambda mine: bool(mine) and isinstance(mine[0], str)
    monkeypatch.setattr(evaluate, 'gather_lists',
                        lambda mine: [*mine, 'theirs'] if is_text(mine) else mine)
    monkeypatch.setattr(evaluate, 'print_counts',
                        lambda dataset, *rest: told.extend(dataset.unreadable))
    run('--benchmarks', 'vggss')
    assert len(told) == 2 and 'a_1.png' in told[0] and told[1] == 'theirs'


def test_numbers_that_are_none_are_null_in_json():
    nested = {'a': {'b': [1.0, math.nan], 'c': math.nan, 'd': None, 'e': 3, 'f': 0.0}}
    wanted = {'a': {'b': [1.0, None], 'c': None, 'd': None, 'e': 3, 'f': 0.0}}
    assert without_nan(nested) == wanted

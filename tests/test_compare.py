"""evaluate.py --compare: each number stands in its row, measured before the paper's."""

import json
import os
from collections import Counter

import numpy as np
import pytest

import data
import evaluate
import figures.curves
from benchmarks import maps
from conftest import ROOT
from figures.compare import comparison
from known_world import Run, one_thread  # noqa: F401


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines_of(text):
    """{(table, benchmark, method): [cells]}, of all parts; a cell is 'measured | paper'"""
    found = {}
    for part in text.split('\n\n'):
        title, _, rule, *lines = part.split('\n')
        number = int(title.partition('(Table ')[2][0])
        assert len(rule) <= 140                                 # columns of a terminal
        widths = [len(dashes) for dashes in rule.split('  ')]
        for line in lines:
            cells = []
            for width in widths:
                cells.append(' '.join(line[:width].split()))
                line = line[width + 2:]
            benchmark = cells[0] or benchmark
            found.setdefault((number, benchmark, cells[1]), []).extend(cells[2:])
    return found


def scores(first, n=7, **more):
    return {'cIoU': first, 'cIoU_adap': first + 1, 'AUC': first + 2, 'AUC_adap': first + 3, 'n': n,
            'n_expected': 7, **more}


def test_each_result_stands_in_its_row_beside_the_papers_number(tmp_path):
    av = written(tmp_path, 'av.json', {
        'single': {'vggss': scores(10), 'is4': scores(20, n=5)},
        'clipseg_gt_text': {'single': {'vggss': scores(30), 'is4': None}}})
    av_llm = written(tmp_path, 'av_llm.json', {
        'single': {'vggss': scores(40)},
        'clipseg_gt_text': {'single': {'vggss': scores(99)}}})
    baselines = written(tmp_path, 'mine.json', {
        'wav2clip': {'single': {'vggss': {'cIoU': 50, 'cIoU_adap': None, 'AUC': 52}}},
        'clipseg_clap_text': {'robustness': {'robust_s4': {'FPR_noise': 0.256, 'F_noise': 60}}}})
    found = lines_of(comparison([av, av_llm, baselines]))
    assert found[1, 'VGG-SS', 'ours, AV alignment'] == [
        '10.0 | 49.5', '11.0 | 64.0', '12.0 | 46.3', '13.0 | 54.1', '7']
    assert found[1, 'VGG-SS', 'ours, AV + LLM alignment'][0] == '40.0 | 52.1'
    assert found[2, 'IS4', 'ours, AV alignment'][::4] == ['20.0 | 65.9', '5 of 7']
    oracle = '(Oracle) CLIPSeg (w/ GT Text)'
    assert found[1, 'VGG-SS', oracle][0] == '30.0 | 49.5'           # of the first result
    assert found[2, 'IS4', oracle] == ['- | 74.3', '- | 88.5', '- | 59.3', '- | 69.1', '-']
    assert found[1, 'Flickr-SoundNet', oracle] == ['- | -'] * 4 + ['-']
    assert found[1, 'VGG-SS', 'WAV2CLIP ICASSP22'] == [
        '50.0 | 37.7', '- | -', '52.0 | 39.9', '- | -', '-']
    assert found[1, 'VGG-SS', 'SLAVC (w/ OGL) NeurIPS22'][:3] == ['- | 39.8', '- | 59.1', '- | -']
    noise = found[5, 'AVSBench-Robust S4', 'CLIPSeg (w/ CLAP Text)']    # no row of the paper's
    assert noise[5] == '-'                                  # n, the end of the first part
    assert noise[7:9] == ['60.0 | -', '0.26 | -']


def test_the_eight_tables_have_the_papers_rows_in_its_order(tmp_path):
    mine = written(tmp_path, 'av.json', {'multisource': {'vgg_duet': {'CAP': 1.0}}})
    found = lines_of(comparison([mine]))
    assert list(dict.fromkeys(number for number, *_ in found)) == list(range(1, 9))
    assert [len([key for key in found if key[0] == number]) for number in range(1, 9)] == [
        56, 80, 20, 4, 20, 96, 32, 14]
    assert [method for *where, method in found if where == [3, 'Extended Flickr']] == [
        'SLAVC NeurIPS22', 'MarginNCE ICASSP23', 'FNAC CVPR23', 'DenseAV CVPR24',
        'Alignment TPAMI25', 'WAV2CLIP ICASSP22', 'AudioCLIP ICASSP22', 'ImageBind CVPR23',
        'ours, AV alignment', 'ours, AV + LLM alignment']
    assert found[8, 'VGGSound-Duet', 'ours, AV alignment'][0] == '1.0 | 56.8'
    assert found[8, 'VGGSound-Instruments', 'NoPrior CVPR24'] == ['- | -'] * 6 + ['-']
    assert found[4, 'Extended Flickr', 'FNAC CVPR23'][-2] == '- | 42.5'


def test_the_name_of_a_file_is_the_name_of_its_row(tmp_path):
    result = {'single': {'vggss': {'cIoU': [1.0, 2.0, 3.0]}}}       # of a sweep the middle one
    other = written(tmp_path, 'seed 1.json', result)
    prior = written(tmp_path, 'SLAVC NeurIPS22.json', result)
    found = lines_of(comparison([other, prior]))
    rows = [method for number, benchmark, method in found if benchmark == 'VGG-SS']
    assert len(rows) == 29 and rows[-1] == 'seed 1'
    assert found[1, 'VGG-SS', 'seed 1'][0] == '2.0 | -'
    assert found[1, 'VGG-SS', 'SLAVC NeurIPS22'][0] == '2.0 | 37.8'


def test_tasks_of_one_row_may_come_from_several_files_but_each_once(tmp_path):
    one = written(tmp_path, 'one.json', {'wav2clip': {'single': {'vggss': {'cIoU': 1.0}}}})
    two = written(tmp_path, 'two.json', {'wav2clip': {'single': {'is4': {'cIoU': 2.0}}}})
    found = lines_of(comparison([one, two]))
    assert found[1, 'VGG-SS', 'WAV2CLIP ICASSP22'][0] == '1.0 | 37.7'
    assert found[2, 'IS4', 'WAV2CLIP ICASSP22'][0] == '2.0 | 40.5'
    with pytest.raises(ValueError, match='one.json is the second result for wav2clip on vggss'):
        comparison([one, two, one])


def test_rows_of_a_mixture_stand_beside_those_of_another_file(tmp_path):
    files = [written(tmp_path, f'{name}.json', {
        'multisource': {'vgg_duet': {'CAP': value}},
        'hard_mask': {'multisource': {'vgg_duet': {'CAP': value + 1}}}})
        for name, value in (('av', 1.0), ('av_llm', 5.0))]
    found = lines_of(comparison(files))
    assert found[8, 'VGGSound-Duet', 'ours, AV alignment'][0] == '1.0 | 56.8'
    assert found[8, 'VGGSound-Duet', 'av, hard_mask'][0] == '2.0 | -'
    assert found[8, 'VGGSound-Duet', 'av_llm, hard_mask'][0] == '6.0 | -'


@pytest.mark.parametrize('content', ['', '{"single": ', '[' * 100_000])
def test_what_is_no_json_is_named(tmp_path, content):
    path = written(tmp_path, 'av.json', content)
    with pytest.raises(ValueError, match=f'{path} is not readable as JSON'):
        comparison([path])
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='is not readable as JSON'):
        comparison([path])


@pytest.mark.parametrize('content', [
    '[1, 2]', '7', '"av"', '{}', {'trained': {}}, {'single': 3}, {'single': {'avs_ms3': {}}},
    {'wav2clip': {'double': {}}}, {'single': {'is4': [7]}}, {'single': {'is4': {'cIoU': 'high'}}},
    {'single': {'is4': {'cIoU': []}}}, {'single': {'is4': {'cIoU': {}}}},
    {'single': {'is4': {'cIoU': 10 ** 400}}},
    {'single': {'is4': None}, 'clipseg_gt_text': 5}])
def test_what_is_no_result_is_named(tmp_path, content):
    path = written(tmp_path, 'av.json', content)
    with pytest.raises(ValueError, match='is no result .*: name a file that --json') as problem:
        comparison([path])
    assert str(path) in str(problem.value) and '\n' not in str(problem.value)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes here')
def test_a_pipe_is_refused_as_reading_it_would_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / 'av.json')
    for path in (tmp_path / 'av.json', tmp_path):
        with pytest.raises(ValueError, match=f'{path} is a folder or a pipe'):
            comparison([path])


# ------------------------------------------------------------------------------------------------
# evaluate.py --compare and --beside
# ------------------------------------------------------------------------------------------------

def test_compare_prints_the_tables_and_loads_no_model(tmp_path, monkeypatch, capsys):
    mine = written(tmp_path, 'av.json', {'single': {'vggss': scores(10)}})
    monkeypatch.setattr(evaluate, 'evaluate', None)
    monkeypatch.setattr('sys.argv', ['evaluate.py', '--compare', str(mine)])
    evaluate.main()
    assert capsys.readouterr().out == comparison([mine]) + '\n'


@pytest.mark.parametrize('arguments', [
    ['--compare'], ['--compare', ''], ['--compare', 'a.json', '--task', 'single'],
    ['--compare', 'a.json', '--figures', 'd'], ['--beside', 'A=tests'],
    ['--figures', 'd', '--beside', 'tests'], ['--figures', 'd', '--beside', 'A='],
    ['--figures', 'd', '--beside', '=tests'], ['--figures', 'd', '--beside', 'A=not/there'],
    ['--figures', 'd', '--beside', 'A=tests', 'A=docs'],
    ['--beside', 'A=tests', '--image', 'a.png', '--audio', 'a.wav']])
def test_options_that_do_not_go_together_are_refused(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        evaluate.parse_args(arguments)


@pytest.fixture
def two_runs(monkeypatch, tmp_path):
    """Known maps saved by a first run; then a second run beside them. -> run(), (Run, curves)"""
    run = Run(monkeypatch, tmp_path)
    sets = ('--benchmarks', 'is4', 'ext_flickr', 'robust_s4', 'vgg_duet')
    run(*sets, '--save-heatmaps', tmp_path / 'maps')
    curves = {}
    monkeypatch.setattr(figures.curves, 'precision_recall_picture',
                        lambda drawn, path: curves.update({path.name: drawn}))

    def again(frames=5):
        run.sheets.clear()
        results = run(*sets, '--figures', tmp_path / 'p', '--examples', frames, '--beside',
                      f'saved={tmp_path / "maps"}', f'none={tmp_path / "nothing"}')
        return results, [e for examples, _ in run.sheets.values() for e in examples], curves
    (tmp_path / 'nothing').mkdir()
    return again


def test_another_methods_maps_are_scored_and_shown_beside_ours(two_runs):
    _, examples, curves = two_runs()
    assert {e['benchmark'] for e in examples} == {'is4', 'ext_flickr', 'robust_s4', 'vgg_duet'}
    for mine in examples:
        assert list(mine['heats']) == ['overlay', 'by saved']       # the other has no folder
        ours, other = mine['heats'].values()
        assert np.allclose(other, ours, atol=1e-3)                  # sources in the same order
        score = 'CAP' if mine['task'] == 'multisource' else 'IoU'
        assert mine['scores']['by saved'] == mine['scores'][score]
    assert list(curves) == ['precision_recall.png', 'precision_recall_ext_flickr.png']
    ours, saved = curves['precision_recall_ext_flickr.png'].values()
    assert list(curves['precision_recall_ext_flickr.png']) == ['ours', 'by saved']
    assert saved.iou == ours.iou and saved.confidence == ours.confidence
    assert curves['precision_recall.png'] == {'Extended Flickr': ours}


def test_samples_are_read_once_and_only_maps_that_are_shown(two_runs, monkeypatch, tmp_path):
    samples = []
    read_sample = data.Benchmark.__getitem__
    monkeypatch.setattr(data.Benchmark, '__getitem__', lambda benchmark, i: (
        samples.append((benchmark.name, i)) or read_sample(benchmark, i)))
    read = []
    read_heatmap = maps.read_heatmap
    monkeypatch.setattr(maps, 'read_heatmap', lambda folder, name, size: (
        read.append(name.partition('.')[0]) or read_heatmap(folder, name, size)))
    two_runs(1)
    assert len(samples) == len(set(samples)) == 4 + 5 + 8 + 2
    assert Counter(read) == {'is4': 2, 'ext_flickr': 5, 'robust_s4': 4, 'vgg_duet': 2}


def test_a_method_without_maps_of_a_benchmark_is_named(two_runs, tmp_path, capsys):
    two_runs()
    assert f'by none, is not shown: there is no folder {tmp_path / "nothing/is4"}' in (
        capsys.readouterr().out)


def test_maps_that_are_missing_or_wrong_cost_another_method_only(two_runs, tmp_path, capsys,
                                                                 monkeypatch):
    (tmp_path / 'maps/is4/is4.a_2.npy').unlink()
    confidences = tmp_path / 'maps/ext_flickr/confidence.csv'
    confidences.write_text('id,confidence\nstranger,0.5\n')
    results, examples, curves = two_runs()
    assert results['single']['is4']['n'] == 4 and results['robustness']['ext_flickr']['n'] == 5
    lacking = {e['id'] for e in examples if e['heats']['by saved'] is None}
    assert lacking == {'is4.a_2', *(e['id'] for e in examples if e['benchmark'] == 'ext_flickr')}
    said = capsys.readouterr().out
    assert said.count(f'by saved: {confidences} has no line for') == 5
    assert 'no heatmap' in said and list(curves) == ['precision_recall.png']
    capsys.readouterr()
    monkeypatch.setattr(maps, 'MOST_PRINTED', 3)            # of thousands of foreign lines
    two_runs()
    said = capsys.readouterr().out
    assert said.count(f'by saved: {confidences} has no line for') == 2
    assert said.count('by saved: further ones are not printed') == 1

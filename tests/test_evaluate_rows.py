"""From known maps to every cell of evaluate.py: each task, row, threshold and file, by hand.

known_world.py says which maps, and how many units of each lie inside the ground truth.
"""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
import figures.curves
import metrics
from figures import report
from known_world import (EXTENDED, MIXED, NAMES, SHIFTS, SILENT, TASKS, Run, build, known_kind,
                         known_map, known_truth, one_thread)  # noqa: F401

F_GOOD = 1.3 * .75 / (.3 + .75)             # of 3 of the 4 mask units and nothing else
F_FULL = 1.3 * .25 / (.3 * .25 + 1)         # of the whole frame
# IoU with the box: good 7/11, faint 0, bad 3/15; adaptive 5/10, 5/10, 2/13. An AUC is 5 times the
# levels 0, 0.05 .. that an IoU reaches, less a half.
FIRST = {       # good, faint (in one frame), bad, good
    'single': {'cIoU': 50, 'AUC': 5 * (2 * 12.5 + .5 + 4.5) / 4,
               'cIoU_adap': 75, 'AUC_adap': 5 * (3 * 10.5 + 3.5) / 4},
    'segmentation': {'mIoU': 20, 'mIoU_adap': 75 * 3 / 4, 'F': 50 * F_GOOD, 'F_adap': 75 * F_GOOD},
    'interactive': {'IIoU': 100 / 3, 'IAUC': 5 * (.5 + 4.5 + 12.5) / 3,
                    'IIoU_adap': 200 / 3, 'IAUC_adap': 5 * (2 * 10.5 + 3.5) / 3}}
SECOND = {      # good, good (in one frame), good, faint
    'single': {'cIoU': 75, 'AUC': 5 * (3 * 12.5 + .5) / 4, 'cIoU_adap': 100, 'AUC_adap': 52.5},
    'segmentation': {'mIoU': 30, 'mIoU_adap': 75, 'F': 75 * F_GOOD, 'F_adap': 100 * F_GOOD},
    'interactive': {'IIoU': 200 / 3, 'IAUC': 5 * (2 * 12.5 + .5) / 3,
                    'IIoU_adap': 100, 'IAUC_adap': 52.5}}
# full covers its box by exactly 1/2: a hit, but not for LocAcc
EXTENDED_SCORES = {'AP': 100 / 6, 'max_F1': 80, 'precision': 100, 'recall': 200 / 3,
                   'LocAcc': 100 / 3}
NEGATIVE_F = 100 * (.75 * F_GOOD + F_FULL + F_GOOD) / 3
ROBUST_SCORES = {
    'mIoU_positive': 40, 'F_positive': 100 * F_GOOD,
    'mIoU_silence': 20, 'F_silence': 75 * F_GOOD, 'FPR_silence': 5 / 16,
    'mIoU_noise': 12.5, 'F_noise': 100 * F_FULL, 'FPR_noise': 13 / 16,
    'mIoU_offscreen': 0, 'F_offscreen': 100 * F_GOOD, 'FPR_offscreen': 0,
    'G_mIoU': 2 * 40 * (100 - 32.5 / 3) / (140 - 32.5 / 3), 'G_FPR': 3 / 8,
    'G_F': 2 * 100 * F_GOOD * (100 - NEGATIVE_F) / (100 * F_GOOD + 100 - NEGATIVE_F)}
# IoUs of exactly 1/2, 1, 1/10 and 3/10: CIoU asks for more than its level, AUC does not (but in
# doubles 0.3 falls short of 6 * 0.05).
MIXED_SCORES = {'CAP': 60, 'PIAP': (100 * (4 / 9 + 1 / 4) + 70) / 2, 'CIoU@10': 75, 'CIoU@30': 50,
                'CIoU@50': 25, 'AUC': 5 * (10.5 + 20 + 2.5 + 5.5) / 4}


def assert_scores(found, wanted, n=None):
    counts = {} if n is None else {'n': n, 'n_expected': n}
    assert found == pytest.approx({**wanted, **counts}, abs=2e-5)


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
    """`evaluate.py --task all` once, with every file it can write. -> (Run, results, folder)"""
    out = tmp_path_factory.mktemp('rows')
    with pytest.MonkeyPatch.context() as patch:
        run = Run(patch, tmp_path_factory.mktemp('files'))
        run.curves = []
        patch.setattr(figures.curves, 'precision_recall_picture',
                      lambda *given: run.curves.append(given))
        results = run('--task', 'all', '--batch-size', 3, '--json', out / 'a.json',
                      '--csv', out / 'a.csv', '--figures', out / 'pictures', '--examples', 5,
                      '--save-heatmaps', out / 'maps')
    return run, results, out


def test_every_cell_is_the_one_computed_by_hand(everything):
    _, results, _ = everything
    assert list(results) == [*TASKS, 'clipseg_gt_text']
    for task, names in TASKS.items():
        ours = results[task]
        oracle = results['clipseg_gt_text'][task]
        assert list(ours) == list(oracle) == list(names)
        for name in names:
            if task == 'multisource':
                assert_scores(ours[name], MIXED_SCORES, 2)
            elif name.startswith('ext_'):
                assert_scores(ours[name], EXTENDED_SCORES, 5)
            elif name.startswith('robust_'):
                assert_scores(ours[name], ROBUST_SCORES, 8)
            else:
                assert_scores(ours[name], (SECOND if name == 'vpo_ms' else FIRST)[task], 4)
            if task in ('robustness', 'multisource') or name in ('flickr', 'ade20k'):
                assert oracle[name] is None
            else:
                assert_scores(oracle[name], (FIRST if name == 'vpo_ms' else SECOND)[task], 4)


def test_files_hold_the_same_scores(everything):
    _, results, out = everything
    assert json.loads((out / 'a.json').read_text()) == results
    wanted = {}
    for task in TASKS:
        for row, sets in (('ours', results[task]),
                          ('clipseg_gt_text', results['clipseg_gt_text'][task])):
            for name, scores in sets.items():
                for metric, value in (scores or {}).items():
                    wanted[row, task, name, metric] = value
    head, *lines = csv.reader((out / 'a.csv').read_text().splitlines())
    assert head == ['row', 'task', 'benchmark', 'metric', 'value']
    assert {tuple(line[:4]): float(line[4]) for line in lines} == wanted
    assert len(lines) == len(wanted)


def test_rows_of_other_methods_are_scored_printed_and_written_like_ours(monkeypatch, tmp_path,
                                                                       capsys):
    build(tmp_path, monkeypatch)
    wanted = evaluate.tasks_wanted('all', ['is4'])
    dataset = evaluate.Benchmark('is4', tmp_path, 96, 2.0)
    localiser = lambda samples: {
        'of text': [known_map(s['id']) for s in samples],
        'of boxes': [known_map(s['id'], 'oracle').round() for s in samples]}
    scores = {'of text': {}, 'of boxes': {}}
    meters, _ = evaluate.score_benchmark(
        dataset, evaluate.tasks_of('is4', wanted), localiser, list(scores), 16,
        folders=[('of text', tmp_path / 'maps/is4')])
    evaluate.add_scores(scores, wanted, dataset, meters, None, tmp_path / 'a.json',
                        tmp_path / 'a.csv')
    for task, values in FIRST.items():
        assert_scores(scores['of text'][task]['is4'], values, 4)
        found = scores['of boxes'][task]['is4']
        assert found.keys() == {*SECOND[task], 'n', 'n_expected'} - {f'{k}_adap' for k in values}
    assert_scores(scores['of boxes']['single']['is4'],
                  {k: v for k, v in SECOND['single'].items() if not k.endswith('_adap')}, 4)
    assert json.loads((tmp_path / 'a.json').read_text()) == scores
    lines = (tmp_path / 'a.csv').read_text().splitlines()
    assert 'of boxes,single,is4,cIoU,75.0' in lines
    [saved] = {file.stem for file in (tmp_path / 'maps/is4').iterdir()} & {'is4.c_1'}
    assert np.allclose(np.load(tmp_path / f'maps/is4/{saved}.npy'), known_map(saved), atol=1e-3)
    said = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert 'IS4 of text 50.0 75.0 37.5 43.8 4' in said and 'of boxes 75.0 - 47.5 - 4' in said


def test_scores_are_written_before_anything_of_them_is_printed(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)

    def full(*_):
        raise OSError('stdout is full')
    monkeypatch.setattr(evaluate, 'print_counts', full)
    with pytest.raises(OSError, match='stdout is full'):
        run('--task', 'single', '--benchmarks', 'is4', '--json', tmp_path / 'a.json')
    assert_scores(json.loads((tmp_path / 'a.json').read_text())['single']['is4'],
                  FIRST['single'], 4)


def test_an_interrupted_run_leaves_scores_and_sheets_of_the_benchmarks_that_were_finished(
        monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    find = evaluate.localise

    def interrupted(model, samples, **asked):
        if samples[0]['id'].startswith('is4'):
            raise KeyboardInterrupt
        return find(model, samples, **asked)
    monkeypatch.setattr(evaluate, 'localise', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run('--task', 'single', '--json', tmp_path / 'a.json', '--csv', tmp_path / 'a.csv',
            '--figures', tmp_path / 'pictures')
    assert list(run.sheets) == [('single', 'vggss'), ('single', 'flickr')] and not run.reports
    results = json.loads((tmp_path / 'a.json').read_text())
    assert list(results['single']) == ['vggss', 'flickr']
    assert_scores(results['single']['flickr'], FIRST['single'], 4)
    assert_scores(results['clipseg_gt_text']['single']['vggss'], SECOND['single'], 4)
    lines = (tmp_path / 'a.csv').read_text().splitlines()
    assert len(lines) == 1 + 3 * 6 and 'ours,single,flickr,cIoU,50.0' in lines


POLICIES = {    # what another threshold makes of is4 (single, segmentation, interactive)
    'fixed:0.39': ({'cIoU': 75, 'AUC': 5 * (2 * 14.5 + 10.5 + 3.5) / 4},
                   {'mIoU': 100 * (8 / 11 + .6) / 4},
                   {'IIoU': 200 / 3, 'IAUC': 5 * (10.5 + 3.5 + 14.5) / 3}),
    'top50': ({'cIoU': 0, 'AUC': 5 * (3 * 9.5 + 4.5) / 4},
              {'mIoU': 300 / 7},
              {'IIoU': 200 / 3, 'IAUC': 5 * (2 * 10.5 + 3.5) / 3}),
    'adaptive': ({'cIoU': 75, 'AUC': 5 * (3 * 10.5 + 3.5) / 4},
                 {'mIoU': 75 * 3 / 4},
                 {'IIoU': 200 / 3, 'IAUC': 5 * (2 * 10.5 + 3.5) / 3})}
# ... and of the others: units predicted under each negative condition (of 32), the positives' mIoU,
# LocAcc, AP, CIoU@10
OTHERS = {
    'fixed:0.39': ((15, 27, 8), 400 / 11, 100 / 3, 20, 75),
    'top50': ((14, 7, 14), 400 / 7, 0, 12.5, 100),
    'adaptive': ((6, 3, 6), 75, 0, 20, 25)}


@pytest.mark.parametrize('policy', POLICIES)
def test_the_threshold_reaches_the_meters_of_every_task(policy, monkeypatch, tmp_path):
    results = Run(monkeypatch, tmp_path)('--benchmarks', 'is4', 'ext_flickr', 'robust_s4',
                                         'vgg_duet', '--threshold', policy)
    for task, changed in zip(('single', 'segmentation', 'interactive'), POLICIES[policy]):
        assert_scores(results[task]['is4'], {**FIRST[task], **changed}, 4)
    units, miou, loc_acc, ap, ciou = OTHERS[policy]
    robust, extended = (results['robustness'][name] for name in ('robust_s4', 'ext_flickr'))
    negatives = [robust[f'FPR_{name}'] for name in ('silence', 'noise', 'offscreen')]
    assert [32 * value for value in negatives] == pytest.approx(units)
    assert robust['mIoU_positive'] == pytest.approx(miou)
    assert extended['LocAcc'] == pytest.approx(loc_acc)
    assert extended['AP'] == pytest.approx(ap, abs=1e-4)
    assert results['multisource']['vgg_duet']['CIoU@10'] == ciou


def test_a_sweep_gives_nineteen_and_tables_show_the_middle_one(monkeypatch, tmp_path, capsys):
    run = Run(monkeypatch, tmp_path)
    results = run('--benchmarks', 'is4', 'robust_s4', 'vgg_duet',
                                         '--threshold', 'sweep', '--figures', tmp_path / 'p')
    single = results['single']['is4']
    mixed = results['multisource']['vgg_duet']
    assert [single['cIoU'][i] for i in (0, 7, 9)] == [100, 75, 50] and len(single['cIoU']) == 19
    assert results['segmentation']['is4']['mIoU'][9] == pytest.approx(20)
    assert results['interactive']['is4']['IIoU'][9] == pytest.approx(100 / 3)
    assert results['robustness']['robust_s4']['FPR_noise'][9] == pytest.approx(13 / 16)
    assert [mixed['CIoU@10'][i] for i in (9, 16)] == [75, 50]       # at 0.85, 0.8 is nothing
    said = capsys.readouterr().out
    assert 'IS4        ours    50.0      75.0  37.5      43.8  4' in said
    shown = run.sheets['single', 'is4'][0]                  # and so does a picture
    assert [e['scores']['IoU'] for e in shown] == pytest.approx([7 / 11, 0, .2, 7 / 11])


# ------------------------------------------------------------------------------------------------
# Maps and confidences on disk
# ------------------------------------------------------------------------------------------------

def test_saved_maps_are_named_by_their_sample(everything):
    _, _, out = everything
    for name in TASKS['single'] + TASKS['robustness']:
        saved = {file.stem: np.load(file) for file in (out / 'maps' / name).glob('*.npy')}
        assert len(saved) == {'ext': 5, 'robust': 8}.get(name.partition('_')[0], 4)
        for sample, one in saved.items():
            assert np.allclose(one, known_map(sample), atol=1e-3)
    for name in TASKS['multisource']:
        saved = {file.stem: np.load(file) for file in (out / 'maps' / name).glob('*.npy')}
        assert sorted(saved) == sorted(f'{name}.{sample}_{k}' for sample in MIXED for k in (0, 1))
        for sample, one in saved.items():
            assert np.allclose(one, known_map(sample[:-2])[int(sample[-1])], atol=1e-3)
    for name in ('ext_vggss', 'ext_flickr'):
        head, *lines = csv.reader((out / 'maps' / name / 'confidence.csv').read_text().splitlines())
        found = {sample: round(float(value), 4) for sample, value in lines}
        assert head == ['id', 'confidence']
        assert found == {f'{name}.{sample}': value for sample, (_, value) in EXTENDED.items()}


def test_saved_maps_score_the_same_without_a_model(everything, monkeypatch, tmp_path):
    _, results, out = everything
    run = Run(monkeypatch, tmp_path)
    again = run('--heatmaps', out / 'maps', '--figures', tmp_path / 'pictures')
    assert run.loaded == [] and run.batches == []
    for task, names in TASKS.items():
        for name in names:
            assert_scores(again[task][name], results[task][name])
            assert again['clipseg_gt_text'][task][name] is None
    assert run.reports[0][-1]['heatmaps'] == str(out / 'maps')


def test_maps_on_disk_are_not_called_ours(everything, monkeypatch, tmp_path, capsys):
    _, results, out = everything
    run = Run(monkeypatch, tmp_path)
    run('--heatmaps', out / 'maps', '--preset', 'paper', '--figures', tmp_path / 'pictures',
        '--csv', tmp_path / 'a.csv', '--benchmarks', 'vggss', 'ext_vggss',
        '--beside', f'others={out / "maps"}')
    said = capsys.readouterr().out
    assert 'VGG-SS     heatmaps ' in said and "paper's AV alignment  49.5" in said
    assert 'ours' not in said and 'Extended VGG-SS  heatmaps' in said and 'oracle' not in said
    [(_, tables, _, _)] = run.reports
    assert [list(rows) for rows, _ in tables.values()] == 2 * [['heatmaps', 'oracle']]
    rows = {line.partition(',')[0] for line in (tmp_path / 'a.csv').read_text().splitlines()}
    assert rows == {'row', 'heatmaps'}


def test_maps_without_confidences_are_ranked_by_their_highest_quarter(monkeypatch, tmp_path,
                                                                      capsys):
    run = Run(monkeypatch, tmp_path)
    folder = tmp_path / 'maps/ext_vggss'
    seen = []
    folder.mkdir(parents=True)
    for name in EXTENDED:
        np.save(folder / f'ext_vggss.{name}.npy', known_map(f'ext_vggss.{name}').half().numpy())
    update = metrics.Extended.update

    def spy(meter, heat, truth, confidence, condition):
        seen.append((confidence, [name == 'sounding' for name in condition]))
        update(meter, heat, truth, confidence, condition)
    monkeypatch.setattr(metrics.Extended, 'update', spy)
    run('--heatmaps', tmp_path / 'maps', '--benchmarks', 'ext_vggss')
    [(confidence, sounding)] = seen
    best = (.96 + .91 + .86 + .81) / 4                      # the four highest units of a good map
    assert confidence == pytest.approx([best, best / 2, .9, best, best], abs=1e-3)
    assert sounding == [True, True, True, False, False] and 'SLAVC' in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------

def test_examples_hold_frame_sound_and_confidence_of_one_sample(everything):
    run, _, _ = everything
    examples = run.reports[0][2]
    assert {(e['task'], e['benchmark']) for e in examples} == {
        (task, name) for task, names in TASKS.items() for name in names}
    numbers = {name: number for number, name in enumerate(SHIFTS, 1)}
    for e in examples:
        benchmark, name = e['id'].split('.')
        number = numbers[name[:3]]
        assert e['benchmark'] == benchmark
        assert e['id'].startswith(e['group'])
        assert name in (name[:3], f'{name[:3]}_{e["condition"]}')
        if e['task'] in ('single', 'interactive') and benchmark != 'flickr':
            assert e['label'] == (None if benchmark == 'ade20k' else NAMES[name])
        colour = e['frame'][5, 5].tolist()
        assert colour == pytest.approx([40 * number, 10, 255 - 40 * number], abs=2)
        if e['condition'] == 'noise':
            assert 0.5 < e['wav'].abs().max() <= 1
        else:
            level = 0 if e['condition'] == 'silence' else number / 10
            assert np.allclose(e['wav'], level, atol=1e-3)
        confidence = EXTENDED[name][1] if benchmark.startswith('ext_') else None
        assert e['scores'].get('confidence') == pytest.approx(confidence)


IOU = {'boxes': {'good': 7 / 11, 'faint': 0, 'bad': .2, 'full': .5},
       'mask': {'good': .4, 'faint': 0, 'bad': 0, 'full': .25}}


def test_examples_hold_truth_map_and_iou_of_their_own_task(everything):
    run, _, _ = everything
    for e in run.reports[0][2]:
        name = e['id'].split('.')[1]
        benchmark = e['benchmark']
        if e['task'] == 'multisource':
            continue
        boxes = benchmark.startswith('ext_') or e['task'] in ('single', 'interactive')
        what = 'boxes' if boxes else 'mask'
        silent = benchmark.startswith('ext_') and name in SILENT
        assert np.array_equal(e['truth'][0], known_truth(e['id'], what) * (not silent))
        assert np.array_equal(e['heats']['overlay'][0], known_map(e['id']))
        assert e['scores']['IoU'] == pytest.approx(0 if silent else IOU[what][known_kind(e['id'])])
        if e['task'] == 'robustness' or benchmark in ('flickr', 'ade20k'):
            assert e['oracle'] is None
        else:
            assert np.array_equal(e['oracle'], known_map(e['id'], 'oracle'))


CAP = {'a_1': (1 / 2 + 1) / 2,              # b_1: 1 or 3 of 10 units, the others among all the rest
       'b_1': (.1 + .9 * 10 / 32 + .3 + .7 * 10 / 32) / 2}


def test_examples_of_mixtures_show_each_source_beside_its_map_and_the_cap_of_both(everything):
    run, _, _ = everything
    examples = [e for e in run.reports[0][2] if e['task'] == 'multisource']
    for e in examples:
        truth = known_truth(e['id'], 'sources')
        heat = known_map(e['id'])
        if e['id'].endswith('a_1'):
            heat = heat.flip(0)                             # its maps come crosswise
        for k in (0, 1):
            assert np.array_equal(e['truth'][k], truth[k])
            assert np.array_equal(e['heats']['overlay'][k], heat[k])
        assert e['scores'] == pytest.approx({'CAP': CAP[e['id'][-3:]]}) and e['oracle'] is None
        assert e['frame'].shape == (224, 448, 3)
    assert len(examples) == 4


def test_the_report_is_given_every_table_and_what_was_scored(everything):
    run, results, _ = everything
    [(path, tables, _, facts)] = run.reports
    assert path.name == 'report.html'
    oracle = results['clipseg_gt_text']
    assert tables == {task: ({'ours': results[task], 'oracle': oracle[task]}, None)
                      for task in TASKS}
    assert facts['checkpoint'].endswith('miniature/weights/av.pt')
    assert (facts['preset'], facts['threshold']) == ('miniature', 'fixed:0.5')


def test_each_sheet_has_the_examples_of_its_task_and_benchmark(everything):
    run, _, out = everything
    assert len(run.sheets) == sum(map(len, TASKS.values()))
    for (task, name), (examples, path) in run.sheets.items():
        assert path == out / f'pictures/{task}_{name}.png'
        assert {(e['task'], e['benchmark']) for e in examples} == {(task, name)}
        count = {'ext': 5, 'robust': 8, 'vgg': 2}.get(name.partition('_')[0], 4)
        assert len({e['id'] for e in examples}) == len(examples) == count


def test_pictures_are_of_frames_spread_over_the_benchmark_with_all_sounds(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    common = ['--figures', tmp_path / 'p', '--batch-size', 2]
    run('--task', 'interactive', '--benchmarks', 'is4', '--examples', 2, *common)
    run('--task', 'robustness', '--benchmarks', 'robust_s4', '--examples', 1, *common)
    ids = {task: [e['id'].split('.')[1] for e in examples]
           for (task, _), (examples, _) in run.sheets.items()}
    assert ids['interactive'] == ['a_1', 'a_2', 'c_1']      # the first and the third frame
    assert ids['robustness'] == ['a_1', 'a_1_silence', 'a_1_noise', 'a_1_offscreen']
    run('--task', 'robustness', '--benchmarks', 'ext_vggss', '--examples', 2, *common)
    examples, _ = run.sheets['robustness', 'ext_vggss']     # the first and the fourth, not second
    assert [e['scores']['confidence'] for e in examples] == [.9, .7]


def test_pictures_prefer_frames_of_several_sounds_where_there_are_enough():
    samples = [SimpleNamespace(id=f'{group}{k}', group=group)
               for group, sounds in zip('abcdef', (1, 2, 1, 3, 1, 2)) for k in range(sounds)]
    shown = {frames: report.ids_to_show(samples, frames) for frames in (1, 2, 3, 4, 6)}
    assert [{name[0] for name in ids} for ids in shown.values()] == list(map(
        set, ('b', 'bf', 'bdf', 'ace', 'abcdef')))
    assert shown[3] == {'b0', 'b1', 'd0', 'd1', 'd2', 'f0', 'f1'}


def test_the_curve_of_figure_7_has_its_axes_and_the_point_of_max_f1(everything, monkeypatch,
                                                                   tmp_path):
    run, _, _ = everything
    [(curves, path)] = run.curves
    assert list(curves) == ['Extended VGG-SS', 'Extended Flickr']
    assert path.name == 'precision_recall.png'
    metric = curves['Extended Flickr']
    precision, recall = metric.precision_recall(sorted(metric.confidence))  # from the lowest on
    assert precision.tolist() == pytest.approx([2 / 5, 1 / 2, 2 / 3, 1, 1])
    assert recall.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 1 / 3])
    drawn = []
    axes = figures.curves.axes_of
    monkeypatch.setattr(figures.curves, 'axes_of',
                        lambda *given: drawn.append(axes(*given)) or drawn[0])
    figures.curves.precision_recall_picture({'one': metric}, tmp_path / 'p.png')
    [axis] = drawn[0][1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ('recall', 'precision')
    line, dot = axis.lines
    assert line.get_label() == 'one, max-F1 80.0'
    assert line.get_xdata().tolist() == recall.tolist()
    assert line.get_ydata().tolist() == precision.tolist()
    assert [*dot.get_xdata(), *dot.get_ydata()] == pytest.approx([2 / 3, 1])

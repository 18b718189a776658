"""The five tasks from end to end: every cell filled, from one process, several, or files."""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import metrics
from benchmarks.maps import maps_below, read_confidences, read_heatmap, read_maps, save_heatmaps
from conftest import ROOT
from data import Benchmark, SampleError
from localise import localise_sources
from known_world import TASKS, one_thread  # noqa: F401
from model import embed_image, encode_image, load_model

METRICS = {     # INTERFACES of the JSON: what every benchmark of a task must hold
    'single': ['cIoU', 'cIoU_adap', 'AUC', 'AUC_adap'],
    'segmentation': ['mIoU', 'mIoU_adap', 'F', 'F_adap'],
    'interactive': ['IIoU', 'IIoU_adap', 'IAUC', 'IAUC_adap'],
    'multisource': ['CAP', 'PIAP', 'AUC', 'CIoU@10', 'CIoU@30', 'CIoU@50'],
    'ext': ['AP', 'max_F1', 'LocAcc', 'precision', 'recall'],
    'robust': [f'{m}_{c}' for c in ('positive', 'silence', 'noise', 'offscreen')
               for m in ('mIoU', 'F')]
              + ['FPR_silence', 'FPR_noise', 'FPR_offscreen', 'G_mIoU', 'G_F', 'G_FPR']}


def run(*arguments):
    """evaluate.py in this process. -> results, what it printed"""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        results = evaluate.evaluate(evaluate.parse_args([*map(str, arguments)]))
    return results, said.getvalue()


@pytest.fixture(scope='module')
def everything(small_world, tmp_path_factory):
    """`evaluate.py --task all` on the small world, once: its folder, and what it printed."""
    out = tmp_path_factory.mktemp('all')
    _, said = run('--task', 'all', '--data-root', small_world, '--json', out / 'a.json',
                  '--csv', out / 'a.csv', '--figures', out / 'pictures', '--examples', 1,
                  '--save-heatmaps', out / 'maps', '--batch-size', 8)
    return out, said


def test_every_cell_of_every_table_is_filled(everything):
    out, said = everything
    results = json.loads((out / 'a.json').read_text())
    for task, names in TASKS.items():
        assert list(results[task]) == list(names)
        for name in names:
            wanted = METRICS.get(task) or METRICS['ext' if name.startswith('ext_') else 'robust']
            scores = results[task][name]
            assert set(scores) == {*wanted, 'n', 'n_expected'}
            assert scores['n'] == scores['n_expected'] > 0
            assert all(math.isfinite(scores[metric]) for metric in wanted), (name, scores)
            oracle = results['clipseg_gt_text'][task][name]
            assert (oracle is not None) == (task in ('single', 'segmentation', 'interactive')
                                            and name not in ('flickr', 'ade20k'))
    for title in ('Tables 1 and 2', 'Table 3', 'Table 5', 'Table 6', 'Table 7', 'Table 8'):
        assert title in said
    lines = list(csv.reader((out / 'a.csv').read_text().splitlines()))
    assert lines[0] == ['row', 'task', 'benchmark', 'metric', 'value'] and len(lines) > 200


@pytest.mark.parametrize('flags, reading', [([], 'release'), (['--reading', 'paper'], 'paper')])
def test_the_reading_asked_for_reaches_every_meter_and_the_table(flags, reading, everything,
                                                                 small_world, monkeypatch):
    made = []
    init = metrics.Streaming.__init__

    def remember(meter, threshold='fixed:0.5', reading='release'):
        made.append(reading)
        init(meter, threshold, reading)

    monkeypatch.setattr(metrics.Streaming, '__init__', remember)
    results, said = run('--heatmaps', everything[0] / 'maps', '--data-root', small_world,
                        '--benchmarks', 'vggss', 'is4', 'ext_flickr', 'robust_ms3',
                        'vgg_instruments', *flags)
    assert len(made) >= 6 + 4 and set(made) == {reading}            # robust_ms3 has four conditions
    assert ('AP_textbook' in results['robustness']['ext_flickr']) == (reading == 'paper')
    assert ('textbook AP' in said) == (reading == 'paper')


def test_pictures_and_a_report_come_with_every_task(everything):
    out, _ = everything
    for task, names in TASKS.items():
        for name in names:
            assert Image.open(out / f'pictures/{task}_{name}.png').width > 200
    assert Image.open(out / 'pictures/precision_recall.png').width > 200
    report = (out / 'pictures/report.html').read_text()
    assert report.count('<audio') >= 14 and 'http://' not in report and 'https://' not in report


def test_three_processes_score_what_one_scores(everything, small_world, tmp_path):
    one = json.loads((everything[0] / 'a.json').read_text())
    named = ('flickr', 'is4', 'avs_ms3', 'ext_flickr', 'robust_ms3', 'vgg_instruments')
    command = ['--standalone', '--nproc_per_node=3', ROOT / 'evaluate.py', '--device', 'cpu',
               '--benchmarks', *named, '--data-root', small_world,
               '--json', tmp_path / 'three.json', '--save-heatmaps', tmp_path / 'maps',
               '--batch-size', 8]
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', *map(str, command)],
                          capture_output=True, text=True, cwd=ROOT, timeout=400,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    three = json.loads((tmp_path / 'three.json').read_text())
    # some sets have fewer batches than processes. A sound is encoded beside others, which rounds
    # in another way.
    for task, names in TASKS.items():
        assert list(three[task]) == [name for name in names if name in named]
        for name in three[task]:
            assert three[task][name] == pytest.approx(one[task][name], abs=0.01), name
            oracle, alone = (scores['clipseg_gt_text'][task][name] for scores in (three, one))
            assert oracle == pytest.approx(alone, abs=0.01), name
    confidences = [read_confidences(folder / 'maps/ext_flickr')
                   for folder in (everything[0], tmp_path)]
    assert confidences[0] == pytest.approx(confidences[1], abs=1e-5)


def test_saved_heatmaps_score_as_the_model_did(everything, small_world):
    out, _ = everything
    maps, _ = run('--heatmaps', out / 'maps', '--task', 'all', '--data-root', small_world)
    model = json.loads((out / 'a.json').read_text())
    cut = ('cIoU', 'AUC', 'mIoU', 'IIoU', 'IAUC', 'AP', 'LocAcc', 'n', 'G_FPR')
    for task, names in TASKS.items():
        for name in names:
            for metric, value in model[task][name].items():
                # maps keep their side of 0.5: what is cut there is equal to the last digit. Ranks
                # and the 255 thresholds of F see the rounding.
                exact = metric in cut and task != 'multisource'
                assert maps[task][name][metric] == pytest.approx(value, abs=0 if exact else 1.0)


def test_maps_of_another_method_are_checked_one_by_one(everything, small_world, tmp_path, capsys):
    maps = shutil.copytree(everything[0] / 'maps/is4', tmp_path / 'maps/is4').parent
    files = sorted((maps / 'is4').glob('*.npy'))
    np.save(files[0], np.zeros((112, 112), np.float16))
    np.save(files[1], np.full((224, 224), np.nan, np.float16))
    files[2].unlink()
    picture = Image.fromarray((np.load(files[3]) * 255).astype(np.uint8))       # a map as a picture
    picture.save(files[3].with_suffix('.png'))
    files[3].unlink()
    results, said = run('--heatmaps', maps, '--task', 'interactive', '--benchmarks', 'is4',
                        '--data-root', small_world)
    scores = results['interactive']['is4']
    assert scores['n'] == scores['n_expected'] - 3
    said += capsys.readouterr().out
    assert '(112, 112)' in said and 'NaN' in said
    assert files[2].stem in said and files[3].stem not in said
    with pytest.raises(FileNotFoundError, match='no folder .*ext_vggss; --benchmarks or --task'):
        run('--heatmaps', maps, '--task', 'robustness', '--data-root', small_world)


def test_pictures_say_the_iou_and_the_pairing_that_the_scores_are_made_of():
    heat = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = (heat > 0.4).float()
    samples = [{'id': name, 'condition': condition, 'mask': mask, 'boxes': mask} for
               name, condition, mask in zip('abc', ('silence', 'positive', 'silence'), truth)]
    single, robust = metrics.SingleSource('top50'), metrics.Robustness('fixed:0.7')
    for maps in (heat, 1 - heat):
        evaluate.feed(robust, samples, list(maps), 'ours')
        evaluate.feed(single, samples, list(maps), 'ours')
    assert single.ids == ['b', 'b'] and len(single.iou) == 2            # the only positive one
    assert robust.ids == [*'abcabc'] and len(robust.iou) == 6           # in the order of update
    assert robust.iou[0::3] + robust.iou[2::3] == [
        robust.conditions['silence'].iou[i] for i in (0, 2, 1, 3)]
    two = torch.stack([truth[:1], 1 - truth[:1]], 1)    # (1, 2, 8, 8)
    meter = metrics.MultiSource()
    meter.update(two.flip(1), two)
    assert meter.pairings == [[1, 0]]


@pytest.mark.parametrize('content, words', [
    (np.zeros((224, 224), complex), 'holds complex128'),
    (np.full((224, 224), 2.0), 'numbers in 0..1'), (np.full((224, 224), -0.1), 'numbers in 0..1')])
def test_odd_arrays_are_named(tmp_path, content, words):
    np.save(tmp_path / 'a.npy', content)
    with pytest.raises(SampleError, match=words):
        read_heatmap(tmp_path, 'a', (224, 224))


def test_pictures_of_16_bits_or_in_colour_are_no_heatmaps(tmp_path):
    for mode in ('I;16', 'RGB'):
        Image.new(mode, (224, 224)).save(tmp_path / 'a.png')
        with pytest.raises(SampleError, match='a heatmap is grey, 8 bits'):
            read_heatmap(tmp_path, 'a', (224, 224))


@pytest.mark.parametrize('kind', ['pickled', 'npz', 'bracket', 'huge'])
def test_a_damaged_heatmap_or_one_of_another_format_is_refused(tmp_path, kind):
    path = tmp_path / 'a.npy'
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    if kind == 'npz':
        with open(path, 'wb') as file:
            np.savez(file, np.zeros((224, 224)))
    elif kind != 'pickled':
        np.save(path, np.zeros((224, 224)))
        shape = {'bracket': b'(224, 224', 'huge': b'(20000000000, 9)'}[kind]
        header = b'(224, 224), }'.ljust(20)
        path.write_bytes(path.read_bytes().replace(header, (shape + b', }').ljust(20)))
    with pytest.raises(SampleError, match='a.npy is not a readable heatmap'):
        read_heatmap(tmp_path, 'a', (224, 224))


def test_saving_keeps_every_pixel_on_its_side_of_the_threshold(tmp_path):
    heat = torch.tensor([0.5, 0.5 - 1e-6, 0.49999, 0.50001, 0.0, 1.0]).view(1, 2, 3)
    save_heatmaps(tmp_path, ['a'], heat)
    saved = torch.from_numpy(np.load(tmp_path / 'a.npy')).float()
    assert torch.equal(saved >= 0.5, heat[0] >= 0.5) and torch.equal(saved > 0.5, heat[0] > 0.5)
    assert (saved - heat[0]).abs().max() < 1e-3


def test_a_confidence_file_with_a_bad_line_is_named(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((224, 224), np.float16))
    table, sample = tmp_path / 'confidence.csv', {'id': 'a'}
    needs = {'boxes', 'confidence'}
    assert read_confidences(tmp_path) == {}
    read_maps(maps_below(tmp_path, {'boxes'}), [sample])
    assert 'confidence' not in sample
    table.write_text('id,confidence\na,0.25\n')
    read_maps(maps_below(tmp_path, needs), [sample])
    assert sample['confidence'] == {'heatmaps': 0.25}
    table.write_text('id,confidence\na,0.25\nonly-one-column\n')
    with pytest.raises(ValueError, match='confidence.csv, line 3'):
        read_confidences(tmp_path)
    table.write_text('b,0.5\n')
    read_maps(maps_below(tmp_path, needs), [sample])
    assert 'confidence.csv has no line for a' in str(sample['error'])


@pytest.fixture(scope='module')
def model():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')


@torch.no_grad()
def test_the_sources_of_a_mixture_are_named_by_the_most_similar_masked_images(model, small_world):
    model, tokenizer = model
    dataset = Benchmark('vgg_duet', small_world, 96, 2.0)
    samples = [dataset[i] for i in range(3)]
    classes = model.embed_text(tokenizer, dataset.classes)
    found = localise_sources(model, samples, classes)['ours']
    assert len(found) == 3 and found[0].shape == (2, 224, 448)
    assert 0 <= found[0].min() and found[0].max() <= 1
    # the same by the sentences of 4.2.5, one image and one class at a time
    image, A = samples[0]['image'][None], model.embed_audio(samples[0]['wav'][None])
    similar = []
    for c in classes:
        A_c = c.expand(1, 1, -1)
        vision = encode_image(model.clipseg, image)
        mask = model.heatmaps(vision, A_c, image.shape[-2:])[0]
        v = embed_image(model.clipseg, image * mask)
        similar.append(torch.cosine_similarity(v, A).item())
    best = sorted(range(len(similar)), key=lambda i: -similar[i])[:2]
    expected = [model.heatmaps(vision, classes[i].expand(1, 1, -1), (224, 448))[0, 0] for i in best]
    assert torch.allclose(found[0], torch.stack(expected), atol=1e-4)

"""The five tasks from end to end: every cell filled, the same from several processes, and from heatmaps on disk."""

import csv
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
from conftest import ROOT, failed_in_one_sentence
from data import Benchmark, SampleError, collate
from evaluate import TASKS, feed
from heatmaps import (localise, localise_sources, read_confidences, read_heatmap, read_localised,
                      save_heatmaps)
from model import embed_image, encode_image, load_model

METRICS = {     # INTERFACES of the JSON: what every benchmark of a task must hold
    'single': ['cIoU', 'cIoU_adap', 'AUC', 'AUC_adap'], 'segmentation': ['mIoU', 'mIoU_adap', 'F', 'F_adap'],
    'interactive': ['IIoU', 'IIoU_adap', 'IAUC', 'IAUC_adap'],
    'multisource': ['CAP', 'PIAP', 'AUC', 'CIoU@10', 'CIoU@30', 'CIoU@50'],
    'ext': ['AP', 'max_F1', 'LocAcc', 'precision', 'recall'],
    'robust': [f'{m}_{c}' for c in ('positive', 'silence', 'noise', 'offscreen') for m in ('mIoU', 'F')]
              + ['FPR_silence', 'FPR_noise', 'FPR_offscreen', 'G_mIoU', 'G_F', 'G_FPR']}


# torchrun gives each process one thread, and a sum over two threads rounds differently
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def run_processes(count, *arguments):
    """evaluate.py under torchrun."""
    return subprocess.run([sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}', '--master_port=29617',
                           str(ROOT / 'evaluate.py'), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          timeout=400, env=ONE_THREAD)


@pytest.fixture(scope='module')
def everything(small_world, tmp_path_factory):
    """`evaluate.py --task all` on the small world, once: the folder of what it wrote, and what it printed."""
    out = tmp_path_factory.mktemp('all')
    done = subprocess.run([sys.executable, str(ROOT / 'evaluate.py'), '--task', 'all', '--data-root', str(small_world), '--json',
                           str(out / 'a.json'), '--csv', str(out / 'a.csv'), '--figures', str(out / 'pictures'),
                           '--save-heatmaps', str(out / 'maps'), '--batch-size', '8', '--examples', '2'],
                          capture_output=True, text=True, cwd=ROOT, timeout=400, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_cell_of_every_table_is_filled(everything):
    out, said = everything
    results = json.loads((out / 'a.json').read_text())
    for task, names in TASKS.items():
        assert list(results[task]) == list(names)
        for name in names:
            wanted = METRICS.get(task) or METRICS['ext' if name.startswith('ext_') else 'robust']
            scores = results[task][name]
            assert set(scores) == {*wanted, 'n', 'n_expected'} and scores['n'] == scores['n_expected'] > 0
            assert all(math.isfinite(scores[metric]) for metric in wanted), (name, scores)
            oracle = results['clipseg_gt_text'][task][name]
            assert (oracle is not None) == (task in ('single', 'segmentation', 'interactive')
                                            and name not in ('flickr', 'ade20k'))
    for title in ('Tables 1 and 2', 'Table 3', 'Table 5', 'Table 6', 'Table 7', 'Table 8'):
        assert title in said
    lines = list(csv.reader((out / 'a.csv').read_text().splitlines()))
    assert lines[0] == ['row', 'task', 'benchmark', 'metric', 'value'] and len(lines) > 200


@pytest.mark.parametrize('flags, reading', [([], 'release'), (['--reading', 'paper'], 'paper')])
def test_the_reading_asked_for_reaches_every_meter_and_the_table(flags, reading, everything, small_world, monkeypatch, capsys):
    made, meter_for = [], evaluate.meter_for

    def remember(task, dataset, *settings):
        meter = meter_for(task, dataset, *settings)
        made.extend(meter.conditions.values() if isinstance(meter, metrics.Robustness) else [meter])
        return meter

    monkeypatch.setattr(evaluate, 'meter_for', remember)
    results = evaluate.evaluate(evaluate.parse_args([
        '--heatmaps', str(everything[0] / 'maps'), '--data-root', str(small_world), '--benchmarks', 'vggss', 'is4',
        'ext_flickr', 'robust_ms3', 'vgg_instruments', *flags]))
    assert len(made) == 6 + 4 and {meter.reading for meter in made} == {reading}    # robust_ms3 has four conditions
    assert ('AP_textbook' in results['robustness']['ext_flickr']) == (reading == 'paper')
    assert ('textbook AP' in capsys.readouterr().out) == (reading == 'paper')


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
    done = run_processes(3, '--task', 'all', '--data-root', small_world, '--json', tmp_path / 'three.json',
                         '--save-heatmaps', tmp_path / 'maps', '--batch-size', 8)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'three.json').read_text()) == one         # though some sets have fewer batches than processes
    confidences = [sorted((folder / 'maps/ext_flickr/confidence.csv').read_text().splitlines())
                   for folder in (everything[0], tmp_path)]
    assert confidences[0] == confidences[1]


def test_saved_heatmaps_score_as_the_model_did(everything, small_world, script, tmp_path):
    out, _ = everything
    done = script('evaluate.py', '--heatmaps', out / 'maps', '--task', 'all', '--data-root', small_world, '--json',
                  tmp_path / 'b.json', env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    model, maps = json.loads((out / 'a.json').read_text()), json.loads((tmp_path / 'b.json').read_text())
    for task, names in TASKS.items():
        for name in names:
            for metric, value in model[task][name].items():
                # maps keep their side of 0.5: what is cut there is equal to the last digit. Ranks and the 255 thresholds
                # of F see the rounding.
                exact = metric in ('cIoU', 'AUC', 'mIoU', 'IIoU', 'IAUC', 'AP', 'LocAcc', 'n', 'G_FPR') and task != 'multisource'
                assert maps[task][name][metric] == pytest.approx(value, abs=0 if exact else 1.0), (name, metric)


def test_maps_of_another_method_are_checked_one_by_one(everything, small_world, script, tmp_path):
    maps = shutil.copytree(everything[0] / 'maps/is4', tmp_path / 'maps/is4').parent
    files = sorted((maps / 'is4').glob('*.npy'))
    np.save(files[0], np.zeros((112, 112), np.float16))
    np.save(files[1], np.full((224, 224), np.nan, np.float16))
    files[2].unlink()
    Image.fromarray((np.load(files[3]) * 255).astype(np.uint8)).save(files[3].with_suffix('.png'))      # a map as a picture
    files[3].unlink()
    arguments = ['--heatmaps', maps, '--task', 'interactive', '--benchmarks', 'is4', '--data-root', small_world]
    done = script('evaluate.py', *arguments, '--json', tmp_path / 'c.json')
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / 'c.json').read_text())['interactive']['is4']
    assert scores['n'] == scores['n_expected'] - 3
    said = done.stdout + done.stderr
    assert '(112, 112)' in said and 'NaN' in said and files[2].stem in said and files[3].stem not in said
    failed_in_one_sentence(script('evaluate.py', '--heatmaps', maps, '--task', 'robustness', '--data-root', small_world),
                           'ext_vggss', '--heatmaps')


def test_pictures_say_the_iou_and_the_pairing_that_the_scores_are_made_of():
    heat = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = (heat > 0.4).float()
    batch = {'id': list('abc'), 'condition': ['silence', 'positive', 'silence'], 'mask': truth, 'boxes': truth}
    single, robust = metrics.SingleSource('top50'), metrics.Robustness('fixed:0.7')
    for meter in (single, robust):
        feed(meter, batch, heat)
        feed(meter, batch, 1 - heat)                    # the batch before must not answer for this one
    assert single.last_iou == single.iou[3:]
    silent = robust.conditions['silence'].iou[2:]
    positive = robust.conditions['positive'].iou[1:]
    assert robust.last_iou == [silent[0], positive[0], silent[1]]
    two = torch.stack([truth[:1], 1 - truth[:1]], 1)    # (1, 2, 8, 8)
    meter = metrics.MultiSource()
    meter.update(two.flip(1), two)
    assert meter.pairing.tolist() == [[1, 0]] and meter.last_iou is None


@pytest.mark.parametrize('content, words', [
    (np.zeros((224, 224), complex), 'no array of numbers'), (np.full((224, 224), 2.0), 'outside 0..1')])
def test_odd_arrays_are_named(tmp_path, content, words):
    np.save(tmp_path / 'a.npy', content)
    with pytest.raises(SampleError, match=words):
        read_heatmap(tmp_path, 'a', (224, 224))


def test_pictures_of_16_bits_or_in_colour_are_no_heatmaps(tmp_path):
    for mode in ('I;16', 'RGB'):
        Image.new(mode, (224, 224)).save(tmp_path / 'a.png')
        with pytest.raises(SampleError, match='a heatmap is grey, 8 bits'):
            read_heatmap(tmp_path, 'a', (224, 224))


def test_a_pickled_heatmap_is_refused(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(SampleError, match='a.npy is not a readable heatmap'):
        read_heatmap(tmp_path, 'a', (224, 224))


def test_saving_keeps_every_pixel_on_its_side_of_the_threshold(tmp_path):
    heat = torch.tensor([0.5, 0.5 - 1e-6, 0.49999, 0.50001, 0.0, 1.0]).view(1, 2, 3)
    save_heatmaps(tmp_path, ['a'], heat)
    saved = torch.from_numpy(np.load(tmp_path / 'a.npy')).float()
    assert torch.equal(saved >= 0.5, heat[0] >= 0.5) and torch.equal(saved > 0.5, heat[0] > 0.5) and (saved - heat[0]).abs().max() < 1e-3


def test_a_confidence_file_with_a_bad_line_is_named(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((224, 224), np.float16))
    table, batch = tmp_path / 'confidence.csv', {'id': ['a'], 'errors': []}
    assert read_confidences(tmp_path) == {} and 'confidence' not in read_localised(tmp_path, dict(batch), {}, False)
    table.write_text('id,confidence\na,0.25\n')
    assert read_localised(tmp_path, dict(batch), read_confidences(tmp_path), False)['confidence'].tolist() == [0.25]
    table.write_text('id,confidence\na,0.25\nonly-one-column\n')
    with pytest.raises(ValueError, match='confidence.csv, line 3'):
        read_confidences(tmp_path)
    table.write_text('b,0.5\n')
    with pytest.raises(ValueError, match='confidence.csv has no line for a'):
        read_localised(tmp_path, dict(batch), read_confidences(tmp_path), False)


@pytest.fixture(scope='module')
def model():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')


def test_the_sources_of_a_mixture_are_named_by_the_most_similar_masked_images(model, small_world):
    model, tokenizer = model
    dataset = Benchmark('vgg_duet', small_world, 96, 2.0)
    batch = collate([dataset[i] for i in range(3)])
    classes = model.embed_text(tokenizer, dataset.classes)
    found = localise_sources(model, batch, classes)['ours']
    assert found.shape == (3, 2, 224, 448) and 0 <= found.min() and found.max() <= 1
    # the same by the sentences of 4.2.5, one image and one class at a time
    image, A = batch['image'][:1], model.embed_audio(batch['wav'][:1])
    similar = []
    for c in classes:
        A_c = c.expand(1, 1, -1)
        mask = model.heatmaps(encode_image(model.clipseg, image), A_c, image.shape[-2:])[0]
        similar.append(torch.cosine_similarity(embed_image(model.clipseg, image * mask), A).item())
    best = np.argsort(similar)[::-1][:2]
    expected = [model.heatmaps(encode_image(model.clipseg, image), classes[i].expand(1, 1, -1), (224, 448))[0, 0] for i in best]
    assert torch.allclose(found[0], torch.stack(expected), atol=1e-4)


def test_the_oracle_is_left_out_where_a_name_is_missing(model, small_world):
    model, tokenizer = model
    dataset = Benchmark('is4', small_world, 96, 2.0)
    batch = collate([dataset[i] for i in range(2)])
    words = {name: model.embed_text(tokenizer, [name])[0] for name in batch['label']}
    assert set(localise(model, batch, words)) == {'ours', 'oracle'}
    assert set(localise(model, {**batch, 'label': [None, 'dog']}, words)) == {'ours'}


def test_frames_under_other_sounds_too_are_the_maps_of_those_sounds(model, small_world):
    model, _ = model
    dataset = Benchmark('is4', small_world, 96, 2.0)
    batch = collate([dataset[i] for i in range(3)])
    loud = torch.rand(batch['wav'].shape) * 2 - 1
    found = localise(model, batch, sounds={'silence': torch.zeros_like(loud[:1]), 'noise': loud})       # one for all; one each
    for name, wav in (('silence', torch.zeros_like(loud)), ('noise', loud), ('ours', batch['wav'])):
        assert torch.allclose(found[name], localise(model, {**batch, 'wav': wav})['ours'], atol=1e-4), name

"""Class names that a set lacks, frames that lack a sound, and the samples behind each row."""

import json
import shutil

import pytest
import torch

import evaluate
import metrics
from conftest import ROOT
from data import Benchmark
from localise import localise
from heldout import held_out
from known_world import one_thread  # noqa: F401
from model import load_model


@pytest.fixture(scope='module')
def model():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')


@pytest.fixture(scope='module')
def nameless(small_world, tmp_path_factory):
    """The small world, with three of sixteen VGG-SS entries without class. -> root, their files"""
    root = shutil.copytree(small_world, tmp_path_factory.mktemp('nameless') / 'world')
    entries = json.loads((root / 'vggss/vggss.json').read_text())
    del entries[1]['class']
    entries[4]['class'] = None
    entries[9]['class'] = ' '
    (root / 'vggss/vggss.json').write_text(json.dumps(entries))
    return root, [entries[k]['file'] for k in (1, 4, 9)]


@pytest.fixture(scope='module')
def by_hand(model, nameless, small_world):
    """What the sixteen score with our maps, and the thirteen with the oracle's. -> {row: scores}"""
    model, tokenizer = model
    dataset = Benchmark('vggss', small_world, 96, 2.0)
    samples = [dataset[i] for i in range(16)]
    words = {s['label']: model.embed_text(tokenizer, [s['label']])[0] for s in samples}
    found = localise(model, samples, words)
    kept = [i for i, s in enumerate(samples) if s['id'] not in nameless[1]]
    meters = {'ours': metrics.SingleSource(), 'oracle': metrics.SingleSource()}
    boxes = torch.stack([s['boxes'] for s in samples])
    meters['ours'].update(torch.stack(found['ours']), boxes)
    meters['oracle'].update(torch.stack([found['oracle'][i] for i in kept]), boxes[kept])
    return {who: meter.compute() for who, meter in meters.items()}


def run(capsys, root, out, *arguments):
    given = ['--data-root', root, '--json', out, *arguments]
    evaluate.evaluate(evaluate.parse_args([str(argument) for argument in given]))
    return json.loads(out.read_text()), capsys.readouterr().out


def test_an_entry_without_a_class_costs_the_oracle_that_entry_alone(nameless, by_hand, tmp_path,
                                                                    capsys):
    root, files = nameless
    scores, said = run(capsys, root, tmp_path / 'a.json', '--benchmarks', 'vggss',
                       '--task', 'single', '--batch-size', 5)
    ours, oracle = scores['single']['vggss'], scores['clipseg_gt_text']['single']['vggss']
    assert ours == pytest.approx({**by_hand['ours'], 'n': 16, 'n_expected': 16}, abs=0.1)
    assert oracle == pytest.approx({**by_hand['oracle'], 'n': 13, 'n_expected': 16}, abs=0.1)
    assert f'vggss: 3 of 16 samples have no class name, the first {files[0]}' in said
    assert '13 of 16' in said


def test_held_out_scores_too_lose_the_nameless_from_the_oracle_alone(model, nameless, by_hand):
    shutil.rmtree(nameless[0] / 'is4')
    scores, counts = held_out(*model, 'miniature', nameless[0])
    assert counts['boxes'] == 16
    for who in ('ours', 'oracle'):
        assert scores[who]['cIoU'] == pytest.approx(by_hand[who]['cIoU'], abs=0.1)
        assert scores[who]['AUC'] == pytest.approx(by_hand[who]['AUC'], abs=0.1)


def test_a_map_without_a_class_name_is_never_scored_as_the_oracle_s(model, small_world):
    model, tokenizer = model
    dataset = Benchmark('is4', small_world, 96, 2.0)
    samples = [dataset[i] for i in range(3)]
    words = {s['label']: model.embed_text(tokenizer, [s['label']])[0] for s in samples}
    full = localise(model, samples, words)['oracle']
    samples[1]['label'] = None
    found = localise(model, samples, words)['oracle']
    meter = metrics.SingleSource()
    evaluate.feed(meter, samples, found, 'oracle')
    assert meter.ids == [samples[0]['id'], samples[2]['id']] and len(meter) == 2
    assert found[1] is None
    for i in (0, 2):
        assert torch.allclose(found[i], full[i], atol=1e-5)


def test_interactive_frames_of_which_a_sound_lacks_its_class_are_not_the_oracle_s(
        small_world, tmp_path, capsys):
    root = shutil.copytree(small_world, tmp_path / 'world')
    labels = (root / 'vpo_ms/labels.csv').read_text().splitlines()
    dropped = labels[0].split(',')[0]
    (root / 'vpo_ms/labels.csv').write_text('\n'.join(labels[1:]))
    scores, said = run(capsys, root, tmp_path / 'a.json', '--task', 'interactive',
                       '--benchmarks', 'vpo_ms')
    ours = scores['interactive']['vpo_ms']
    oracle = scores['clipseg_gt_text']['interactive']['vpo_ms']
    groups = [s.group for s in Benchmark('vpo_ms', root, 96, 2.0).samples]
    frames = len(set(groups)) - 1                           # of the oracle
    assert oracle['n'] == ours['n'] - 1 == len(groups) - 1 and f'the first {dropped}' in said
    assert oracle['IIoU'] * frames / 100 == pytest.approx(round(oracle['IIoU'] * frames / 100))
    assert 'lack a sound' not in said                       # it is names that are absent


def test_frames_that_lack_a_sound_are_told_of_in_the_interactive_task_only(small_world, tmp_path,
                                                                           capsys):
    _, said = run(capsys, small_world, tmp_path / 'a.json', '--task', 'interactive',
                  '--benchmarks', 'is4', '--limit', 3)
    assert 'lack a sound' not in said                       # --limit cut off the second frame's
    root = shutil.copytree(small_world, tmp_path / 'world')
    sounds = sorted((root / 'is4/audio_wav').iterdir())
    sounds[0].unlink()
    sounds[-1].write_bytes(b'')                             # found out only when it is read
    _, said = run(capsys, root, tmp_path / 'b.json', '--task', 'interactive', '--benchmarks', 'is4')
    assert 'is4: 2 of 8 frames lack a sound; the interactive task leaves them out' in said
    _, said = run(capsys, root, tmp_path / 'c.json', '--task', 'single', '--benchmarks', 'is4')
    assert 'scored 14 of 16' in said and 'lack a sound' not in said


def test_every_meter_counts_the_samples_that_it_has_seen():
    heat = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth, two = (heat > 0.4).float(), torch.stack([heat, 1 - heat], 1)
    single = metrics.SingleSource()
    segmentation = metrics.Segmentation()
    extended = metrics.Extended()
    robust = metrics.Robustness()
    interactive = metrics.Interactive()
    mixture = metrics.MultiSource('sweep')
    for _ in range(2):
        single.update(heat, truth)
        segmentation.update(heat, torch.zeros_like(truth))              # empty masks count too
        extended.update(heat, truth, torch.rand(3), ['sounding', 'sounding', 'silence'])
        robust.update(heat, truth, ['positive', 'noise', 'noise'])
        interactive.update(heat, truth, ['a', 'a', 'b'], [4, 4, 2])
        mixture.update(two, (two > 0.5).float())
    for meter in (single, segmentation, extended, robust, interactive, mixture):
        assert len(meter) == 6, type(meter)
    robust.merge(robust)
    assert len(robust) == 12


def test_n_is_what_was_scored_not_what_was_listed(small_world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, 'share', lambda batches: [*batches[:-1], batches[-1][:-1]])
    scores, said = run(capsys, small_world, tmp_path / 'a.json', '--benchmarks', 'vggss',
                       '--task', 'single')
    assert scores['single']['vggss']['n'] == scores['clipseg_gt_text']['single']['vggss']['n'] == 15
    assert 'vggss: scored 15 of 16 samples\n' in said

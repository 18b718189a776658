"""bench.py measures one step in two readings, counts what the shapes say, and does not take memory for another's."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import CLIPSegConfig

from speed import bench
from speed import costs
import data
import train
from speed.parts import measure_evaluation, measure_loading, measure_metrics
from beats import BEATsConfig
from conftest import ROOT

SIZE, SECONDS = 96, 2.0         # the miniature's
WIDTH, LAYERS, MLP, PATCH, D = 32, 4, 64, 16, 16


@pytest.fixture(scope='module')
def tiny():
    """A few thousand weights in the paper's shape: patch 16, so that the decoder answers at the image's own size."""
    text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99,
                max_position_embeddings=16)
    vision = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=MLP,
                  patch_size=PATCH, image_size=64)
    clipseg = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=D, reduce_dim=16,
                            extract_layers=[0, 1, 2], decoder_num_attention_heads=2, decoder_intermediate_size=32,
                            use_complex_transposed_convolution=True)
    beats = BEATsConfig(encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=2,
                        embed_dim=16, conv_pos=8, conv_pos_groups=2)
    torch.manual_seed(0)
    return bench.random_model(clipseg, beats).train()


@pytest.fixture(scope='module')
def settings():
    return train.parse_args(['--preset', 'paper'])


def step(reading, model, B, settings, cached=False):
    """-> loss, gradient norm, every gradient, passes of the vision encoder"""
    batch, noise = bench.random_batch(B, SIZE, SECONDS)
    answers = []
    with bench.cached_audio(model, batch, cached) as heard:
        take = lambda: answers.extend(bench.take_step(reading, model, heard, noise, settings, bench.frozen_optimiser(model),
                                                      stage=costs.clock('cpu')[0]))
        passes = costs.count_vision(model, take)
    return *answers, [p.grad.clone() for p in model.parameters() if p.requires_grad], passes


@pytest.mark.parametrize('B', [2, 5])
def test_the_plain_reading_and_ours_are_the_same_step(tiny, settings, B):
    before = [p.clone() for p in tiny.parameters()]
    plain, ours, terms = (step(reading, tiny, B, settings)
                          for reading in (bench.plain_reading, bench.our_reading, bench.our_terms))
    for other in (ours, terms):
        assert other[0] == pytest.approx(plain[0], rel=1e-6) and other[1] == pytest.approx(plain[1], rel=1e-5)
        for a, b in zip(plain[2], other[2], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert plain[1] > 1e-3                                          # something flows
    assert (plain[3], ours[3], terms[3]) == (B + 2, 2, 2)
    assert all(map(torch.equal, before, tiny.parameters()))         # and every repetition begins alike


def test_the_masks_of_a_random_model_are_neither_empty_nor_full(tiny):
    batch, noise = bench.random_batch(4, SIZE, SECONDS)
    areas = tiny(batch['image'], batch['wav'], noise=noise).areas
    assert 0.2 < areas.mean() < 0.8


def test_cached_audio_is_the_same_step_without_beats(tiny, settings):
    calls = []
    hook = tiny.beats.register_forward_hook(lambda *_: calls.append(1))
    for reading in (bench.our_reading, bench.our_terms):
        plain, cached = (step(reading, tiny, 3, settings, cached) for cached in (False, True))
        assert cached[:2] == plain[:2]
    hook.remove()
    assert len(calls) == 2 * (1 + 1)        # once in each step without, once to fill each cache


def test_operations_are_those_one_counts_by_hand(tiny):
    B, n = 3, (SIZE // PATCH) ** 2 + 1                              # tokens of an image
    layer = 4 * n * WIDTH**2 + 2 * n * WIDTH * MLP + 2 * n**2 * WIDTH       # q k v out; fc1 fc2; q.k and weights.v
    image = 2 * ((n - 1) * 3 * PATCH**2 * WIDTH + LAYERS * layer)
    ours = bench.operations(bench.our_terms, tiny, B, SIZE, SECONDS)
    plain = bench.operations(bench.plain_reading, tiny, B, SIZE, SECONDS)
    values = 2 * (2 * n * WIDTH**2 + 2 * n * WIDTH * MLP + (n - 1) * WIDTH * D)     # the last layer once more; v_D
    assert plain['vision'] == B * ((B + 1) * image + values)                # the encoder once per audio, and for v_D
    assert plain['masked vision'] == B * (image + 2 * WIDTH * D)
    # the last layer for the class token alone, which still needs the keys and values of all
    token = 2 * (2 * n * WIDTH**2 + 2 * WIDTH**2 + 2 * WIDTH * MLP + 2 * n * WIDTH + WIDTH * D)
    assert ours['masked vision'] == B * (image - 2 * layer + token)
    assert ours['vision'] == B * (image - 2 * layer + token + values + 2 * WIDTH * D)       # projected: the class token too
    # one gradient per product, but two in attention, where both factors have one
    assert plain['backward'] - ours['backward'] == (plain['masked vision'] - ours['masked vision']
                                                    + B * 4 * n * (n - 1) * WIDTH)
    for term in ('BEATs', 'projection, text'):
        assert plain[term] == ours[term]
    cached = bench.operations(bench.our_terms, tiny, B, SIZE, SECONDS, cached=True)
    assert cached['BEATs'] == 0 and {**cached, 'BEATs': ours['BEATs']} == ours


def test_what_takes_too_long_is_counted_instead(tiny, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'build', lambda *_: tiny)
    args = bench.parse_args(['step', '--batch-sizes', '2', '3', '--repeats', '1', '--longest', '0', '--cached-audio'])
    rows, rates = bench.measure_step(args, train.parse_args(['--preset', 'miniature']), torch.device('cpu'))
    first, second = rows
    assert first['plain']['seconds'] > 0 and first['ours'][0]['ratio'] > 0
    assert 'seconds' not in second['plain'] and 'ratio' not in second['ours'][0]
    assert second['ours'][0]['counted_ratio'] > first['ours'][0]['counted_ratio'] > 1
    assert 0 < second['ours'][0]['share_of_product'] < 1 and rates['float32'] > 1e8
    bench.show_steps(rows, rates, args)
    assert 'ours float32, cached audio' in capsys.readouterr().out


def test_two_different_steps_are_refused():
    with pytest.raises(ValueError, match='at B = 4 the gradient .* must agree'):
        bench.refuse_difference({'loss': 1.0, 'gradient': 2.0}, {'loss': 1.0 + 1e-7, 'gradient': 2.1}, 4)
    with pytest.raises(ValueError, match='the loss'):
        bench.refuse_difference({'loss': 1.0, 'gradient': 2.0}, {'loss': float('nan'), 'gradient': 2.0}, 4)


def test_evaluation_sees_each_image_once(tiny):
    rows = measure_evaluation(tiny, lambda B: bench.random_batch(B, SIZE, SECONDS)[0], repeats=1)
    assert [row['vision_passes'] for row in rows] == [1] * 4 and [row['sounds'] for row in rows] == [1, 8, 8, 8]
    assert all(row['pairs_per_second'] == row['images'] * row['audios'] / row['seconds'] for row in rows)


def test_prepared_pairs_load_without_decoding(monkeypatch):
    reads = []
    monkeypatch.setattr(data, 'read_image', lambda path, read=data.read_image: reads.append(path) or read(path))
    found = measure_loading(96, 2.0, count=4)
    assert len(reads) == 4                                          # from the files; the prepared ones need no decoding
    assert all(found[k] > 0 for k in ('pairs/s, prepared', 'pairs/s, files', 'frame, ms', 'resize, ms', 'sound, ms'))


def test_scores_are_those_of_the_loops_and_come_sooner():
    threads = torch.get_num_threads()
    found = measure_metrics(10)
    assert found['largest_difference'] < 1e-3 and found['ratio'] > 5 and torch.get_num_threads() == threads


def test_a_subprocess_does_not_inherit_its_parents_peak():
    ballast = torch.ones(150_000_000)                               # 0.6 GB, in memory
    code = 'from speed.costs import peak_bytes; print(peak_bytes("cpu"))'
    alone = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT).stdout)
    assert costs.peak_bytes('cpu') > ballast.nbytes + 0.5 * alone > alone > 1e8


def test_the_script_prints_tables_and_writes_json(tmp_path):
    command = [sys.executable, '-m', 'speed.bench', 'step', 'memory', '--precision', 'float32', '--batch-sizes', '2',
               '--repeats', '1', '--json', str(tmp_path / 'bench.json')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'bench.json').read_text())
    row = report['step'][0]
    assert row['plain']['vision_passes'] == 4 and row['ours'][0]['vision_passes'] == 2
    assert row['ours'][0]['loss'] == pytest.approx(row['plain']['loss'], rel=1e-6)
    assert sum(term['seconds'] for term in row['terms'].values()) > 0
    memory = report['memory'][0]
    assert memory['plain float32'] > 1e8 and memory['ours float32'] > 1e8
    assert 'Peak memory' in done.stdout and 'decoder' in done.stdout and 'times' in done.stdout


def test_an_unknown_section_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        bench.parse_args(['speed'])
    assert end.value.code == 2 and "no section 'speed'" in capsys.readouterr().err

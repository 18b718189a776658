"""speed/ measures a step in two readings, counts what the shapes say, prints and writes it."""

import contextlib
import copy
import dataclasses
import json
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPSegConfig

import data
from beats import BEATsConfig
from speed import bench, costs, parts

SIZE, SECONDS = 32, 0.5
WIDTH, LAYERS, MLP, PATCH, D = 32, 4, 64, 16, 16


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with parts.one_thread():                # a second one only waits for tensors so small
        yield


@pytest.fixture(scope='module')
def tiny():
    """A few thousand weights in the paper's shape: at patch 16 the logits have the image's size."""
    text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                vocab_size=99, max_position_embeddings=16)
    vision = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
                  intermediate_size=MLP, patch_size=PATCH, image_size=64)
    clipseg = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=D,
                            reduce_dim=16, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
                            decoder_intermediate_size=32, use_complex_transposed_convolution=True)
    beats = BEATsConfig(encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
                        encoder_attention_heads=2, embed_dim=16, conv_pos=8, conv_pos_groups=2)
    torch.manual_seed(0)
    return bench.random_model(clipseg, beats).train()


def step(model, B, *variant):
    """-> loss, gradient norm, every gradient, passes of the vision encoder"""
    one = bench.Step(model, bench.random_batch(B, SIZE, SECONDS), bench.Variant(*variant))
    answers = []
    passes = costs.count_vision(model, lambda: answers.extend(one()))
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return answers[0].item(), answers[1].item(), gradients, passes


@pytest.mark.parametrize('B', [2, 5])
def test_the_plain_reading_and_ours_are_the_same_step(tiny, B):
    before = [p.clone() for p in tiny.parameters()]
    plain, ours = (step(tiny, B, who) for who in ('plain', 'ours'))
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    assert ours[1] == pytest.approx(plain[1], rel=1e-5) and plain[1] > 1e-3
    for a, b in zip(plain[2], ours[2], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert (plain[3], ours[3]) == (B + 2, 2)
    assert all(map(torch.equal, before, tiny.parameters()))         # each repetition begins alike


def test_the_masks_of_a_random_model_are_neither_empty_nor_full(tiny):
    assert 0.2 < tiny(**bench.random_batch(4, SIZE, SECONDS)).areas.mean() < 0.8


def test_cached_audio_is_the_same_step_without_beats(tiny):
    calls = []
    with tiny.beats.register_forward_hook(lambda *_: calls.append(1)):
        plain = step(tiny, 3, 'ours')[:2]
        assert step(tiny, 3, 'ours', 'float32', True)[:2] == plain
    assert len(calls) == 2                  # in the plain step, and to have the features


def test_a_step_is_taken_in_its_precision_with_the_same_dropout(tiny, monkeypatch):
    seen = []

    def forward(**batch):
        seen.append((torch.is_autocast_enabled('cpu'), torch.rand(1).item()))
        return tiny(**batch)
    for precision in ('float32', 'bf16'):
        variant = bench.Variant('ours', precision)
        one = bench.Step(tiny, bench.random_batch(2, SIZE, SECONDS), variant)
        one.forward = forward
        one()
    assert [autocast for autocast, _ in seen] == [False, True] and seen[0][1] == seen[1][1]
    # on a GPU a layer norm in float32 refuses bf16 outside of autocast
    with tiny.beats.register_forward_hook(
            lambda *_: seen.append((torch.is_autocast_enabled('cpu'), None))):
        bench.Step(tiny, bench.random_batch(2, SIZE, SECONDS), bench.Variant('ours', 'bf16', True))
    assert seen[2:] == [(True, None)]


def test_operations_are_those_one_counts_by_hand(tiny):
    B, n = 3, (SIZE // PATCH) ** 2 + 1                              # tokens of an image
    # q k v out; fc1 fc2; q.k and weights.v
    layer = 4 * n * WIDTH**2 + 2 * n * WIDTH * MLP + 2 * n**2 * WIDTH
    image = 2 * ((n - 1) * 3 * PATCH**2 * WIDTH + LAYERS * layer)
    # the last layer once more, by its values, and v_D
    values = 2 * (2 * n * WIDTH**2 + 2 * n * WIDTH * MLP + (n - 1) * WIDTH * D)
    # the last layer for the class token alone, which still needs the keys and values of all
    token = 2 * (2 * n * WIDTH**2 + 2 * WIDTH**2 + 2 * WIDTH * MLP + 2 * n * WIDTH + WIDTH * D)
    empty = copy.deepcopy(tiny).to('meta')
    ours, plain, cached = (bench.operations(variant, empty, B, SIZE, SECONDS)
                           for variant in (bench.OURS[0], bench.PLAIN, bench.OURS[1]))
    assert ours['masked vision'] == B * (image - 2 * layer + token)
    # the class token is projected too
    assert ours['vision'] == B * (image - 2 * layer + values + 2 * WIDTH * D)
    pooled = 2 * WIDTH * D                                          # by each of CLIPSeg's passes
    encoder = B * (B * (image + pooled) + image + values) + B * (image + pooled)
    decoder = plain['masks'] - encoder
    assert ours['decoder'] < decoder < B * ours['decoder']      # reduced once, not for each audio
    assert (plain['BEATs'], plain['projection, text']) == (ours['BEATs'], ours['projection, text'])
    # one gradient per product, but two in attention, where both factors have one
    last = 2 * layer - token + 2 * WIDTH * D
    assert plain['backward'] - ours['backward'] == B * (last + 4 * n * (n - 1) * WIDTH)
    assert 'BEATs' not in cached and {**cached, 'BEATs': ours['BEATs']} == ours


def test_terms_are_timed_apart_and_together_they_are_the_step(tiny):
    one = bench.Step(tiny, bench.random_batch(2, SIZE, SECONDS), bench.OURS[0])
    terms = bench.time_terms(one, repeats=1)
    assert set(terms) == {'BEATs', 'projection, text', 'vision', 'decoder', 'masked vision',
                          'masks', 'losses', 'backward', 'optimiser'}
    assert min(terms.values()) > 0


def test_each_variant_is_timed_on_its_own_model_and_compared_with_plain(monkeypatch):
    models = {'float32': torch.nn.Linear(1, 1), 'bf16': torch.nn.Linear(1, 1)}
    counts = {'plain float32': 90e9, 'ours float32': 30e9, 'ours float32, cached audio': 20e9,
              'ours bf16, cached audio': 10e9}
    rates = {'float32': 100e9, 'bf16': 400e9}
    times = [6, 2, 3, 0.5]
    built = []
    monkeypatch.setattr(bench, 'build', lambda preset, device, precision: models[precision])
    monkeypatch.setattr(bench, 'operations', lambda variant, *_: {
        'decoder': counts[variant.name()]})
    monkeypatch.setattr(bench, 'matrix_product_rate', lambda device, precision: rates[precision])
    monkeypatch.setattr(bench, 'Step', lambda model, batch, variant: built.append(
        (model, variant)) or variant)
    monkeypatch.setattr(bench, 'time_steps', lambda steps, repeats: [
        {'seconds': seconds, 'loss': 1.0, 'gradient': 2.0} for seconds in times])
    monkeypatch.setattr(bench, 'time_terms', lambda step, repeats: {'decoder': times[
        [variant for _, variant in built].index(step)]})
    found = bench.measure_step('miniature', 'cpu', bench.OURS, [2], [3], 1)
    assert all(model is models[variant.precision] for model, variant in built)
    timed = found['step'][:4]
    assert [row['step'] for row in timed] == list(counts)
    assert [row['times'] for row in timed] == [1, 3, 2, 12]
    assert [row['times, counted'] for row in timed] == [1, 3, 4.5, 9]
    assert [row['% of product'] for row in timed] == pytest.approx([15, 15, 100 * 20 / 3 / 100, 5])
    assert found['terms'] == [{'B': B, 'step': 'ours float32', 'term': 'decoder',
                               'seconds': seconds, '10^9 operations': 30}
                              for B, seconds in ((2, 2), (3, None))]
    assert found['matrix_product'] == [{'float32': 0.1, 'bf16': 0.4}]


def test_in_bf16_the_frozen_weights_are_cast_as_in_training():
    model = bench.build('miniature', precision='bf16')
    assert model.training and model.beats.patch_embedding.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_two_different_steps_are_refused():
    with pytest.raises(ValueError, match='at B = 4 the gradient .* must agree'):
        bench.refuse_difference({'loss': 1.0, 'gradient': 2.0},
                                {'loss': 1.0 + 1e-7, 'gradient': 2.1}, 4)
    with pytest.raises(ValueError, match='the loss'):
        bench.refuse_difference({'loss': 1.0, 'gradient': 2.0},
                                {'loss': float('nan'), 'gradient': 2.0}, 4)


def test_evaluation_sees_each_image_once(tiny):
    batch = bench.random_batch(8, SIZE, SECONDS)
    rows = parts.measure_evaluation(tiny, batch['image'], batch['wav'], repeats=1)
    assert [(row['images'], row['audios']) for row in rows] == [(1, 1), (8, 1), (1, 8), (8, 8)]
    assert [row['vision_passes'] for row in rows] == [1] * 4
    for row in rows:
        assert row['pairs_per_second'] == row['images'] * row['audios'] / row['seconds']


def test_prepared_pairs_load_without_decoding(monkeypatch):
    reads = []
    read = data.read_image
    monkeypatch.setattr(data, 'read_image', lambda path: reads.append(path.suffix) or read(path))
    found = parts.measure_loading(32, 0.5, count=4)
    assert sorted(reads) == ['.bmp'] * 4 + ['.jpg'] * 4
    assert min(found['pairs/s, files'], found['pairs/s, prepared']) > 0


def test_scores_are_those_of_the_loops(monkeypatch):
    threads = torch.get_num_threads()
    found = parts.measure_metrics(10)
    assert found['largest_difference'] < 1e-3 and torch.get_num_threads() == threads
    loop = parts.loop_scores
    monkeypatch.setattr(parts, 'loop_scores', lambda *given: loop(*given) + 0.01)
    with pytest.raises(ValueError, match='differ by 0.0[01].* points'):
        parts.measure_metrics(10)


# ---- seconds and bytes

def test_a_term_has_the_seconds_that_no_inner_term_has(tiny):
    times = iter([0, 1, 10, 15, 17, 22])

    class FakeStep:
        model = SimpleNamespace(beats=tiny.beats, embed_audio=None, ground=lambda: None)
        optimiser = SimpleNamespace(step=None)

        def forward(self):
            self.model.ground()             # from 15 to 17, within 10 to 22

        def __call__(self):
            self.model.ground()
            self.forward()
    seconds = costs.by_terms(FakeStep(), lambda: next(times))
    assert seconds == {'decoder': 1 + 2, 'masks': 12 - 2}


def test_a_term_s_seconds_are_the_median_of_its_runs(monkeypatch):
    runs = iter([{'decoder': 9}, {'decoder': 2}, {'decoder': 3}])
    monkeypatch.setattr(bench, 'by_terms', lambda step, read: next(runs))
    assert bench.time_terms(SimpleNamespace(device='cpu'), 3) == {'decoder': 3}


def test_the_limit_is_the_best_of_five_products_in_the_precision(monkeypatch):
    asked = []
    monkeypatch.setattr(costs.torch, 'randn', lambda *shape, device, dtype: asked.append(
        (*shape, dtype)) or torch.ones(1, 1))
    for precision in ('float32', 'bf16'):
        times = iter([5, 2, 4, 3, 6])
        monkeypatch.setattr(costs, 'seconds_of', lambda run, device: (next(times), run()))
        assert costs.matrix_product_rate('cpu', precision) == 2048**3       # 2 n^3 in 2 s
    assert asked == [(2048, 2048, torch.float32), (2048, 2048, torch.bfloat16)]


def test_a_peak_is_of_the_variant_s_own_step_with_memory_kept_unless_freed(monkeypatch):
    told = []
    monkeypatch.setattr(bench, 'keep_freed_memory', lambda: told.append('kept'))
    monkeypatch.setattr(bench, 'build', lambda preset, device, precision: told.append(precision))
    monkeypatch.setattr(bench, 'Step', lambda model, batch, variant: partial(told.append, variant))
    monkeypatch.setattr(bench, 'peak_bytes', lambda device: 7)
    for free_memory in (False, True):
        assert bench.peak_of_one_step(2, bench.OURS[2], 'miniature', 'cpu', free_memory) == 7
    assert told == ['kept', 'bf16', bench.OURS[2], 'bf16', bench.OURS[2]]


def test_the_peak_is_the_high_water_mark_in_units_of_1024(monkeypatch):
    status = 'VmPeak:\t 9000 kB\nVmHWM:\t 3000 kB\nVmRSS:\t 2000 kB\n'
    monkeypatch.setattr(costs, 'Path', lambda path: SimpleNamespace(
        read_text=lambda encoding: status))
    monkeypatch.setattr(costs.sys, 'platform', 'linux')
    assert costs.peak_bytes('cpu') == 3000 * 1024 and costs.peak_bytes('mps') is None
    monkeypatch.setattr(costs.sys, 'platform', 'win32')
    assert costs.peak_bytes('cpu') is None


def test_a_step_s_peak_is_that_of_a_process_of_its_own():
    ballast = torch.ones(300_000_000)                                   # 1.2 GB, in memory
    row, = bench.measure_memory('miniature', 'cpu', [], [2], free_memory=False)
    assert (row['B'], row['step']) == (2, 'plain float32')
    assert 0.1 < row['peak GB'] < ballast.nbytes / 1e9 < costs.peak_bytes('cpu') / 1e9


def test_memory_asks_a_process_of_its_own_for_each_variant(monkeypatch):
    asked = []

    class Pool(contextlib.nullcontext):
        def __init__(self, processes, context):
            super().__init__(self)
            assert processes == 1 and context.get_start_method() == 'spawn'

        def submit(self, function, B, variant, *more):
            asked.append((function, *more))
            future = Future()
            if 'bf16' in variant:
                future.set_exception(MemoryError('no room'))
            else:
                future.set_result(None if variant[2] else 2_000_000_000)
            return future
    monkeypatch.setattr(bench, 'ProcessPoolExecutor', Pool)
    rows = bench.measure_memory('miniature', 'cpu', bench.OURS, [2, 4], free_memory=True)
    assert [(row['B'], row['step'], row['peak GB']) for row in rows] == [
        (B, *pair) for B in (2, 4) for pair in (
            ('plain float32', 2.0), ('ours float32', 2.0), ('ours float32, cached audio', None),
            ('ours bf16, cached audio', None))]
    assert asked == 8 * [(bench.peak_of_one_step, 'miniature', 'cpu', True)]


# ---- videos

def test_videos_a_second_are_without_the_start_of_the_processes(tmp_path, monkeypatch):
    runs = []

    def extract(folder, out, processes):
        assert len(list(folder.iterdir())) == 6
        runs.append((out.name, processes))
    monkeypatch.setattr(parts, 'draw_clip', lambda path: path.write_bytes(b'clip'))
    monkeypatch.setattr(parts, 'extract', extract)
    times = iter([3, 0, 6, 4.5])            # by one process, again, by two, again
    monkeypatch.setattr(parts, 'seconds_of', lambda work: (next(times), work()))
    assert parts.measure_videos(6) == {'videos': 6, 'videos/s, 1 process': 2,
                                      'videos/s, 2 processes': 4, 'ratio': 2,
                                      'seconds to start 2': 4.5}
    assert runs == [('by1', 1)] * 2 + [('by2', 2)] * 2


# ---- the command line

def run(monkeypatch, tiny, *options):
    small = dataclasses.replace(bench.PRESETS['miniature'], image_size=SIZE, seconds=SECONDS)
    monkeypatch.setitem(bench.PRESETS, 'miniature', small)
    monkeypatch.setattr(bench, 'build', lambda *_: tiny)
    monkeypatch.setattr(bench, 'keep_freed_memory', lambda: None)
    bench.main(bench.parse_args(['--device', 'cpu', *map(str, options)]))


def test_sections_print_tables_and_write_json(tiny, monkeypatch, tmp_path, capsys):
    def operations(variant, model, B, size, seconds):
        assert next(model.parameters()).is_meta and (size, seconds) == (SIZE, SECONDS)
        return {'decoder': B * (9 if variant == bench.PLAIN else 5 - variant.cached), 'backward': 1}
    monkeypatch.setattr(bench, 'operations', operations)
    monkeypatch.setattr(bench, 'matrix_product_rate', lambda device, precision: 1e9)
    peaks = [{'B': 2, 'step': 'plain', 'peak GB': 1.5}, {'B': 2, 'step': 'ours', 'peak GB': None}]
    monkeypatch.setattr(bench, 'measure_memory', lambda *given: peaks)
    path = tmp_path / 'bench.json'
    run(monkeypatch, tiny, 'step', 'memory', 'metrics', '--batch-sizes', 2, '--only-count', 3,
        '--repeats', 1, '--heatmaps', 3, '--json', path)
    report = json.loads(path.read_text(encoding='utf-8'))
    assert report['preset'] == 'miniature' and report['machine']['freed_memory'] == 'kept'
    assert {'step', 'memory', 'metrics'} <= report.keys() and 'load' not in report
    plain, ours, cached, low, *counted = report['step']
    assert (plain['passes'], ours['passes']) == (4, 2) and plain['times'] == 1
    assert ours['loss'] == pytest.approx(plain['loss'], rel=1e-6) and low['loss'] != ours['loss']
    assert ours['times, counted'] == pytest.approx(plain['operations'] / ours['operations'])
    assert ours['% of product'] == pytest.approx(ours['operations'] / ours['seconds'] / 1e7)
    assert cached['operations'] < ours['operations']
    assert [row['B'] for row in counted] == [3] * 4 and 'seconds' not in counted[0]
    assert {row['B'] for row in report['terms'] if row['seconds'] is None} == {3}
    said = capsys.readouterr().out
    assert 'decoder' in said and 'ours bf16, cached audio' in said
    lines = [line.split() for line in said.splitlines()]
    assert ['2', 'plain', '1.500'] in lines and ['2', 'ours', '-'] in lines


def test_an_evaluation_is_measured_in_eval_mode_as_often_as_asked(tiny, monkeypatch):
    told = []
    monkeypatch.setattr(bench, 'build', lambda *_: copy.deepcopy(tiny))
    monkeypatch.setattr(bench, 'measure_evaluation', lambda model, image, wav, repeats: told.append(
        (model.training, len(image), repeats)))
    bench.measure('evaluate', bench.parse_args(['--repeats', '5']), 'cpu')
    assert told == [(False, 8, 5)]


def test_a_step_s_time_is_the_median_of_its_turns_after_the_first(monkeypatch):
    turns = []
    times = iter([0, 1, 0, 2, 0, 5, 0, 9, 0, 2, 0, 3])      # of two steps in turns, three times

    class FakeStep:
        model = None
        device = 'cpu'

        def __call__(self):
            turns.append(self)
            return torch.tensor(0.5), torch.tensor(0.25)
    monkeypatch.setattr(bench, 'count_vision', lambda model, step: step() and 2)
    monkeypatch.setattr(costs.time, 'perf_counter', lambda: next(times))
    a, b = FakeStep(), FakeStep()
    found = bench.time_steps([a, b], 3)
    assert turns == [a, b] * 4
    assert found[0] == {'seconds': 2, 'all': [1, 5, 2], 'loss': 0.5, 'gradient': 0.25, 'passes': 2}
    assert found[1]['seconds'] == 3


def test_defaults_and_variants():
    def parse(*options):
        return bench.parse_args(list(options))
    assert parse().batch_sizes == [2, 4, 8] and parse().sections == list(bench.SECTIONS)
    assert parse('--preset', 'paper').batch_sizes == [2, 4, 8, 16]
    assert parse('--batch-sizes', '3', '5').batch_sizes == [3, 5] and parse().repeats == 3
    assert parse('--only-count', '64').only_count == [64] and parse().only_count == []
    assert parse().variants == [('ours', 'float32', False), ('ours', 'float32', True),
                                ('ours', 'bf16', True)]
    assert parse('--precision', 'bf16').variants == [('ours', 'bf16', False)]
    assert parse('--cached-audio').variants == [('ours', 'float32', True)]


@pytest.mark.parametrize('options, words', [
    (['speed'], "no section 'speed'"),
    (['--batch-sizes', '1'], '--batch-sizes: must be at least 2'),
    (['step', '--only-count', '1'], '--only-count: must be at least 2'),
    (['--repeats', '0'], '--repeats: must be at least 1'),
    (['--heatmaps', '0'], '--heatmaps: must be at least 1'),
    (['memory', '--only-count', '64'], '--only-count is for the section step')])
def test_wrong_options_are_named(options, words, capsys):
    with pytest.raises(SystemExit) as end:
        bench.parse_args(options)
    assert end.value.code == 2 and words in capsys.readouterr().err

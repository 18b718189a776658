"""bench.py's options reach what they name; spies stand for models, clocks and subprocesses."""

import contextlib
import json
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from speed import bench
from speed import parts as bench_parts
from speed import costs

STEP = {'loss': 1.0, 'gradient': 2.0, 'vision_passes': 2}


@pytest.fixture
def spied(monkeypatch):
    """bench.py whose sections only say with what they were called."""
    answers = {'keep_freed_memory': None, 'build': 'model', 'random_batch': ('batch', 'noise'),
               'measure_loading': {'pairs': 1.0}, 'measure_metrics': {'maps': 1.0},
               'measure_memory': [{'B': 2}], 'measure_step': (['row'], {'float32': 1}),
               'show_steps': None}
    calls = SimpleNamespace(**{name: [] for name in (*answers, 'measure_evaluation')})

    def spy(name):
        return lambda *given: getattr(calls, name).append(given) or answers[name]

    def measure_evaluation(model, make, repeats):
        calls.measure_evaluation.append((model, make(5), repeats))
        columns = ('images', 'audios', 'vision_passes', 'seconds', 'pairs_per_second')
        return [dict.fromkeys(columns, 1.0)]
    for name in answers:
        monkeypatch.setattr(bench, name, spy(name))
    monkeypatch.setattr(bench, 'measure_evaluation', measure_evaluation)
    return calls


def run(*options):
    bench.main(bench.parse_args(['--device', 'cpu', *map(str, options)]))


SECTIONS = {'step': 'measure_step', 'memory': 'measure_memory', 'load': 'measure_loading',
            'evaluate': 'measure_evaluation', 'metrics': 'measure_metrics'}


@pytest.mark.parametrize('section', list(SECTIONS))
def test_a_section_alone_and_none_but_it(spied, section, tmp_path):
    run(section, '--json', tmp_path / 'bench.json')
    assert [name for name, done in SECTIONS.items() if getattr(spied, done)] == [section]
    report = json.loads((tmp_path / 'bench.json').read_text())
    assert [name for name in SECTIONS if name in report] == [section]
    assert report['preset'] == 'miniature' and report['machine']['freed_memory'] == 'kept'


def test_without_a_name_all_sections_run_and_freed_memory_is_kept_unless_asked(spied, tmp_path):
    run('--json', tmp_path / 'bench.json', '--free-memory')
    report = json.loads((tmp_path / 'bench.json').read_text())
    assert SECTIONS.keys() <= report.keys() and report['machine']['freed_memory'] == 'returned'
    assert not spied.keep_freed_memory
    run('metrics')
    assert len(spied.keep_freed_memory) == 1


def test_presets_repeats_and_numbers_reach_the_sections(spied):
    run('load', 'evaluate', 'metrics', '--preset', 'paper', '--repeats', 7, '--heatmaps', 12)
    cpu = torch.device('cpu')
    assert spied.measure_loading == [(352, 10)] and spied.measure_metrics == [(12,)]
    assert spied.build == [('paper', cpu)] and spied.random_batch == [(5, 352, 10, cpu)]
    assert spied.measure_evaluation == [('model', 'batch', 7)]
    run('load', 'evaluate', 'metrics')
    assert spied.measure_loading[1] == (96, 2) and spied.measure_metrics[1] == (1000,)
    assert spied.build[1] == ('miniature', cpu) and spied.measure_evaluation[1][2] == 3


def test_the_step_is_trained_by_the_preset_s_settings(spied):
    run('step', '--preset', 'paper')
    ((args, settings, device),) = spied.measure_step
    assert (args.preset, settings.preset, device) == ('paper', 'paper', torch.device('cpu'))
    assert spied.show_steps == [(['row'], {'float32': 1}, args)]


def test_defaults_and_variants():
    parse = lambda *options: bench.parse_args(list(options))
    assert parse().batch_sizes == [2, 4, 8] and parse().only_count == []
    paper = parse('--preset', 'paper')
    assert paper.batch_sizes == [2, 4, 8, 16] and paper.only_count == [64]
    assert parse('--preset', 'paper', '--only-count').only_count == []
    assert parse('--batch-sizes', '3', '5', '--only-count', '9').batch_sizes == [3, 5]
    assert parse('--only-count', '9', '11').only_count == [9, 11]
    assert (parse().repeats, parse().longest, parse().plain_memory_up_to) == (3, 240, 8)
    assert parse().variants == [('float32', False), ('float32', True), ('bf16', True)]
    assert parse('--precision', 'bf16').variants == [('bf16', False)]
    assert parse('--cached-audio').variants == [('float32', True)]
    assert parse('--precision', 'bf16', '--cached-audio').variants == [('bf16', True)]


def test_a_peak_is_printed_in_gigabytes_and_what_did_not_finish_as_a_dash(spied, monkeypatch,
                                                                          capsys):
    rows = [{'B': 2, 'plain float32': 1_500_000_000, 'ours float32': None}]
    monkeypatch.setattr(bench, 'measure_memory', lambda args: rows)
    run('memory')
    assert capsys.readouterr().out.splitlines()[-1].split() == ['2', '1.50', '-']


def test_what_goes_wrong_is_one_sentence_and_exit_code_1(monkeypatch):
    def wrong(count):
        raise ValueError('they differ')
    monkeypatch.setattr(bench_parts, 'measure_metrics', wrong)
    monkeypatch.setattr(sys, 'argv', ['bench.py', 'metrics', '--device', 'cpu', '--free-memory'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(bench.__file__, run_name='__main__')
    assert end.value.code == 'bench.py: they differ'        # which Python prints, and exits with 1


# ---- what seconds, operations and bytes are made of

def test_a_stage_that_is_entered_again_adds_to_its_seconds(monkeypatch):
    times = iter([0, 1, 10, 15, 20, 22])
    monkeypatch.setattr(costs.time, 'perf_counter', lambda: next(times))
    stage, seconds = costs.clock('cpu')
    for name in ('decoder', 'vision', 'decoder'):
        with stage(name):
            pass
    assert seconds == {'decoder': 1 + 2, 'vision': 5}


def test_the_rate_of_a_matrix_product_is_that_of_the_fastest(monkeypatch):
    times = iter([9.0, 4.0, 0.5, 2.0, 3.0, 6.0])
    monkeypatch.setattr(costs, 'clock', lambda device: (
        lambda name: contextlib.nullcontext(), {'product': next(times)}))
    monkeypatch.setattr(costs.torch, 'randn', lambda *size, **more: torch.zeros(1, 1))
    assert costs.matrix_product_rate('cpu', 'float32') == 2 * 2048**3 / 0.5
    assert next(times, None) is None


def test_the_peak_is_the_high_water_mark_in_units_of_1024(monkeypatch):
    status = 'VmPeak:\t 9000 kB\nVmHWM:\t 3000 kB\nVmRSS:\t 2000 kB\n'
    monkeypatch.setattr(costs, 'Path', lambda path: SimpleNamespace(
        exists=lambda: True, read_text=lambda: status))
    assert costs.peak_bytes('cpu') == 3000 * 1024


def test_loading_is_told_in_milliseconds_a_part_and_pairs_a_second(monkeypatch):
    spent = {'frame': 1.0, 'resize': 2.0, 'sound': 4.0, 'files': 8.0, 'prepared': 0.5}
    monkeypatch.setattr(bench_parts, 'clock', lambda device: (
        lambda name: contextlib.nullcontext(), spent))
    assert bench_parts.measure_loading(32, 0.5, count=4) == {
        'frame, ms': 250, 'resize, ms': 500, 'sound, ms': 1000,
        'pairs/s, files': 0.5, 'pairs/s, prepared': 8}


def test_scores_that_differ_from_the_loops_are_refused(monkeypatch):
    def off(heatmaps, truths):
        *rest, f = bench_parts.streamed_scores(heatmaps, truths)
        return *rest, f + 11                    # one IoU of ten samples makes ten points
    monkeypatch.setattr(bench_parts, 'loop_scores', off)
    with pytest.raises(ValueError, match='differ by 1[01].* points'):
        bench_parts.measure_metrics(10)


# ---- the step

@pytest.fixture
def counted(monkeypatch):
    """measure_step on stand-ins: 10 B operations in half a second, the plain one 30 B in one."""
    seen = SimpleNamespace(operations=[], timed=[], terms=0, built=[])
    model = torch.nn.Linear(1, 1)
    model.beats = torch.nn.Identity()

    def operations(reading, model, B, size, seconds, cached=False):
        seen.operations.append((reading.__name__, B, size, seconds, cached))
        return {'decoder': 30 * B if reading is bench.plain_reading else (9 if cached else 10) * B}

    def time_steps(contenders, model, batch, noise, settings, optimiser, repeats, say):
        B, _, _, W = batch['image'].shape
        seen.timed.append((B, W, batch['wav'].shape[1], settings, repeats,
                           [(reading.__name__, *rest) for reading, *rest in contenders]))
        seconds = {bench.plain_reading: 1.0, bench.our_reading: 0.5}
        return {c: {'seconds': seconds[c[0]], **STEP} for c in contenders}

    def take_step(reading, model, batch, noise, settings, optimiser, precision, stage):
        seen.terms += 1
        with stage('decoder'):
            pass
    monkeypatch.setattr(bench, 'build', lambda *given: seen.built.append(given) or model)
    monkeypatch.setattr(bench, 'operations', operations)
    monkeypatch.setattr(bench, 'time_steps', time_steps)
    monkeypatch.setattr(bench, 'take_step', take_step)
    rates = {'float32': 40.0, 'bf16': 80.0}
    monkeypatch.setattr(bench, 'matrix_product_rate', lambda device, precision: rates[precision])
    return seen


def measure(*options):
    args = bench.parse_args(['step', '--device', 'cpu', *map(str, options)])
    return bench.measure_step(args, 'settings', torch.device('cpu'))


def test_batch_sizes_are_timed_and_others_only_counted(counted):
    rows, rates = measure('--batch-sizes', 2, 3, '--only-count', 5, '--repeats', 4)
    assert counted.built == [('miniature', torch.device('cpu'))]
    assert rates == {'float32': 40, 'bf16': 80}
    contenders = [('plain_reading', 'float32', False), ('our_reading', 'float32', False),
                  ('our_reading', 'float32', True), ('our_reading', 'bf16', True)]
    assert counted.timed == [(B, 96, 32_000, 'settings', 4, contenders) for B in (2, 3)]
    assert [row['B'] for row in rows] == [2, 3, 5] and counted.terms == 2 * 4
    assert {call[1:4] for call in counted.operations} == {(B, 96, 2) for B in (2, 3, 5)}
    for row in rows:
        plain, (first, second, third) = row['plain'], row['ours']
        counts = [entry['operations'] for entry in (plain, first, second)]
        assert counts == [row['B'] * n for n in (30, 10, 9)]
        variants = [(entry['precision'], entry['cached']) for entry in row['ours']]
        assert variants == [contender[1:] for contender in contenders[1:]]
        assert (first['counted_ratio'], second['counted_ratio']) == (3, pytest.approx(30 / 9))
        assert ('seconds' in first) == ('seconds' in plain) == (row['B'] != 5)
    first, _, third = rows[1]['ours']
    assert first['ratio'] == 2 and first['share_of_product'] == 60 / 40
    assert third['share_of_product'] == 54 / 80
    # 20 epochs of 144,000 pairs at 6 a second; and at 0.4 of 989e12 operations a second
    assert first['hours'] == pytest.approx(20 * 144_000 / 6 / 3600)
    assert first['hours_on_gpu'] == pytest.approx(20 * 144_000 / 3 * 30 / (0.4 * 989e12) / 3600)


def test_a_plain_step_longer_than_the_longest_is_counted_only(counted):
    # at B = 2 it does 60 operations in its second, so that B = 3's 90 would take 1.5
    for longest, run_at in ((1.5, [2, 3, 4]), (1.4, [2])):
        rows, _ = measure('--batch-sizes', 2, 3, 4, '--longest', longest)
        assert [row['B'] for row in rows if 'seconds' in row['plain']] == run_at


def test_a_variant_alone_is_timed_alone(counted):
    measure('--batch-sizes', 2, '--precision', 'bf16', '--cached-audio')
    plain = ('plain_reading', 'float32', False)
    assert counted.timed[0][-1] == [plain, ('our_reading', 'bf16', True)]


def test_a_contender_s_time_is_the_median_of_its_turns_after_the_first(monkeypatch):
    taken, times = [], iter([90, 50, 1, 2, 5, 9, 2, 3])     # two contenders in turns, four times

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.beats = torch.nn.Identity()

    def take_step(reading, model, batch, noise, settings, optimiser, precision):
        taken.append((reading.__name__, precision, 'features' in batch, noise, settings, optimiser))
        return 0.5, 0.25
    monkeypatch.setattr(bench, 'take_step', take_step)
    monkeypatch.setattr(bench, 'count_vision', lambda model, step: step() or 2)
    monkeypatch.setattr(bench, 'clock', lambda device: (
        lambda name: contextlib.nullcontext(), {'step': next(times)}))
    contenders = [(bench.plain_reading, 'float32', False), (bench.our_reading, 'bf16', True)]
    batch = {'image': torch.zeros(2, 3, 8, 8), 'wav': torch.zeros(2, 8)}
    found = bench.time_steps(contenders, Model(), batch, 'n', 's', 'o', 3, lambda text: None)
    assert [found[contender]['seconds'] for contender in contenders] == [2, 3]
    assert found[contenders[0]] == {'seconds': 2, 'all': [1, 5, 2], 'loss': 0.5, 'gradient': 0.25,
                                    'vision_passes': 2}
    assert taken == 4 * [('plain_reading', 'float32', False, 'n', 's', 'o'),
                         ('our_reading', 'bf16', True, 'n', 's', 'o')]


def test_a_step_is_taken_in_its_precision_from_the_same_dropout_and_leaves_the_weights(monkeypatch):
    layer, seen = torch.nn.Linear(2, 1, bias=False), []
    layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))

    def reading(model, batch, noise, stage):
        seen.append((torch.is_autocast_enabled('cpu'), torch.rand(1).item(), batch, noise))
    squares = lambda out, args: {'acl_i': layer.weight.square().sum()}
    monkeypatch.setattr(bench.train, 'loss_terms', squares)
    settings = bench.train.parse_args(['--lambda-i', '2'])
    for precision in ('float32', 'bf16'):
        found = bench.take_step(reading, layer, {'image': torch.zeros(1)}, 'noise', settings,
                                bench.frozen_optimiser(layer), precision)
        assert found == (50, pytest.approx(20))             # 2 |w|^2, and 4 |w|
    assert [call[0] for call in seen] == [False, True] and seen[0][1] == seen[1][1]
    assert layer.weight.tolist() == [[3, 4]]


# ---- memory

def test_memory_asks_a_process_of_its_own_for_each_variant(monkeypatch):
    commands = []

    def answer(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=int('bf16' in command), stderr='no room',
                               stdout=f'a line\n{{"peak": {len(commands)}}}\n')
    monkeypatch.setattr(bench.subprocess, 'run', answer)
    args = bench.parse_args(['memory', '--batch-sizes', '2', '4', '--plain-memory-up-to', '2',
                             '--device', 'cpu', '--preset', 'paper'])
    ours = lambda first: {'ours float32': first, 'ours float32, cached audio': first + 1,
                          'ours bf16, cached audio': None}
    rows = bench.measure_memory(args)
    assert rows == [{'B': 2, 'plain float32': 1, **ours(2)}, {'B': 4, **ours(5)}]
    command = lambda who, B, precision: [
        sys.executable, '-m', 'speed.bench', '--alone', who, '--preset', 'paper', '--batch-sizes', B,
        '--precision', precision, '--device', 'cpu']
    assert commands[0] == command('plain', '2', 'float32')
    assert commands[1] == command('ours', '2', 'float32')
    assert commands[6] == [*command('ours', '4', 'bf16'), '--cached-audio']
    assert bench.parse_args(commands[6][3:]).alone == 'ours'
    args.free_memory = True
    bench.measure_memory(args)
    assert '--free-memory' in commands[-1]


@pytest.mark.parametrize('options, reading, precision', [
    (['plain'], 'plain_reading', 'float32'),
    (['ours', '--precision', 'bf16'], 'our_reading', 'bf16'),
    (['ours', '--cached-audio'], 'our_reading', 'float32')])
def test_a_process_alone_takes_the_asked_step(monkeypatch, capsys, options, reading, precision):
    taken = []
    model = torch.nn.Linear(1, 1)
    model.beats = SimpleNamespace(feature_dim=12)
    monkeypatch.setattr(bench, 'build', lambda *given: taken.append(given) or model)
    monkeypatch.setattr(bench, 'take_step', lambda *given: taken.append(given))
    monkeypatch.setattr(bench, 'peak_bytes', lambda device: 123)
    monkeypatch.setattr(bench, 'keep_freed_memory', lambda: None)
    run('--alone', *options, '--batch-sizes', 3)
    assert json.loads(capsys.readouterr().out) == {'peak': 123}
    assert taken[0] == ('miniature', torch.device('cpu'))
    step, _, batch, noise, settings, optimiser, how = taken[1]
    assert (step.__name__, how, settings.preset) == (reading, precision, 'miniature')
    assert batch['image'].shape == (3, 3, 96, 96) and noise[0].shape == (3, 3, 96, 96)
    assert optimiser.param_groups[0]['lr'] == 0
    if '--cached-audio' in options:                         # 198 frames: 12 x 8 tokens
        assert model.beats(None).shape == (3, 96, 12)

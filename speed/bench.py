"""What a step, an evaluation and a score cost, beside a plain reading of the paper (plain.py).

    python -m speed.bench --json bench.json                         # the miniature, a minute
    python -m speed.bench --preset paper                            # its sizes, random weights
    python -m speed.bench step --preset paper --batch-sizes 2 8     # one section
    python -m speed.bench step --preset paper --precision bf16 --cached-audio --batch-sizes 16 64

The plain reading runs the vision encoder B + 2 times for B pairs; ours runs it twice, and no layer
further than it is read. Both take the same weights, batch, noise and dropout, and must give the
same loss and gradient. Operations are counted from the shapes, on tensors without data, and held
against the rate of one large matrix product.

On a CPU the process keeps the memory of freed tensors: returning 50 MB to the system at each
operation, and getting them again, would be much of what is timed (--free-memory).
"""

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from unittest import mock

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from beats import FRAME, HOP, N_MELS, SAMPLE_RATE, BEATs, BEATsConfig
from checkpoint import given_options, overwritten, pick_device, run_script, some_path, write_file
from figures.tables import table
from losses import loss_terms
from model import PRESETS, ROOT, SoundLocalizer, load_model
from speed.costs import (clock, count_vision, keep_freed_memory, matrix_product_rate, name_of,
                         peak_bytes, staged, stages)
from speed.parts import measure_evaluation, measure_loading, measure_metrics
from speed.plain import plain_reading

EPOCHS, PAIRS = 20, 144_000         # Section 4.1
GPU_RATE = 0.4 * 989e12             # operations a second: 40% (assumed) of an H100's peak in bf16
BATCH_SIZES = {'miniature': (2, 4, 8), 'paper': (2, 4, 8, 16)}
TOLERANCE = 1e-4                    # relative, of float32 losses and gradients
VARIANTS = (('float32', False), ('float32', True), ('bf16', True))      # precision, audio cached


# ---- models and batches -----------------------------------------------------------------------

def random_model(clipseg_config, beats_config):
    """A SoundLocalizer of any size with random weights whose masks are neither empty nor full."""
    clipseg = CLIPSegForImageSegmentation(clipseg_config)
    for module in clipseg.decoder.modules():    # transformers draws these with a deviation of 1
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.05)
            nn.init.zeros_(module.bias)
    words = clipseg_config.text_config.vocab_size
    before = [i % words for i in (49406, 320, 1125, 539, 320)]      # "A photo of a" in CLIP's
    return SoundLocalizer(clipseg, BEATs(beats_config), (before, [49407 % words]), b=0.0)


def build(preset, device='cpu'):
    """The miniature's backbones, or the paper's sizes with random weights; never trained."""
    torch.manual_seed(0)
    if preset == 'miniature':
        return load_model(preset)[0].to(device)
    # the published weights' configuration; transformers' own default is patch 32
    config = CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9],
                           reduce_dim=64, use_complex_transposed_convolution=True)
    return random_model(config, BEATsConfig()).to(device)


def random_batch(B, size, seconds, device='cpu'):
    """Arguments of SoundLocalizer.forward: B pairs of noise, and MaskGen_I's uniform draws."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(B, 3, size, size, generator=generator)
    wav = torch.rand(B, round(seconds * SAMPLE_RATE), generator=generator) - 0.5
    noise = [torch.rand(B, n, size, size, generator=generator).clamp(min=1e-6) for n in (B, 1)]
    return {'image': image.to(device), 'wav': wav.to(device),
            'noise': [draw.to(device) for draw in noise]}


def step_name(who, precision, cached):
    return f'{who} {precision}, cached audio' if cached else f'{who} {precision}'


# ---- a step -----------------------------------------------------------------------------------

def take_step(forward, batch, optimiser, precision='float32', stage=contextlib.nullcontext):
    """Forward, Eq. 5, backward, Adam, always with the same dropout. -> loss, gradient norm"""
    torch.manual_seed(0)
    optimiser.zero_grad()
    with torch.autocast(batch['image'].device.type, torch.bfloat16, enabled=precision == 'bf16'):
        out = forward(**batch)
    with stage('losses'):
        loss = sum(loss_terms(out).values())                        # Eq. 5, each lambda 1
    with stage('backward'):
        loss.backward()
    with stage('optimiser'):
        optimiser.step()
    gradients = [p.grad.norm() for group in optimiser.param_groups for p in group['params']]
    return loss.item(), torch.stack(gradients).norm().item()


class Contender:
    """The plain reading, or ours in a precision, with or without BEATs' features at hand."""
    def __init__(self, model, batch, who='ours', precision='float32', cached=False):
        self.name, self.who = step_name(who, precision, cached), who
        self.model, self.batch, self.precision, self.cached = model, batch, precision, cached
        self.forward = partial(plain_reading, model) if who == 'plain' else model
        trained = [p for p in model.parameters() if p.requires_grad]
        # train.py's, but at a rate of 0: its work without its effect
        self.optimiser = torch.optim.Adam(trained, lr=0.0, weight_decay=1e-4)
        if cached:
            with torch.no_grad():
                self.batch = {**batch, 'features': model.beats(batch['wav'])}

    def step(self, stage=contextlib.nullcontext):
        return take_step(self.forward, self.batch, self.optimiser, self.precision, stage)

def operations(who, model, B, size, seconds, cached=False):
    """Multiplications and additions of a step's matrix products and convolutions, by the shapes.

    Elementwise operations, the filterbank, norms and softmax do not count. -> {term: operations}
    """
    frames = (round(seconds * SAMPLE_RATE) - FRAME) // HOP + 1
    ids = model.prompt_before.tolist(), model.prompt_after.tolist()
    mode = FlopCounterMode(display=False)
    stage, counts = stages(mode.get_total_flops)
    with torch.device('meta'), mode, sdpa_kernel(SDPBackend.MATH):  # it knows no fused kernels
        bare = SoundLocalizer(CLIPSegForImageSegmentation(model.clipseg.config),
                              BEATs(model.beats.cfg), ids)
        spectrogram = torch.empty(B, frames, N_MELS)
        batch = {'image': torch.empty(B, 3, size, size), 'wav': None,
                 'noise': [torch.empty(B, n, size, size) for n in (B, 1)]}
        with mock.patch('beats.fbank', lambda wav: spectrogram):
            contender = Contender(bare, batch, who, cached=cached)
            with staged(bare, stage), stage('masks'):       # here, the rest of the plain reading
                out = contender.forward(**contender.batch)
        with stage('losses'):
            loss = sum(loss_terms(out).values())
        with stage('backward'):
            loss.backward()
    return counts


# ---- section `step`: seconds, ratios, terms, and the gap to the machine's limit ---------------

def time_steps(contenders, repeats):
    """The contenders in turns, after one turn that only warms up. -> {name: dict}"""
    found = {one.name: {'all': []} for one in contenders}
    for turn in tqdm(range(repeats + 1), 'step', unit=' turns', leave=False):
        for one in contenders:
            stage, seconds = clock(one.batch['image'].device)
            with stage('step'):                 # one: on a GPU every stage waits for it
                loss, gradient = one.step()
            entry = found[one.name]
            if turn:
                entry['all'].append(seconds['step'])
                entry['seconds'] = statistics.median(entry['all'])
            else:
                passes = count_vision(one.model, one.step)
                entry |= {'loss': loss, 'gradient': gradient, 'passes': passes}
    return found


def time_terms(contender, repeats):
    """-> {term: median seconds}"""
    runs = []
    for _ in range(repeats):
        stage, seconds = clock(contender.batch['image'].device)
        with staged(contender.model, stage):
            contender.step(stage)
        runs.append(seconds)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_step(args, device):
    """-> a list of dicts, one per batch size: 'B', 'steps' {name: dict}, 'terms' {name: dict};
    and {precision: rate of a matrix product}"""
    config, rows = PRESETS[args.preset], []
    model = build(args.preset, device).train()
    models = {'float32': model}
    if any(precision == 'bf16' for precision, _ in args.variants):
        models['bf16'] = copy.deepcopy(model)
        models['bf16'].hold_frozen(torch.bfloat16)              # as train.py does
    rates = {precision: matrix_product_rate(device, precision) for precision in models}
    for B in args.batch_sizes:
        batch = random_batch(B, config.image_size, config.seconds, device)
        plain, *ours = [Contender(model, batch, 'plain'),
                        *(Contender(models[p], batch, 'ours', p, c) for p, c in args.variants)]
        found = time_steps([plain, *ours], args.repeats)
        counts = {one.name: operations(one.who, model, B, config.image_size, config.seconds,
                                       one.cached) for one in (plain, *ours)}
        for one in (plain, *ours):
            entry, counted = found[one.name], sum(counts[one.name].values())
            entry |= {'times': found[plain.name]['seconds'] / entry['seconds'],
                      'operations': counted,
                      'times, counted': sum(counts[plain.name].values()) / counted,
                      '% of product': 100 * counted / entry['seconds'] / rates[one.precision],
                      'GPU hours': EPOCHS * PAIRS / B * counted / GPU_RATE / 3600}
            if one.precision == 'float32':
                refuse_difference(found[plain.name], entry, B)
        terms = {name: {'seconds': seconds, 'operations': counts[ours[0].name].get(name, 0)}
                 for name, seconds in time_terms(ours[0], args.repeats).items()}
        rows.append({'B': B, 'steps': found, 'terms': terms})
    return rows, rates


def refuse_difference(plain, ours, B):
    """Two steps whose loss or gradient differ are not one step at two speeds."""
    for name in ('loss', 'gradient'):
        if not abs(plain[name] - ours[name]) <= TOLERANCE * abs(plain[name]):
            raise ValueError(f'at B = {B} the {name} of the plain reading is {plain[name]!r} and '
                             f'ours {ours[name]!r}: they must agree, so one of the two steps is '
                             'wrong')


def show_steps(rows, rates, variant):
    print('\nA training step (forward, loss, backward, Adam). times: how many times as long the '
          'plain reading takes.\n% of product: of the rate of one large matrix product, here '
          + ', '.join(f'{rate / 1e12:.3g}e12/s in {p}' for p, rate in rates.items())
          + f'.\nGPU hours: an estimate for {EPOCHS} epochs of {PAIRS:,} pairs at '
          f'{GPU_RATE / 1e12:.0f}e12/s, 40% of one H100 in bf16')
    columns = {'B': 0, 'step': 0, 'seconds': 3, 'times': 2, 'loss': 6, 'gradient': 6, 'passes': 0,
               'times, counted': 2, '% of product': 1, 'GPU hours': 2}
    lines = [{'B': row['B'], 'step': name, **entry}
             for row in rows for name, entry in row['steps'].items()]
    cells = [[line[column] for column in columns] for line in lines]
    print(table(cells, list(columns), decimals=list(columns.values())))
    print(f'\nTerm by term ({variant}): seconds, and 10^9 operations')
    lines = [[row['B'], name, term['seconds'], term['operations'] / 1e9]
             for row in rows for name, term in row['terms'].items()]
    print(table(lines, ['B', 'term', 'seconds', 'operations'], decimals=3))


# ---- section `memory`: each step in a process of its own --------------------------------------

def one_step_alone(args, device):
    """What a subprocess runs: one step and nothing else. Prints its peak in bytes."""
    config, model = PRESETS[args.preset], build(args.preset, device).train()
    precision, cached = args.variants[0]
    batch = random_batch(args.batch_sizes[0], config.image_size, config.seconds, device)
    if precision == 'bf16':
        model.hold_frozen(torch.bfloat16)
    Contender(model, batch, args.alone, precision, cached).step()
    print(json.dumps({'peak': peak_bytes(device)}))


def measure_memory(args):
    """Peak bytes of a step by variant and batch size. -> a list of dicts"""
    rows = []
    for B in tqdm(args.batch_sizes, 'memory', unit=' batch sizes', leave=False):
        row = {'B': B}
        for who, precision, cached in (('plain', 'float32', False),
                                       *(('ours', *variant) for variant in args.variants)):
            command = [sys.executable, '-m', 'speed.bench', '--alone', who, '--preset', args.preset,
                       '--batch-sizes', str(B), '--precision', precision, '--device', args.device]
            command += ['--cached-audio'] if cached else []
            command += ['--free-memory'] if args.free_memory else []
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            name = step_name(who, precision, cached)
            row[name] = None
            if done.returncode:
                reason = (done.stderr.splitlines() or ['killed'])[-1]
                tqdm.write(f'{name} at B = {B} did not finish: {reason}')
            else:
                row[name] = json.loads(done.stdout.splitlines()[-1])['peak']
        rows.append(row)
    return rows


# ---- the script -------------------------------------------------------------------------------

SECTIONS = ('step', 'memory', 'load', 'evaluate', 'metrics')
SECTIONS_OF = {     # the options that only some sections read
    'batch_sizes': ('step', 'memory'), 'precision': ('step', 'memory'),
    'cached_audio': ('step', 'memory'), 'repeats': ('step', 'evaluate'), 'heatmaps': ('metrics',)}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog='python -m speed.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('sections', nargs='*', help=f'{", ".join(SECTIONS)} (default: all)')
    add('--preset', choices=list(PRESETS), default='miniature',
        help='paper: its sizes, random weights')
    add('--batch-sizes', type=int, nargs='+', help='(default: 2 4 8, and 16 for the paper)')
    add('--precision', choices=['float32', 'bf16'], help='of ours; plain stays in float32')
    add('--cached-audio', action='store_true', help='ours finds the BEATs features ready')
    add('--repeats', type=int, default=3, help='timings, of which the median counts (default: 3)')
    add('--heatmaps', type=int, default=1000, help='for the section metrics (default: 1000)')
    add('--free-memory', action='store_true',
        help='on a CPU: return the memory of freed tensors to the system, as train.py does')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='(default: the best that is there)')
    add('--json', type=some_path, help='write everything here')
    add('--alone', choices=['plain', 'ours'], help=argparse.SUPPRESS)   # a subprocess of `memory`
    args = parser.parse_args(argv)
    for section in args.sections:
        if section not in SECTIONS:
            parser.error(f'no section {section!r}: choose from {", ".join(SECTIONS)}')
    args.sections = args.sections or list(SECTIONS)
    given = given_options(parser, argv)
    for name, readers in SECTIONS_OF.items():
        if name in given and not set(readers) & set(args.sections):
            parser.error(f'{given[name]} is for the section {" or ".join(readers)}: name that too, '
                         'or leave it out')
    preset = PRESETS[args.preset]
    weights = [('the weights', path) for path in (preset.beats, preset.clipseg)]
    sentence = overwritten([('--json', args.json)], weights)
    if sentence:
        parser.error(sentence)
    if args.json and os.path.isdir(args.json):
        parser.error(f'--json {args.json} is a folder: name a file in it')
    args.batch_sizes = args.batch_sizes or list(BATCH_SIZES[args.preset])
    if min(args.batch_sizes) < 2 or args.repeats < 1 or args.heatmaps < 1:
        parser.error('--batch-sizes must be at least 2 (one pair has no negatives), --repeats and '
                     '--heatmaps at least 1')
    args.variants = VARIANTS
    if args.precision or args.cached_audio:
        args.variants = [(args.precision or 'float32', args.cached_audio)]
    return args


def run_section(section, args, device):
    """Measure and print one section. -> what the JSON holds of it"""
    config = PRESETS[args.preset]
    if section == 'memory':
        rows = measure_memory(args)
        print('\nPeak memory of a step in GB, with weights and libraries, each in its own process '
              '(a dash: not finished, or not told by this system)')
        names = [name for name in rows[0] if name != 'B']
        cells = [[row['B'], *(row[name] and row[name] / 1e9 for name in names)] for row in rows]
        print(table(cells, ['B', *names], decimals=2))
        return {'memory': rows}
    if section == 'step':
        rows, rates = measure_step(args, device)
        show_steps(rows, rates, step_name('ours', *args.variants[0]))
        return {'step': rows, 'matrix_product': rates}
    if section == 'load':
        title, rows = 'Training pairs, 640 x 360 JPEG and 16-bit sound, read by one process', [
            measure_loading(config.image_size, config.seconds)]
    elif section == 'evaluate':
        batch = random_batch(8, config.image_size, config.seconds, device)
        title = 'Evaluation: heatmaps of 224 x 224 for images under audios'
        rows = measure_evaluation(build(args.preset, device), batch['image'], batch['wav'],
                                  args.repeats)
    else:
        title = 'Scoring at 19 thresholds (255 for F), single source and segmentation, one thread'
        rows = [measure_metrics(args.heatmaps)]
    print(f'\n{title}')
    print(table([list(row.values()) for row in rows], list(rows[0]), decimals=3))
    return {section: rows if section == 'evaluate' else rows[0]}


def main(args):
    device = pick_device(args.device)
    args.device = device.type
    if device.type == 'cpu' and not args.free_memory:
        keep_freed_memory()             # for both readings
    if args.alone:
        return one_step_alone(args, device)
    memory = 'returned' if args.free_memory else 'kept'
    report = {'machine': {'device': name_of(device), 'threads': torch.get_num_threads(),
                          'torch': torch.__version__, 'freed_memory': memory},
              'preset': args.preset}
    print(f'{args.preset} on {name_of(device)}, {torch.get_num_threads()} threads, torch '
          f'{torch.__version__}, freed memory {memory}')
    # memory first, while this process is small
    for section in sorted(args.sections, key=('memory', *SECTIONS).index):
        report |= run_section(section, args, device)
        if args.json:                   # after each section: what is measured is saved
            write_file(args.json, json.dumps(report, indent=1))


if __name__ == '__main__':
    run_script('speed.bench', lambda: main(parse_args()), 'interrupted')

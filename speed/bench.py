"""What a step, an evaluation and a score cost, beside a plain reading of the paper (plain.py).

    python -m speed.bench --json bench.json                         # the miniature, a minute or two
    python -m speed.bench --preset paper                            # its sizes, random weights
    python -m speed.bench step --preset paper --batch-sizes 2 8     # one section
    python -m speed.bench step --preset paper --precision bf16 --cached-audio --batch-sizes 16 64
    python -m speed.bench step --preset paper --batch-sizes 2 --only-count 64   # 64: not timed

The plain reading runs the vision encoder B + 2 times for B pairs; ours runs it twice, and computes
no layer whose output nothing reads. Both take the same weights, batch, noise and dropout, and must
give the same loss and gradient. They take turns in one process, so what slows the machine slows
both. Operations are counted from the shapes, on tensors without data (device 'meta'), and compared
with the rate of one large matrix product.
On a CPU the process keeps the memory of freed tensors: to return 50 MB to the system after each
operation and ask for them again takes up to a third of a step (--free-memory).
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from beats import FRAME, HOP, N_MELS, SAMPLE_RATE, BEATs, BEATsConfig
from figures.tables import table
from launch import given_options, overwritten, pick_device, run_script, some_path, write_file
from losses import loss_terms
from model import PRESETS, SoundLocalizer, load_model
from speed.costs import (by_terms, count_vision, keep_freed_memory, matrix_product_rate, name_of,
                         now, peak_bytes, seconds_of)
from speed.parts import measure_evaluation, measure_loading, measure_metrics
from speed.plain import plain_reading

EPOCHS, PAIRS = 20, 144_000         # Section 4.1
GPU_RATE = 0.4 * 989e12             # operations a second: 40% (assumed) of an H100's peak in bf16
BATCH_SIZES = {'miniature': [2, 4, 8], 'paper': [2, 4, 8, 16]}
TOLERANCE = 1e-4                    # relative, of float32 losses and gradients


# ---- which variants of a step are compared ----------------------------------------------------

class Variant(NamedTuple):
    reading: str                    # 'plain' or 'ours'
    precision: str = 'float32'      # or 'bf16'
    cached: bool = False            # whether BEATs' features are given

    def name(self):
        audio = ', cached audio' if self.cached else ''
        return f'{self.reading} {self.precision}{audio}'


PLAIN = Variant('plain')
OURS = [Variant('ours'), Variant('ours', cached=True), Variant('ours', 'bf16', cached=True)]


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


def build(preset, device='cpu', precision='float32'):
    """The miniature's backbones, or the paper's sizes with random weights; never trained."""
    torch.manual_seed(0)
    if preset == 'miniature':
        model = load_model(preset)[0]
    else:
        # the published weights' configuration; transformers' own default is patch 32
        config = CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9],
                               reduce_dim=64, use_complex_transposed_convolution=True)
        model = random_model(config, BEATsConfig())
    if precision == 'bf16':
        model.hold_frozen(torch.bfloat16)               # as train.py does
    return model.to(device)


def random_batch(B, size, seconds, device='cpu'):
    """Arguments of SoundLocalizer.forward: B pairs of noise, and MaskGen_I's uniform numbers."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(B, 3, size, size, generator=generator)
    wav = torch.rand(B, round(seconds * SAMPLE_RATE), generator=generator) - 0.5
    noise = [torch.rand(B, n, size, size, generator=generator).clamp(min=1e-6) for n in (B, 1)]
    return {'image': image.to(device), 'wav': wav.to(device),
            'noise': [draw.to(device) for draw in noise]}


# ---- a training step, and its operations ------------------------------------------------------

class Step:
    """step(): forward, Eq. 5, backward and Adam at a rate of 0, so that no weight changes."""

    def __init__(self, model, batch, variant):
        self.model = model
        self.forward = partial(plain_reading, model) if variant.reading == 'plain' else model
        self.device = batch['image'].device
        self.autocast = contextlib.nullcontext()
        if variant.precision == 'bf16':
            self.autocast = torch.autocast(self.device.type, torch.bfloat16)
        self.batch = batch
        if variant.cached:
            with self.autocast:
                self.batch = {**batch, 'features': model.beats(batch['wav'])}
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.trained, lr=0.0, weight_decay=1e-4)

    def __call__(self, term=contextlib.nullcontext):
        """Always with the same dropout. term: see costs.by_terms. -> loss, gradient norm"""
        torch.manual_seed(0)
        self.optimiser.zero_grad()
        with term('masks'), self.autocast:          # less the parts that by_terms names
            out = self.forward(**self.batch)
        with term('losses'):
            loss = sum(loss_terms(out).values())                        # Eq. 5, each lambda 1
        with term('backward'):
            loss.backward()
        with term('optimiser'):
            self.optimiser.step()
        gradients = [p.grad.norm() for p in self.trained]
        return loss.detach(), torch.stack(gradients).norm()


def operations(variant, model, B, size, seconds):
    """Multiplications and additions of a step's matrix products and convolutions, by the shapes.

    Elementwise operations, the filterbank, norms and softmax do not count. -> {term: operations}
    """
    frames = (round(seconds * SAMPLE_RATE) - FRAME) // HOP + 1
    ids = model.prompt_before.tolist(), model.prompt_after.tolist()
    with torch.device('meta'):
        empty = SoundLocalizer(CLIPSegForImageSegmentation(model.clipseg.config),
                               BEATs(model.beats.cfg), ids)
        spectrogram = torch.empty(B, frames, N_MELS)
        batch = {'image': torch.empty(B, 3, size, size), 'wav': None,
                 'noise': [torch.empty(B, n, size, size) for n in (B, 1)]}
    mode = FlopCounterMode(display=False)               # MATH: fused kernels are not counted
    with mode, sdpa_kernel(SDPBackend.MATH), mock.patch('beats.fbank', lambda wav: spectrogram):
        step = Step(empty, batch, Variant(variant.reading, cached=variant.cached))
        return by_terms(step, mode.get_total_flops)


# ---- section `step`: the variants side by side ------------------------------------------------

def time_steps(steps, repeats):
    """Run these Steps in turns, after one of each that only warms up.

    -> for each: {passes, all, seconds: the median of all, loss, gradient}
    """
    measured = [{'passes': count_vision(step.model, step), 'all': []} for step in steps]
    for _ in tqdm(range(repeats), 'step', unit=' turns', leave=False):
        for step, entry in zip(steps, measured):
            seconds, (loss, gradient) = seconds_of(step, step.device)
            entry['all'].append(seconds)
            entry.update(loss=loss.item(), gradient=gradient.item())
    for entry in measured:
        entry['seconds'] = statistics.median(entry['all'])
    return measured


def time_terms(step, repeats):
    """-> {term: median seconds}"""
    runs = [by_terms(step, partial(now, step.device)) for _ in range(repeats)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_step(preset, device, variants, batch_sizes, only_count, repeats):
    """-> a dict for each batch size and variant, a dict for each batch size and term of ours,
    {precision: operations a second of a matrix product}"""
    size = PRESETS[preset].image_size, PRESETS[preset].seconds
    variants = [PLAIN, *variants]
    precisions = dict.fromkeys(variant.precision for variant in variants)
    models = {precision: build(preset, device, precision).train() for precision in precisions}
    peak_rates = {precision: matrix_product_rate(device, precision) for precision in precisions}
    rows = []
    terms = []
    for B in [*batch_sizes, *only_count]:
        counts = [operations(variant, models['float32'], B, *size) for variant in variants]
        timed = [{} for _ in variants]
        seconds = {}
        if B in batch_sizes:
            batch = random_batch(B, *size, device)
            steps = [Step(models[variant.precision], batch, variant) for variant in variants]
            timed = time_steps(steps, repeats)
            seconds = time_terms(steps[1], repeats)
        totals = [sum(count.values()) for count in counts]
        for variant, total, found in zip(variants, totals, timed):
            row = {'B': B, 'step': variant.name(), 'operations': total,
                   'times, counted': totals[0] / total,
                   'GPU hours': EPOCHS * PAIRS / B * total / GPU_RATE / 3600, **found}
            if found:
                row['times'] = timed[0]['seconds'] / row['seconds']
                row['% of product'] = 100 * total / row['seconds'] / peak_rates[variant.precision]
            if found and variant.precision == 'float32':
                refuse_difference(timed[0], found, B)
            rows.append(row)
        terms += [{'B': B, 'term': term, 'seconds': seconds.get(term), '10^9 operations': n / 1e9}
                  for term, n in counts[1].items()]
    return rows, terms, peak_rates


def refuse_difference(plain, ours, B):
    """ValueError where the loss or the gradient of the two readings of a step differ."""
    for name in ('loss', 'gradient'):
        if not abs(plain[name] - ours[name]) <= TOLERANCE * abs(plain[name]):
            raise ValueError(f'at B = {B} the {name} of the plain reading is {plain[name]!r} and '
                             f'ours {ours[name]!r}: they must agree, so one of the two steps is '
                             'wrong')


# ---- section `memory`: each step in a process of its own --------------------------------------

def peak_of_one_step(B, variant, preset, device, free_memory):
    """One step in a process that does nothing else. -> the most bytes that it held"""
    if not free_memory:
        keep_freed_memory()
    model = build(preset, device, variant.precision).train()
    batch = random_batch(B, PRESETS[preset].image_size, PRESETS[preset].seconds, device)
    Step(model, batch, variant)()
    return peak_bytes(device)


def measure_memory(preset, device, variants, batch_sizes, free_memory):
    """-> a dict for each batch size and variant; None for what did not finish"""
    spawn = multiprocessing.get_context('spawn')
    steps = [(B, variant) for B in batch_sizes for variant in (PLAIN, *variants)]
    rows = []
    for B, variant in tqdm(steps, 'memory', unit=' steps', leave=False):
        row = {'B': B, 'step': variant.name(), 'peak GB': None}
        with ProcessPoolExecutor(1, spawn) as pool:
            peak = pool.submit(peak_of_one_step, B, variant, preset, device, free_memory)
        if peak.exception():            # the system kills a process that has taken all memory
            tqdm.write(f'{row["step"]} at B = {B} did not finish: {peak.exception()}')
        elif peak.result():
            row['peak GB'] = peak.result() / 1e9
        rows.append(row)
    return rows


# ---- the script -------------------------------------------------------------------------------

# memory first, while this process is small
SECTIONS = ('memory', 'step', 'load', 'videos', 'evaluate', 'metrics')
SECTIONS_OF = {     # the options that only some sections read
    'batch_sizes': ('step', 'memory'), 'only_count': ('step',), 'precision': ('step', 'memory'),
    'cached_audio': ('step', 'memory'), 'repeats': ('step', 'evaluate'), 'heatmaps': ('metrics',)}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog='python -m speed.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('sections', nargs='*', help=f'{", ".join(SECTIONS)} (default: all)')
    add('--preset', choices=list(PRESETS), default='miniature',
        help='paper: its sizes, random weights')
    add('--batch-sizes', type=int, nargs='+', help='(default: 2 4 8, and 16 for the paper)')
    add('--only-count', type=int, nargs='+', default=[], metavar='B',
        help='more batch sizes, whose operations are counted and no step is timed')
    add('--precision', choices=['float32', 'bf16'], help='of ours; plain stays in float32')
    add('--cached-audio', action='store_true', help='ours is given the BEATs features')
    add('--repeats', type=int, default=3, help='timings, of which the median counts (default: 3)')
    add('--heatmaps', type=int, default=1000, help='for the section metrics (default: 1000)')
    add('--free-memory', action='store_true',
        help='on a CPU: return the memory of freed tensors to the system, as train.py does')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='(default: cuda, else cpu)')
    add('--json', type=some_path, help='write everything here')
    args = parser.parse_args(argv)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f'no section {min(unknown)!r}: choose from {", ".join(SECTIONS)}')
    args.sections = args.sections or list(SECTIONS)
    given = given_options(parser, argv)
    for name, readers in SECTIONS_OF.items():
        if name in given and not set(readers) & set(args.sections):
            parser.error(f'{given[name]} is for the section {" or ".join(readers)}: name that too, '
                         'or leave it out')
    preset = PRESETS[args.preset]
    weights = [('the weights', preset.beats), ('the weights', preset.clipseg)]
    if sentence := overwritten([('--json', args.json)], weights):
        parser.error(sentence)
    if args.json and os.path.isdir(args.json):
        parser.error(f'--json {args.json} is a folder: name a file in it')
    args.batch_sizes = args.batch_sizes or BATCH_SIZES[args.preset]
    if min(args.batch_sizes + args.only_count) < 2 or args.repeats < 1 or args.heatmaps < 1:
        parser.error('batch sizes must be at least 2 (one pair has no negatives), --repeats and '
                     '--heatmaps at least 1')
    args.variants = OURS
    if args.precision or args.cached_audio:
        args.variants = [Variant('ours', args.precision or 'float32', args.cached_audio)]
    return args


def show(title, rows, columns=None, decimals=3):
    """Print dicts as a table, a missing value as a dash. columns: by default the first's keys."""
    columns = list(columns or rows[0])
    print(f'\n{title}')
    print(table([[row.get(name) for name in columns] for row in rows], columns, decimals=decimals))


def run_section(section, args, device):
    """Measure and print one section. -> what the JSON holds of it"""
    size = PRESETS[args.preset].image_size, PRESETS[args.preset].seconds
    if section == 'step':
        rows, terms, peak_rates = measure_step(args.preset, device, args.variants, args.batch_sizes,
                                               args.only_count, args.repeats)
        rates = ', '.join(f'{rate / 1e12:.3g}e12/s in {p}' for p, rate in peak_rates.items())
        columns = {'B': 0, 'step': 0, 'seconds': 3, 'times': 2, 'loss': 6, 'gradient': 6,
                   'passes': 0, 'times, counted': 2, '% of product': 1, 'GPU hours': 2}  # decimals
        show('A training step (forward, loss, backward, Adam). times: how many times as long the '
             f'plain reading takes.\n% of product: of one large matrix product\'s rate, {rates}.\n'
             f'GPU hours: an estimate for {EPOCHS} epochs of {PAIRS:,} pairs at '
             f'{GPU_RATE / 1e12:.0f}e12/s, 40% of one H100 in bf16',
             rows, columns, list(columns.values()))
        show(f'Term by term ({args.variants[0].name()})', terms)
        return {'step': rows, 'terms': terms, 'matrix_product': peak_rates}
    if section == 'memory':
        title = ('Peak memory of a step, with weights and libraries, each in its own process (a '
                 'dash: not finished, or not told by this system)')
        rows = measure_memory(args.preset, device, args.variants, args.batch_sizes,
                              args.free_memory)
    elif section == 'load':
        title = 'Training pairs, 640 x 360 JPEG and 16-bit sound, read by one process'
        rows = [measure_loading(*size)]
    elif section == 'videos':
        from speed.clips import measure_clips       # here, not above: only this one needs PyAV
        title = 'Videos of 8 s, 384 x 384, extracted (videos.extract)'
        rows = [measure_clips()]
    elif section == 'evaluate':
        title = 'Evaluation: heatmaps of 224 x 224 for images under audios'
        batch = random_batch(8, *size, device)
        rows = measure_evaluation(build(args.preset, device), batch['image'], batch['wav'],
                                  args.repeats)
    else:
        title = 'Scoring at 19 thresholds (255 for F), single source and segmentation, one thread'
        rows = [measure_metrics(args.heatmaps)]
    show(title, rows)
    return {section: rows}


def main(args):
    device = pick_device(args.device)
    if not args.free_memory:
        keep_freed_memory()             # for both readings
    # cuDNN would round float32 to 10 bits (TF32), by which the two readings may differ
    torch.backends.cudnn.allow_tf32 = False
    machine = {'device': name_of(device), 'threads': torch.get_num_threads(),
               'torch': torch.__version__,
               'freed_memory': 'returned' if args.free_memory else 'kept'}
    print(args.preset, 'on {device}, {threads} threads, torch {torch}, freed memory {freed_memory}'
          .format(**machine))
    report = {'machine': machine, 'preset': args.preset}
    for section in SECTIONS:
        if section in args.sections:
            report |= run_section(section, args, device)
        if args.json:                   # after each section: what is measured is saved
            write_file(args.json, json.dumps(report, indent=1))


if __name__ == '__main__':
    run_script('speed.bench', lambda: main(parse_args()), 'interrupted')

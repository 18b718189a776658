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
import copy
import json
import math
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import losses
from beats import FRAME, HOP, N_MELS, SAMPLE_RATE, BEATs, BEATsConfig
from figures.tables import table
from launch import (between, given_options, overwritten, run_script, sentence_for, some_path,
                    start_processes, write_file)
from model import PRESETS, SoundLocalizer, load_model
from speed.costs import (by_terms, count_vision, keep_freed_memory, matrix_product_rate, name_of,
                         now, peak_bytes, seconds_of)
from speed.parts import measure_evaluation, measure_loading, measure_metrics, measure_videos
from speed.plain import plain_reading

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
    for module in clipseg.decoder.modules():    # transformers draws some with a deviation of 1
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.05)
            nn.init.zeros_(module.bias)
    prompt = [0] * 5, [1]                       # as many tokens as "A photo of a <*>" has
    return SoundLocalizer(clipseg, BEATs(beats_config), prompt, b=0.0)


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
        model.cast_frozen(torch.bfloat16)               # as train.py does
    return model.to(device).train()


def random_batch(B, size, seconds, device='cpu'):
    """Arguments of SoundLocalizer.forward: B pairs of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(B, 3, size, size, generator=generator)
    wav = torch.rand(B, round(seconds * SAMPLE_RATE), generator=generator) - 0.5
    return {'image': image.to(device), 'wav': wav.to(device)}


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

    def __call__(self):
        """-> loss, gradient norm; always with the same dropout and Gumbel noise"""
        torch.manual_seed(0)
        self.optimiser.zero_grad()
        with self.autocast:
            out = self.forward(**self.batch)
        loss = sum(losses.loss_terms(out).values())                     # Eq. 5, each lambda 1
        loss.backward()
        self.optimiser.step()
        gradients = [p.grad for p in self.trained]
        return loss.detach(), nn.utils.get_total_norm(gradients)


def operations(variant, empty, B, size, seconds):
    """Multiplications and additions of a step's matrix products and convolutions, by the shapes.

    empty: the model on the device 'meta'. Elementwise operations, the filterbank, norms and softmax
    do not count. -> {term: operations}
    """
    frames = (round(seconds * SAMPLE_RATE) - FRAME) // HOP + 1
    spectrogram = torch.empty(B, frames, N_MELS, device='meta')
    batch = {'image': torch.empty(B, 3, size, size, device='meta'), 'wav': None}
    mode = FlopCounterMode(display=False)               # counts attention too: unfused on meta
    with mode, mock.patch('beats.fbank', lambda wav: spectrogram):
        step = Step(empty, batch, variant._replace(precision='float32'))
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
    """Time steps and count their operations. only_count: batch sizes that are not timed.

    -> {'step': a dict for each batch size and variant, 'terms': a dict for each batch size and
    term of the first of ours, 'matrix_product': one dict}
    """
    size = PRESETS[preset].image_size, PRESETS[preset].seconds
    variants = [PLAIN, *variants]
    precisions = dict.fromkeys(variant.precision for variant in variants)
    models = {precision: build(preset, device, precision) for precision in precisions}
    empty = copy.deepcopy(models['float32']).to('meta')
    limits = {precision: matrix_product_rate(device, precision) for precision in precisions}
    rows = []
    terms = []
    for B in [*batch_sizes, *only_count]:
        counts = [operations(variant, empty, B, *size) for variant in variants]
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
                   'times, counted': totals[0] / total, **found}
            if found:
                row['times'] = timed[0]['seconds'] / row['seconds']
                row['% of product'] = 100 * total / row['seconds'] / limits[variant.precision]
                if variant.precision == 'float32':
                    refuse_difference(timed[0], found, B)
            rows.append(row)
        terms += [{'B': B, 'step': variants[1].name(), 'term': term, 'seconds': seconds.get(term),
                   '10^9 operations': n / 1e9} for term, n in counts[1].items()]
    return {'step': rows, 'terms': terms,
            'matrix_product': [{name: rate / 1e12 for name, rate in limits.items()}]}


def refuse_difference(plain, ours, B):
    """ValueError where the loss or the gradient of the two readings of a step differ."""
    for name in ('loss', 'gradient'):
        if not math.isclose(plain[name], ours[name], rel_tol=TOLERANCE):        # nan too
            raise ValueError(f'at B = {B} the {name} of the plain reading is {plain[name]!r} and '
                             f'ours {ours[name]!r}: they must agree, so one of the two is wrong')


# ---- section `memory`: each step in a process of its own --------------------------------------

def peak_of_one_step(B, variant, preset, device, free_memory):
    """One step in a process that does nothing else. -> the most bytes that it held"""
    if not free_memory:
        keep_freed_memory()
    model = build(preset, device, variant.precision)
    batch = random_batch(B, PRESETS[preset].image_size, PRESETS[preset].seconds, device)
    Step(model, batch, variant)()
    return peak_bytes(device)


def measure_memory(preset, device, variants, batch_sizes, free_memory):
    """-> a dict for each batch size and variant; None for what did not finish"""
    spawn = multiprocessing.get_context('spawn')
    steps = [(B, variant) for B in batch_sizes for variant in (PLAIN, *variants)]
    rows = []
    for B, variant in tqdm(steps, 'memory', unit=' steps', leave=False):
        with ProcessPoolExecutor(1, spawn) as pool:
            peak = pool.submit(peak_of_one_step, B, variant, preset, device, free_memory)
        held = None
        if error := peak.exception():   # the system kills a process that has taken all memory
            tqdm.write(f'{variant.name()} at B = {B} did not finish: '
                       f'{sentence_for(error) or error}')
        else:
            held = peak.result()
        rows.append({'B': B, 'step': variant.name(), 'peak GB': held and held / 1e9})
    return rows


# ---- the script -------------------------------------------------------------------------------

# memory first, while this process is small
SECTIONS = ('memory', 'step', 'load', 'videos', 'evaluate', 'metrics')
SECTIONS_OF = {     # the options that only some sections read
    'batch_sizes': ('step', 'memory'), 'only_count': ('step',), 'precision': ('step', 'memory'),
    'cached_audio': ('step', 'memory'), 'repeats': ('step', 'evaluate'), 'heatmaps': ('metrics',)}
TITLES = {
    'memory': 'Peak memory of a step, with weights and libraries, each in its own process (a dash: '
              'not finished, or not told by this system)',
    'step': 'A training step (forward, loss, backward, Adam). times: how many times as long the '
            'plain reading takes.\n% of product: of the rate of one large matrix product (below)',
    'terms': 'Its terms',
    'matrix_product': '10^12 operations a second of one large matrix product',
    'load': 'Training pairs, 640 x 360 JPEG and 16-bit sound, read by one process',
    'videos': 'Videos of 8 s, 384 x 384, extracted (videos.extract)',
    'evaluate': 'Evaluation: heatmaps of 224 x 224 for images under audios',
    'metrics': 'mIoU at 19 thresholds and F at 255, one thread'}
STEP_COLUMNS = {'B': 0, 'step': 0, 'seconds': 3, 'times': 2, 'loss': 6, 'gradient': 6,
                'passes': 0, 'times, counted': 2, '% of product': 1}            # decimals


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog='python -m speed.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('sections', nargs='*', help=f'{", ".join(SECTIONS)} (default: all)')
    add('--preset', choices=list(PRESETS), default='miniature',
        help='paper: its sizes, random weights')
    add('--batch-sizes', type=between(int, 2), nargs='+',
        help='from 2 on: one pair has no negatives (default: 2 4 8, and 16 for the paper)')
    add('--only-count', type=between(int, 2), nargs='+', default=[], metavar='B',
        help='more batch sizes, whose operations are counted and no step is timed')
    add('--precision', choices=['float32', 'bf16'], help='of ours; plain stays in float32')
    add('--cached-audio', action='store_true', help='ours is given the BEATs features')
    add('--repeats', type=between(int, 1), default=3,
        help='timings, of which the median counts (default: 3)')
    add('--heatmaps', type=between(int, 1), default=1000,
        help='for the section metrics (default: 1000)')
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
    args.variants = OURS
    if args.precision or args.cached_audio:
        args.variants = [Variant('ours', args.precision or 'float32', args.cached_audio)]
    return args


def measure(section, args, device):
    """Measure one section. -> {name in TITLES: rows of a table, as dicts}"""
    size = PRESETS[args.preset].image_size, PRESETS[args.preset].seconds
    if section == 'step':
        return measure_step(args.preset, device, args.variants, args.batch_sizes, args.only_count,
                            args.repeats)
    if section == 'memory':
        rows = measure_memory(args.preset, device, args.variants, args.batch_sizes,
                              args.free_memory)
    elif section == 'load':
        rows = [measure_loading(*size)]
    elif section == 'videos':
        rows = [measure_videos()]
    elif section == 'evaluate':
        batch = random_batch(8, *size, device)
        rows = measure_evaluation(build(args.preset, device).eval(), batch['image'], batch['wav'],
                                  args.repeats)
    else:
        rows = [measure_metrics(args.heatmaps)]
    return {section: rows}


def main(args):
    device = start_processes(args.device)       # on CUDA without TF32: the readings must agree
    if not args.free_memory:
        keep_freed_memory()                     # for both readings
    machine = {'device': name_of(device), 'threads': torch.get_num_threads(),
               'torch': torch.__version__,
               'freed_memory': 'returned' if args.free_memory else 'kept'}
    print(f'{args.preset}:', ', '.join(f'{name} {value}' for name, value in machine.items()))
    report = {'machine': machine, 'preset': args.preset}
    for section in SECTIONS:
        if section not in args.sections:
            continue
        tables = measure(section, args, device)
        for name, rows in tables.items():
            columns = STEP_COLUMNS if name == 'step' else dict.fromkeys(rows[0], 3)
            cells = [[row.get(column) for column in columns] for row in rows]
            print(f'\n{TITLES[name]}')
            print(table(cells, list(columns), list(columns.values())))
        report |= tables
        if args.json:                   # after each section: what is measured is saved
            write_file(args.json, json.dumps(report, indent=1))


if __name__ == '__main__':
    run_script('speed.bench', lambda: main(parse_args()), 'interrupted')

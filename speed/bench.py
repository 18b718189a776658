"""What a step, an evaluation and a score cost, beside a plain reading of the paper (section 3.5, 4.1).

    python -m speed.bench --json bench.json                           # the miniature, a minute
    python -m speed.bench --preset paper --json bench.json            # ViT-B/16 at 352 x 352, 12-layer BEATs, random weights
    python -m speed.bench step --preset paper --batch-sizes 2 8       # one section: step, memory, load, evaluate or metrics
    python -m speed.bench step --preset paper --precision bf16 --cached-audio --batch-sizes 16 64         # on a GPU

The plain reading takes section 3.2 and Eq. 2 as they stand on the page: for each audio, images and audio go through the
grounder, so the vision encoder runs once per audio over all B images, once for v_D and once on the masked images, B + 2
times, as in the released code. They are transformers' whole passes, all twelve layers, though the decoder reads no
further than the tenth. Ours runs the encoder twice, whatever B is, and no layer further than it is read. Both take the
same weights, batch, noise and dropout, and must give the same loss and gradient.

Operations are counted from the shapes by torch.utils.flop_counter on tensors without data (device "meta", attention as
its matrix products): multiplications and additions of matrix products and convolutions, forward and backward, nothing
elementwise. They are set against what one large matrix product reaches on this machine.

On a CPU the process keeps the memory of freed tensors, for both readings: handing 50 MB back to the system and getting it
again at every operation would otherwise be a large part of what is timed (--free-memory times it with that).
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from functools import partial

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import losses
import train
from beats import FRAME, HOP, N_MELS, SAMPLE_RATE, BEATs, BEATsConfig
from figures.tables import table
from masks import mask_gen_f
from model import PRESETS, ROOT, Alignment, SoundLocalizer, embed_image, embed_prompt, encode_image, load_model
from resumable import given_options, overwritten, some_path, write_whole
from speed.costs import clock, count_vision, counter, keep_freed_memory, matrix_product_rate, name_of, peak_bytes
from speed.parts import measure_evaluation, measure_loading, measure_metrics

EPOCHS, PAIRS = 20, 144_000     # section 4.1
GPU, GPU_PEAK = 'H100 SXM', 989e12      # dense bf16 operations a second (data sheet), for the estimate
GPU_SHARE = 0.4                 # of that peak: what well-fed transformers are commonly said to reach; an assumption
BATCH_SIZES = {'miniature': (2, 4, 8), 'paper': (2, 4, 8, 16)}
ONLY_COUNTED = {'miniature': (), 'paper': (64,)}         # for the estimate
TOLERANCE = 1e-4                # relative, of float32 losses and gradients: beyond it the two are not the same step
VARIANTS = (('float32', False), ('float32', True), ('bf16', True))      # ours: precision, BEATs features cached


# ------------------------------------------------------------------------------------------------
# The two steps. stage(name): a context manager that times or counts what happens in it
# ------------------------------------------------------------------------------------------------

def listen(model, batch):
    """E_A's features (B, T, 3 * width): given, or of the filterbank (for counting), or of the sound."""
    if 'features' in batch:
        return batch['features']
    return model.beats.features(batch['fbank']) if 'fbank' in batch else model.beats(batch['wav'])


def plain_reading(model, batch, noise, stage):
    """Section 3.2 as it stands on the page: whole passes of CLIPSeg, its grounder anew for each audio. -> model.Alignment"""
    image, clipseg, patch = batch['image'], model.clipseg, model.clipseg.config.vision_config.patch_size
    see = partial(clipseg.clip.vision_model, output_hidden_states=True)
    B, _, H, W = image.shape
    with stage('BEATs'), torch.no_grad():
        features = listen(model, batch)
    with stage('projection, text'):
        A = embed_prompt(clipseg, model.prompt_before, model.audio_proj(features), model.prompt_after)  # (B, D)
    with stage('vision'):                                           # v_D: the last layer by its values alone
        x, last = see(image).hidden_states[-2], clipseg.clip.vision_model.encoder.layers[-1]
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = clipseg.clip.vision_model.post_layernorm(x + last.mlp(last.layer_norm2(x)))
        v_D = clipseg.clip.visual_projection(x[:, 1:]).mT.reshape(B, -1, H // patch, W // patch)         # (B, D, h, w)
    M_G, M_I, M_F = [], [], []
    for j in range(B):                                              # every image under audio j
        with stage('vision'):
            hidden = see(image).hidden_states
        with stage('decoder'):
            activations = [hidden[i + 1] for i in clipseg.extract_layers]
            logits = clipseg.decoder(activations, A[j].expand(B, -1)).logits.unsqueeze(1)      # (B, 1, H', W')
            if logits.shape[-1] != W:
                logits = nn.functional.interpolate(logits, size=(H, W), mode='bicubic', align_corners=False)
            M_G.append(logits.float())
        with stage('masks'):
            M_I.append(model.masker_i(M_G[j], noise[0][:, j:j + 1]))                            # (B, 1, H, W)
            M_F.append(mask_gen_f(M_G[j], (H // patch, W // patch)))                            # (B, 1, h, w)
    with stage('masks'):
        M_G, M_I, M_F = (torch.cat(maps, 1) for maps in (M_G, M_I, M_F))
        positive = model.masker_i(M_G.diagonal().permute(2, 0, 1).unsqueeze(1), noise[1])       # (B, 1, H, W)
        areas = M_I.mean((2, 3))                                                                # (B, B)
    with stage('masked vision'):
        v_I = clipseg.clip.get_image_features(image * positive).pooler_output                   # (B, D)
    return Alignment(A, M_G, areas, positive, v_I, M_F, v_D)


def our_reading(model, batch, noise, stage):
    """The step that train.py takes. -> model.Alignment"""
    with stage('forward'):
        return model(batch['image'], batch['wav'], noise=noise)


def our_terms(model, batch, noise, stage):
    """The same, term by term: the parts of SoundLocalizer.forward in their order. -> model.Alignment"""
    image, clipseg = batch['image'], model.clipseg
    B, _, H, W = image.shape
    with stage('BEATs'), torch.no_grad():
        features = listen(model, batch)
    with stage('projection, text'):
        A = embed_prompt(clipseg, model.prompt_before, model.audio_proj(features), model.prompt_after)  # (B, D)
    with stage('vision'), torch.no_grad():
        vision = encode_image(clipseg, image)
    with stage('decoder'):
        M_G = model.ground(vision, A.expand(B, B, -1), (H, W)).float()                          # (B, B, H, W)
    with stage('masks'):
        areas = model.masker_i(M_G, noise[0]).mean((2, 3))                                      # (B, B)
        M_F = mask_gen_f(M_G, vision.v_D.shape[-2:])                                            # (B, B, h, w)
        M_I = model.masker_i(M_G.diagonal().permute(2, 0, 1).unsqueeze(1), noise[1])            # (B, 1, H, W)
    with stage('masked vision'):
        v_I = embed_image(clipseg, image * M_I)                     # (B, D)
    return Alignment(A, M_G, areas, M_I, v_I, M_F, vision.v_D)


def take_step(reading, model, batch, noise, args, optimiser, precision='float32', stage=contextlib.nullcontext):
    """Forward, Eq. 5, backward, Adam. -> loss, gradient norm; the weights stay, as the optimiser's rate is 0."""
    torch.manual_seed(0)                                            # the dropout of the pooling
    optimiser.zero_grad()
    with torch.autocast(batch['image'].device.type, torch.bfloat16, enabled=precision == 'bf16'):
        out = reading(model, batch, noise, stage)
    with stage('losses'):
        loss = losses.total_loss(train.loss_terms(out, args), train.weights_of(args))
    with stage('backward'):
        loss.backward()
    with stage('optimiser'):
        optimiser.step()
    gradients = [p.grad.norm() for group in optimiser.param_groups for p in group['params']]
    return loss.item(), torch.stack(gradients).norm().item()


# ------------------------------------------------------------------------------------------------
# Models and batches
# ------------------------------------------------------------------------------------------------

def random_model(clipseg_config, beats_config):
    """A SoundLocalizer of any size with random weights whose masks are neither empty nor full."""
    clipseg = CLIPSegForImageSegmentation(clipseg_config)
    for module in clipseg.decoder.modules():        # transformers draws these with a deviation of about 1
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.05)
            nn.init.zeros_(module.bias)
    # the prompt "A photo of a <*>" in CLIP's vocabulary; ids of a smaller vocabulary are as good for a stopwatch
    ids = [i % clipseg_config.text_config.vocab_size for i in (49406, 320, 1125, 539, 320)]
    model = SoundLocalizer(clipseg, BEATs(beats_config), (ids, [49407 % clipseg_config.text_config.vocab_size]))
    nn.init.constant_(model.masker_i.b, 0.0)        # logits of random weights lie around 0
    return model


def build(preset, device='cpu'):
    """The miniature's backbones, or the paper's sizes (ViT-B/16, 12-layer BEATs) with random weights; never trained."""
    torch.manual_seed(0)
    if preset == 'miniature':
        return load_model(preset)[0].to(device)
    # the published weights' configuration; transformers' own default is patch 32
    config = CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9], reduce_dim=64,
                           use_complex_transposed_convolution=True)
    return random_model(config, BEATsConfig()).to(device)


def random_batch(B, size, seconds, device='cpu', seed=0):
    """Noise in the shapes of B pairs, and the two uniform draws of MaskGen_I. -> batch, noise"""
    generator = torch.Generator().manual_seed(seed)
    batch = {'image': torch.randn(B, 3, size, size, generator=generator),
             'wav': torch.rand(B, round(seconds * SAMPLE_RATE), generator=generator) - 0.5}
    noise = [torch.rand(B, n, size, size, generator=generator).clamp(min=1e-6) for n in (B, 1)]
    return {name: value.to(device) for name, value in batch.items()}, [draw.to(device) for draw in noise]


class Remembered(nn.Module):
    """In the place of BEATs: what it once said of the batch, as the cache of features gives it."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, wav):
        return self.features


@contextlib.contextmanager
def cached_audio(model, batch, enabled):
    """Within it, the model finds the BEATs features of the batch ready. Yields the batch, with them."""
    beats = model.beats
    if enabled:
        with torch.no_grad():
            batch = {**batch, 'features': beats(batch['wav'])}
        model.beats = Remembered(batch['features'])
    try:
        yield batch
    finally:
        model.beats = beats


def frozen_optimiser(model):
    """train.py's Adam, at a rate of 0: the work without its effect."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=1e-4)


# ------------------------------------------------------------------------------------------------
# Section `step`: seconds, ratios, terms, and the gap to the machine's limit
# ------------------------------------------------------------------------------------------------

def operations(reading, model, B, size, seconds, cached=False):
    """Operations of a step at batch B, counted from the shapes, nothing computed. -> {term: operations}

    model: for its sizes only.
    """
    with torch.device('meta'):
        bare = SoundLocalizer(CLIPSegForImageSegmentation(model.clipseg.config), BEATs(model.beats.cfg),
                              (model.prompt_before.tolist(), model.prompt_after.tolist())).to('meta').train()
        frames = (round(seconds * SAMPLE_RATE) - FRAME) // HOP + 1
        batch = {'image': torch.empty(B, 3, size, size), 'fbank': torch.empty(B, frames, N_MELS)}
        noise = [torch.empty(B, n, size, size) for n in (B, 1)]
    stage, counts = counter()
    with sdpa_kernel(SDPBackend.MATH):                              # the fused kernels of a CPU are not in its tables
        if cached:
            batch['features'] = bare.beats.features(batch['fbank'])
        out = reading(bare, batch, noise, stage)
        with stage('losses'):                                       # Eq. 4 has no products, and picks by value
            v_F = losses.masked_features(out.M_F, out.v_D)
            loss = losses.acl_i(out.v_I, out.A) + losses.acl_f(v_F, out.A) + out.areas.mean()
        with stage('backward'):
            loss.backward()
    return counts


def time_steps(contenders, model, batch, noise, settings, optimiser, repeats, say):
    """The contenders, (reading, precision, cached) each, in turns. -> {contender: {seconds, loss, gradient, passes}}

    seconds: the median of `repeats` turns after one that only warms up. What has no room on the GPU is left out.
    """
    found = {}
    for turn in range(repeats + 1):
        for contender in contenders:
            reading, precision, cached = contender
            say(f'{reading.__name__} {precision}{" cached" * cached}, turn {turn} of {repeats}')
            (stage, seconds), answers = clock(batch['image'].device), []
            with cached_audio(model, batch, cached) as heard:
                step = lambda: answers.extend(take_step(reading, model, heard, noise, settings, optimiser, precision))
                try:
                    with stage('step'):                     # one: on a GPU every stage waits for it
                        passes = count_vision(model, step)
                except torch.OutOfMemoryError:
                    continue
            entry = found.setdefault(contender, {'all': [], 'loss': answers[0], 'gradient': answers[1],
                                                 'vision_passes': passes})
            entry['all'] += [sum(seconds.values())] * (turn > 0)
    return {contender: {'seconds': statistics.median(entry['all']), **entry} for contender, entry in found.items()
            if entry['all']}


def measure_step(args, settings, device):
    """Plain and ours at every batch size. -> a list of dicts, one per batch size, and the rates of matrix products"""
    config, model = PRESETS[args.preset], build(args.preset, device).train()
    optimiser, speed, rows = frozen_optimiser(model), None, []
    rates = {p: matrix_product_rate(device, p) for p in {'float32', *(p for p, _ in args.variants)}}
    for B in (bar := tqdm([*args.batch_sizes, *args.only_count], 'step', unit=' batch sizes', leave=False)):
        count = lambda reading, cached: operations(reading, model, B, config.image_size, config.seconds, cached)
        counts, plain = {cached: count(our_terms, cached) for _, cached in args.variants}, {}
        plain['operations'] = sum(count(plain_reading, False).values())
        # what would take too long is counted, not run; its speed is that of the batch size before
        run_plain = speed is None or plain['operations'] / speed <= args.longest
        contenders = [(plain_reading, 'float32', False)] * run_plain + [(our_reading, *v) for v in args.variants]
        found, terms = {}, {name: {'operations': n} for name, n in counts[args.variants[0][1]].items()}
        if B in args.batch_sizes:
            batch, noise = random_batch(B, config.image_size, config.seconds, device)
            found = time_steps(contenders, model, batch, noise, settings, optimiser, args.repeats,
                               lambda text: bar.set_postfix_str(f'B = {B}, {text}'))
            precision, cached = args.variants[0]
            clocks = [clock(device) for _ in range(args.repeats)]
            with cached_audio(model, batch, cached) as heard:
                for stage, _ in clocks:
                    take_step(our_terms, model, heard, noise, settings, optimiser, precision, stage)
            terms = {name: {'seconds': statistics.median(seconds[name] for _, seconds in clocks),
                            'operations': terms.get(name, {'operations': 0})['operations']} for name in clocks[0][1]}
        plain.update(found.get((plain_reading, 'float32', False), {}))
        speed = plain['operations'] / plain['seconds'] if 'seconds' in plain else speed
        ours = []
        for precision, cached in args.variants:
            entry = {'precision': precision, 'cached': cached, **found.get((our_reading, precision, cached), {}),
                     'operations': sum(counts[cached].values())}
            entry['counted_ratio'] = plain['operations'] / entry['operations']
            entry['hours_on_gpu'] = EPOCHS * PAIRS / B * entry['operations'] / (GPU_SHARE * GPU_PEAK) / 3600
            if 'seconds' in entry:
                entry['rate'] = entry['operations'] / entry['seconds']
                entry['share_of_product'] = entry['rate'] / rates[precision]
                entry['hours'] = EPOCHS * PAIRS / B * entry['seconds'] / 3600
            if 'seconds' in entry and 'seconds' in plain:
                entry['ratio'] = plain['seconds'] / entry['seconds']
                if precision == 'float32':
                    refuse_difference(plain, entry, B)
            ours.append(entry)
        rows.append({'B': B, 'plain': plain, 'ours': ours, 'terms': terms})
    return rows, rates


def refuse_difference(plain, ours, B):
    """Two steps whose loss or gradient differ are not one step at two speeds."""
    for name in ('loss', 'gradient'):
        if not abs(plain[name] - ours[name]) <= TOLERANCE * abs(plain[name]):
            raise ValueError(f'at B = {B} the {name} of the plain reading is {plain[name]!r} and ours {ours[name]!r}: they '
                             'must agree, so one of the two steps is wrong')


def variant_name(precision, cached):
    return f'{precision}{", cached audio" * cached}'


def show_steps(rows, rates, args):
    """The tables of the section."""
    names = [variant_name(*v) for v in args.variants]
    timed = [row for row in rows if row['B'] in args.batch_sizes]
    print('\nSeconds of a training step (forward, loss, backward, Adam); times: how many the plain reading takes longer')
    print(table([[row['B'], row['plain'].get('seconds'), *(e.get(k) for e in row['ours'] for k in ('seconds', 'ratio'))]
                 for row in timed],
                ['B', 'plain float32', *(head for name in names for head in (f'ours {name}', 'times'))], decimals=3))
    print('\nThe same step? Loss, gradient norm, passes of the vision encoder')
    answers = [[row['B'], name, e.get('loss'), e.get('gradient'), e.get('vision_passes')] for row in timed
               for name, e in zip(['plain float32', *(f'ours {name}' for name in names)], [row['plain'], *row['ours']])]
    print(table(answers, ['B', 'step', 'loss', 'gradient', 'passes'], decimals=7))
    print(f'\nOur step term by term ({names[0]}): seconds, and 10^12 operations')
    print(table([[row['terms'][t][k] / unit for k, unit in (('seconds', 1), ('operations', 1e12)) for row in timed]
                 for t in timed[-1]['terms']],
                [f'{k}, B = {row["B"]}' for k in ('s', 'op') for row in timed], list(timed[-1]['terms']), decimals=3))
    print('\nOperations of a step counted from the shapes, in 10^12, against one large matrix product, which runs here at '
          + ', '.join(f'{rate / 1e12:.3g}e12/s in {p}' for p, rate in rates.items()))
    columns, decimals = ['B', 'ours', 'plain', 'ours, counted', 'times', '1e12/s', '% of product'], [0, 0, 4, 4, 2, 4, 1]
    of_paper = args.preset == 'paper'
    lines = [[row['B'], name, row['plain']['operations'] / 1e12, e['operations'] / 1e12, e['counted_ratio'],
              e['rate'] / 1e12 if 'rate' in e else None, 100 * e['share_of_product'] if 'rate' in e else None,
              *([e.get('hours'), e['hours_on_gpu']] if of_paper else [])]
             for row in rows for name, e in zip(names, row['ours'])]
    print(table(lines, columns + ['hours here', 'estimate, hours'] * of_paper, decimals=decimals + [1, 2] * of_paper))
    if of_paper:
        print(f'hours: {EPOCHS} epochs of {PAIRS:,} pairs, at the seconds measured here; and an estimate, not measured: '
              f'the counted operations on one {GPU} of {GPU_PEAK / 1e12:.0f}e12/s in bf16, {GPU_SHARE:.0%} of it assumed '
              'reached')


# ------------------------------------------------------------------------------------------------
# Section `memory`: each variant in a process of its own
# ------------------------------------------------------------------------------------------------

def one_step_alone(args, settings, device):
    """What a subprocess runs: one step and nothing else. Prints its peak in bytes."""
    config, model = PRESETS[args.preset], build(args.preset, device).train()
    batch, noise = random_batch(args.batch_sizes[0], config.image_size, config.seconds, device)
    if args.cached_audio:
        tokens = ((round(config.seconds * SAMPLE_RATE) - FRAME) // HOP + 1) // 16 * 8
        model.beats = Remembered(torch.randn(len(batch['wav']), tokens, model.beats.feature_dim, device=device))
    reading = plain_reading if args.alone == 'plain' else our_reading
    take_step(reading, model, batch, noise, settings, frozen_optimiser(model), args.precision or 'float32')
    print(json.dumps({'peak': peak_bytes(device)}))


def measure_memory(args):
    """Peak bytes of a step by variant and batch size. -> a list of dicts"""
    rows = []
    for B in (bar := tqdm(args.batch_sizes, 'memory', unit=' batch sizes', leave=False)):
        row = {'B': B}
        variants = [('plain', 'float32', False)] * (B <= args.plain_memory_up_to) + [('ours', *v) for v in args.variants]
        for who, precision, cached in variants:
            bar.set_postfix_str(f'B = {B}, {who} {precision}{" cached" * cached}')
            command = [sys.executable, '-m', 'speed.bench', '--alone', who, '--preset', args.preset, '--batch-sizes', str(B),
                       '--precision', precision, '--device', args.device, *['--cached-audio'] * cached,
                       *['--free-memory'] * args.free_memory]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            label = f'{who} {variant_name(precision, cached)}'
            row[label] = json.loads(done.stdout.splitlines()[-1])['peak'] if done.returncode == 0 else None
            if done.returncode:
                tqdm.write(f'{label} at B = {B} did not finish: {(done.stderr.splitlines() or ["killed"])[-1]}')
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------

SECTIONS_OF = {     # the options that only some sections read
    'batch_sizes': ('step', 'memory'), 'only_count': ('step',), 'precision': ('step', 'memory'),
    'cached_audio': ('step', 'memory'), 'repeats': ('step', 'evaluate'), 'longest': ('step',),
    'plain_memory_up_to': ('memory',), 'heatmaps': ('metrics',)}


def refuse_ignored(parser, given, sections):
    """An option that none of the sections reads is an error."""
    for name, readers in SECTIONS_OF.items():
        if name in given and not set(readers) & set(sections):
            parser.error(f'{given[name]} is for the section {" or ".join(readers)}: name that too, '
                         'or leave it out')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sections', nargs='*', help='step, memory, load, evaluate, metrics (default: all)')
    parser.add_argument('--preset', choices=list(PRESETS), default='miniature', help='paper: its sizes, random weights')
    parser.add_argument('--batch-sizes', type=int, nargs='+', help='(default: 2 4 8, and 16 for the paper)')
    parser.add_argument('--only-count', type=int, nargs='*', metavar='B', help='and batch sizes whose operations are counted '
                        'only (default: 64 for the paper)')
    parser.add_argument('--precision', choices=['float32', 'bf16'], help='of ours; the plain reading stays in float32')
    parser.add_argument('--cached-audio', action='store_true', help='ours finds the BEATs features of the batch ready')
    parser.add_argument('--repeats', type=int, default=3,
                        help='timings of each, of which the median counts (default: 3)')
    parser.add_argument('--longest', type=float, default=240.0, metavar='SECONDS',
                        help='a plain step that would take longer is counted, not run (default: 240)')
    parser.add_argument('--plain-memory-up-to', type=int, default=8, metavar='B',
                        help='largest batch (default: 8)')
    parser.add_argument('--heatmaps', type=int, default=1000, help='for the section metrics (default: 1000)')
    parser.add_argument('--free-memory', action='store_true', help='on a CPU: hand the memory of freed tensors back to the '
                        'system, as train.py does')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=some_path, help='write everything here')
    parser.add_argument('--alone', choices=['plain', 'ours'], help=argparse.SUPPRESS)    # a subprocess of `memory`
    args = parser.parse_args(argv)
    known = ('step', 'memory', 'load', 'evaluate', 'metrics')
    if odd := [s for s in args.sections if s not in known]:
        parser.error(f'no section {odd[0]!r}: choose from {", ".join(known)}')
    args.sections = args.sections or list(known)
    refuse_ignored(parser, given_options(parser, argv), args.sections)
    preset = PRESETS[args.preset]
    weights = [('the weights', path) for path in (preset.beats, preset.clipseg)]
    if sentence := overwritten([('--json', args.json)], weights):
        parser.error(sentence)
    if args.json and os.path.isdir(args.json):
        parser.error(f'--json {args.json} is a folder: name a file in it')
    args.batch_sizes = args.batch_sizes or list(BATCH_SIZES[args.preset])
    args.only_count = list(ONLY_COUNTED[args.preset]) if args.only_count is None else args.only_count
    if min(args.batch_sizes + args.only_count) < 2 or args.repeats < 1 or args.heatmaps < 1:
        parser.error('--batch-sizes must be at least 2 (one pair has no negatives), --repeats and --heatmaps at least 1')
    narrowed = args.precision or args.cached_audio
    args.variants = [(args.precision or 'float32', args.cached_audio)] if narrowed else list(VARIANTS)
    return args


def main(args):
    device, settings = torch.device(args.device), train.parse_args(['--preset', args.preset])
    if device.type == 'cpu' and not args.free_memory:
        keep_freed_memory()             # for both readings
    if args.alone:
        return one_step_alone(args, settings, device)
    report = {'machine': {'device': name_of(device), 'threads': torch.get_num_threads(), 'torch': torch.__version__,
                          'freed_memory': 'returned' if args.free_memory else 'kept'},
              'preset': args.preset}
    print(f'{args.preset} on {name_of(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}'
          + ', freed memory returned' * args.free_memory)

    def keep(**found):                                              # whatever comes later, this much is saved
        report.update(found)
        if args.json:
            write_whole(args.json, json.dumps(report, indent=1))

    if 'memory' in args.sections:       # first, while this process is small
        rows = measure_memory(args)
        keep(memory=rows)
        print('\nPeak memory of a step in GB, weights and libraries included, each in a process of its own')
        columns = [name for name in rows[0] if name != 'B']
        print(table([[row['B'], *(row.get(c) and row[c] / 1e9 for c in columns)] for row in rows], ['B', *columns],
                    decimals=2))
    if 'step' in args.sections:
        rows, rates = measure_step(args, settings, device)
        keep(step=rows, matrix_product=rates)
        show_steps(rows, rates, args)
    config = PRESETS[args.preset]
    if 'load' in args.sections:
        found = measure_loading(config.image_size, config.seconds)
        keep(load=found)
        print('\nLoading training pairs, 640 x 360 JPEG and 16-bit sound, one process: milliseconds of three parts, pairs a second')
        print(table([list(found.values())], list(found), decimals=2))
    if 'evaluate' in args.sections:
        make = lambda B: random_batch(B, config.image_size, config.seconds, device)[0]
        rows = measure_evaluation(build(args.preset, device), make, args.repeats)
        keep(evaluate=rows)
        print('\nEvaluation: heatmaps of 224 x 224 for images under audios')
        columns = ['images', 'audios', 'vision_passes', 'seconds', 'pairs_per_second']
        print(table([[row[c] for c in columns] for row in rows], columns, decimals=3))
    if 'metrics' in args.sections:
        found = measure_metrics(args.heatmaps)
        keep(metrics=found)
        print('\nScoring at 19 thresholds (255 for F), single source and segmentation, one CPU thread')
        print(table([list(found.values())], list(found), decimals=3))


if __name__ == '__main__':
    try:
        main(parse_args())
    except (OSError, ValueError) as problem:
        if os.environ.get('ACL_DEBUG'):     # ACL_DEBUG=1 shows where it happened
            raise
        sys.exit(f'bench.py: {problem}')

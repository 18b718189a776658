"""Evaluation, section 4.2: five tasks on fourteen benchmarks, and your own picture and sound.

    python evaluate.py --task interactive           # the checkpoint that ships, on the miniature
    python evaluate.py --task all --json scores.json --figures pictures     # all tables, pictures
    python evaluate.py --preset paper --checkpoint weights/acl_ssl.pt       # the real benchmarks
    torchrun --nproc_per_node=2 evaluate.py --task all      # the same scores, several processes
    python evaluate.py --heatmaps DIR --task single         # another method's maps, same rules
    python evaluate.py --image photo.jpg --audio sound.wav --out heat.png

A benchmark is read once and scored for every task that uses it, at 224 x 224 (metrics.py). Beside
our row stands the oracle's where the paper has one: CLIPSeg with the ground-truth class name in
place of the sound (section 4.1, Baselines), under the same shift b/w.

A batch is a list of samples (data.Benchmark) and holds all the sounds of its frames, so that each
frame is encoded once. Shapes: B samples, F frames, P pairs of a frame and a condition, D embedding.
"""

import argparse
import functools
import hashlib
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import losses
from benchmarks import BENCHMARKS
from benchmarks.maps import PAIR_SIZE, SIZE, read_confidences, read_maps, save_heatmaps
from checkpoint import (gather_lists, given_options, overwritten, rank_and_processes, run_script,
                        some_path, start_processes, wait_for_all, write_file)
from data import Benchmark
from figures.scores import check_outputs, csv_text, json_text, without_nan
from figures.tables import task_tables
from masks import mask_gen_f
from media import evaluation_image, part_heard, read_audio, read_own_image
from metrics import (BothRight, Extended, Interactive, MultiSource, Robustness, Segmentation,
                     SingleSource, mean)
from model import PRESETS, ROOT, embed_image, encode_image, load_model, read_checkpoint

TASKS = {   # what scores a task on which benchmarks (section 4.1), in the order of the tables
    'single': {SingleSource: ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k')},
    'segmentation': {Segmentation: ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k')},
    'robustness': {Extended: ('ext_vggss', 'ext_flickr'), Robustness: ('robust_s4', 'robust_ms3')},
    'interactive': {Interactive: ('is4', 'vpo_ms')},
    'multisource': {MultiSource: ('vgg_instruments', 'vgg_duet')},
}
WITH_ORACLE = ('single', 'segmentation', 'interactive')         # Tables 1, 2, 6 and 7
ORACLE = 'clipseg_gt_text'              # the oracle's scores stand under this key
CLASSES_AT_ONCE = 16        # masked images of a frame in one pass of the vision encoder
SILENT = 2**-14             # a sound whose peak is below two steps of 16 bits is silent
SHIPPED = {variant: ROOT / f'miniature/weights/{variant}.pt' for variant in ('av', 'av_llm')}


# ------------------------------------------------------------------------------------------------
# Heatmaps of the model: inference (3.7), confidence (4.1), sources of a mixture (4.2.5)
# ------------------------------------------------------------------------------------------------

@torch.no_grad()
def localise(model, samples, words=None, known=None, with_confidence=False):
    """Heatmaps of a batch. -> {'ours': B maps (224, 224), 'oracle': the same}

    words: {class name: its text embedding (D,)}, for an oracle, whose map is None where a sample
    has no name or is a negative. known: see embed_sounds. with_confidence: gives each sample one.
    """
    A = embed_sounds(model, samples, known)                                     # (B, D)
    vision, frame_of = encode_frames(model, samples)                            # of F frames
    named = [i for i, s in enumerate(samples)
             if words and s['label'] and s['condition'] == 'positive']
    asked = torch.cat([A, *(words[samples[i]['label']][None] for i in named)])  # (P, D)
    pairs = at(vision, frame_of + [frame_of[i] for i in named])                 # of P frames
    maps = model.heatmaps(pairs, asked.unsqueeze(1), SIZE)[:, 0].cpu()          # (P, 224, 224)
    found = {'ours': list(maps[:len(samples)])}
    if words:
        of_names = dict(zip(named, maps[len(samples):]))
        found['oracle'] = [of_names.get(i) for i in range(len(samples))]
    if with_confidence:
        size = samples[0]['image'].shape[-2:]
        values = confidence(model, at(vision, frame_of), A, size).cpu()
        for sample, value in zip(samples, values):
            sample['confidence'] = value
    return found


def embed_sounds(model, samples, known=None):
    """The audio-driven embedding of each sound of a batch. -> A (B, D)

    known: a dict, filled here with every sound's embedding, so that each is encoded only once.
    """
    known = {} if known is None else known
    keys, sounds = distinct([s['wav'] for s in samples])
    new = [key for key in sounds if key not in known]
    if new:
        wav = torch.stack([sounds[key] for key in new])
        known.update(zip(new, model.embed_audio(wav.to(next(model.parameters()).device))))
    return torch.stack([known[key] for key in keys])


def encode_frames(model, samples):
    """Encode each distinct frame of a batch once. -> Vision of F frames, index of each sample's

    Frames are the same if their pixels are: IS4 and VPO hold a copy for each sound.
    """
    keys, frames = distinct([s['image'] for s in samples])
    image = torch.stack(list(frames.values())).to(next(model.parameters()).device)  # (F, 3, H, W)
    place = {key: number for number, key in enumerate(frames)}
    return encode_image(model.clipseg, image), [place[key] for key in keys]


def distinct(tensors):
    """-> a key for each tensor, the same for equal tensors, and {key: tensor}"""
    keys = [hashlib.sha256(one.numpy().tobytes()).digest() for one in tensors]
    return keys, dict(zip(keys, tensors))


def at(vision, places):
    """The frames of a Vision at these indices, which may repeat. -> Vision"""
    return replace(vision, pooled=vision.pooled[places], v_D=vision.v_D[places],
                   activations=[layer[places] for layer in vision.activations])


def confidence(model, vision, A, size):
    """How much an image goes with its sound: cos(v_F[i, i], A_i). Vision of B, A (B, D) -> (B,)

    Paper [44]: "derived from a global audio-visual similarity score" (4.1, AP); this is the
    released code's. v_F as in Eq. 2, of the positive pair alone. size: that of the images, at
    which MaskGen_F reads M_G in training.
    """
    M_G = model.ground(vision, A.unsqueeze(1), size)                        # (B, 1, H, W)
    M_F = mask_gen_f(M_G, vision.v_D.shape[-2:])                            # (B, 1, h, w)
    v_F = losses.masked_features(M_F, vision.v_D)[:, 0]                     # (B, D)
    return F.cosine_similarity(v_F, A)


@torch.no_grad()
def localise_sources(model, samples, classes, known=None, k=2):
    """The k sources of a mixture (4.2.5). classes (N, D) text. -> {'ours': B maps (k, 224, 448)}

    Each class name grounds a mask M_n; the image under M_n gives v_n^I; the k classes whose v_n^I
    are most similar to the audio-driven embedding A of the mixture are the answer, their heatmaps
    the result.
    Paper [45]: "these masks are subsequently passed to MaskGen_I", "following the inference
    procedure of section 3.7": the image is weighted by sigmoid(M_G + b/w), not cut. k is the
    number of sources, which the benchmarks give away.
    """
    A = embed_sounds(model, samples, known)                                 # (B, D)
    vision, frame_of = encode_frames(model, samples)
    vision = at(vision, frame_of)                           # few mixtures share their two frames
    image = torch.stack([s['image'] for s in samples]).to(A.device)         # (B, 3, H, W)
    similarity = []
    for part in classes.split(CLASSES_AT_ONCE):             # n of the N classes
        M = model.heatmaps(vision, part.expand(len(A), -1, -1), image.shape[-2:])   # (B, n, H, W)
        masked = image.unsqueeze(1) * M.unsqueeze(2)                            # (B, n, 3, H, W)
        v_I = embed_image(model.clipseg, masked.flatten(0, 1)).view(*M.shape[:2], -1)   # (B, n, D)
        similarity.append(F.cosine_similarity(v_I, A.unsqueeze(1), dim=-1))         # (B, n)
    top = torch.cat(similarity, 1).topk(k, dim=1).indices                           # (B, k)
    return {'ours': list(model.heatmaps(vision, classes[top], PAIR_SIZE).cpu())}


def embed_names(model, tokenizer, dataset):
    """The oracle's conditions: {class name: text embedding (D,)} of every name in a benchmark.

    Paper [38]: "CLIPSeg with ground-truth text" (4.1), without a template or a threshold. Here the
    name stands in "A photo of a {name}", whatever the audio's --prompt, and its heatmap is
    sigmoid(M_G + b/w) with the b/w of the trained model, so that the two rows differ by what is
    asked for and by nothing else. An untrained model's b/w is the initial 1.4.
    """
    names = sorted({sample.label for sample in dataset.samples if sample.label})
    return {name: model.embed_text(tokenizer, [name])[0] for name in names}


# ------------------------------------------------------------------------------------------------
# Scores
# ------------------------------------------------------------------------------------------------

def score(dataset, batches, meters, find, show=None, folder=None):
    """Read these batches of a benchmark once and feed every meter. -> examples, {id: confidence}

    meters: {task: {row: metric}}. find(samples) -> {row: a map, or None, for each sample}; where a
    meter needs it, each sample is also given its 'confidence'. show: figures.examples.examples_of,
    where pictures are asked for. folder: where our maps are saved.
    """
    examples = []
    confidences = {}
    bar = tqdm(batches, dataset.name, leave=False, unit=' batches',
               disable=rank_and_processes()[0] > 0)
    for number, batch in enumerate(bar):
        samples = read_samples(dataset, batch)
        if not samples:
            continue
        found = find(samples)
        account_for(dataset, found.pop('errors', []))
        confidences |= {s['id']: float(s['confidence']) for s in samples if 'confidence' in s}
        for task, rows in meters.items():
            for row, meter in rows.items():
                taken = feed(meter, samples, found[row])
                if show and row == 'ours':
                    examples += show(task, dataset.name, samples, taken, found, meter)
        if folder:
            save_heatmaps(folder, [s['id'] for s in samples], found['ours'])
        if number % max(1, len(batches) // 20) == 0:        # a metric goes over all samples so far
            name, value = next(iter(next(iter(meters.values()))['ours'].compute().items()))
            value = value[len(value) // 2] if isinstance(value, list) else value
            bar.set_postfix({name: f'{value:.1f}'})
    return examples, confidences


def read_samples(dataset, batch):
    """The samples at these indices that can be read; the others are accounted for."""
    samples = [dataset[i] for i in batch]
    account_for(dataset, [s['error'] for s in samples if 'error' in s])
    return [s for s in samples if 'error' not in s]


def account_for(dataset, errors):
    """Name what could not be read, once, and keep a sentence for each sample that it costs."""
    for sentence in map(str, errors):
        if sentence not in dataset.unreadable:
            tqdm.write(f'{dataset.name}: {sentence}')
        dataset.unreadable.append(sentence)


def feed(meter, samples, maps):
    """Hand a meter the maps and the ground truth that it needs. -> indices of the samples it took

    Samples without a map or that ground truth are left out, and so are negatives, whose sound is
    of nothing in sight, unless the meter asks for the condition.
    """
    taken = []
    for i, sample in enumerate(samples):
        wanted = sample['condition'] == 'positive' or 'condition' in meter.needs
        if wanted and maps[i] is not None and all(sample[k] is not None for k in meter.needs):
            taken.append(i)
    if taken:
        truth = [[samples[i][key] for i in taken] for key in meter.needs]
        truth = [torch.stack(t) if isinstance(t[0], torch.Tensor) else t for t in truth]
        meter.update(torch.stack([maps[i] for i in taken]), *truth)
    return taken


def share(batches):
    """This process's part of the batches, in order."""
    rank, processes = rank_and_processes()
    each = -(-len(batches) // processes)
    return batches[rank * each:(rank + 1) * each]


def gather(dataset, meters, examples, confidences, folder=None):
    """Bring together what the processes have scored. ValueError: not one sample. -> all examples"""
    for rows in meters.values():
        for meter in rows.values():
            meter.merge_across_ranks()
    dataset.unreadable = gather_lists(dataset.unreadable)
    confidences = gather_lists(list(confidences.items()))
    if folder and confidences and rank_and_processes()[0] == 0:
        lines = ['id,confidence', *(f'{name},{value}' for name, value in confidences)]
        write_file(folder / 'confidence.csv', '\n'.join(lines) + '\n')
    if len(dataset.unreadable) == len(dataset):
        raise ValueError(f'no sample of {dataset.name} could be scored, the first because '
                         f'{dataset.unreadable[0]}')
    return gather_lists(examples)


# ------------------------------------------------------------------------------------------------
# Held-out scores of a training: before, after, and the same frames side by side
# ------------------------------------------------------------------------------------------------

ROWS = ('ours', 'oracle', 'ceiling')
SUMMARY = ('cIoU', 'AUC', 'mIoU', 'mIoU_multi', 'both_right', 'area_silence', 'area_noise')


class Area:
    """Under each condition, the mean share of a frame that lies over 0.5, as a fraction."""

    needs = ('condition',)

    def __init__(self):
        self.shares = {condition: [] for condition in ('positive', 'silence', 'noise')}

    def update(self, heatmaps, conditions):
        for condition, share in zip(conditions, (heatmaps > 0.5).float().mean((1, 2)).tolist()):
            self.shares[condition].append(share)

    def compute(self):
        return {f'area_{condition}': mean(shares) for condition, shares in self.shares.items()}


def held_out(model, tokenizer, preset, data_root, batch_size=32):
    """Scores on held-out scenes. -> {'ours', 'oracle', 'ceiling'}: scores, and counts

    cIoU, AUC: VGG-SS, boxes. mIoU: every sample with a mask (VGG-SS has them in the miniature
    only); mIoU_multi: IS4, whose frames hold two sounding objects; both_right: share of IS4 frames
    in which, for both sounds, the mean heat on the sound's own object exceeds that on the other.
    area_silence, area_noise: mean share of VGG-SS frames over 0.5 when nothing, or noise, is heard.
    All in per cent but the areas, which are fractions. 'ceiling' is what perfect masks score. A
    score is None where its benchmark is not on the disk; that, and every sample left out, is said.
    """
    config = PRESETS[preset]
    meters = {'vggss': {'box': for_rows(SingleSource), 'mask': for_rows(Segmentation),
                        'area': {'ours': Area()}},
              'is4': {'mask': for_rows(Segmentation), 'pair': for_rows(BothRight)}}
    for name, of_set in meters.items():
        try:
            dataset = Benchmark(name, data_root, config.image_size, config.seconds)
        except FileNotFoundError as error:
            print(f'held-out scores without {name}: {error}')
            continue
        if 'area' in of_set:
            dataset.samples += [replace(s, condition=condition, number=number)
                                for condition in ('silence', 'noise')
                                for number, s in enumerate(dataset.samples)]
        words = embed_names(model, tokenizer, dataset)
        find = functools.partial(localise_with_ceiling, model, words=words, known={})
        score(dataset, dataset.batches(batch_size), of_set, find)
        n = dataset.expected - len(dataset.missing) - len(set(dataset.unreadable))
        lone = of_set['pair']['ours'].waiting if name == 'is4' else []
        if n < dataset.expected or lone:
            lack = f'; {len(lone)} frames lack their second sound' if lone else ''
            print(f'{name}: scored {n} of {dataset.expected} samples{lack}')
    return summarised(meters['vggss'], meters['is4'])


def for_rows(metric):
    return {row: metric() for row in ROWS}


def localise_with_ceiling(model, samples, words, known):
    found = {'oracle': [None] * len(samples), **localise(model, samples, words, known)}
    return {**found, 'ceiling': [s['mask'] for s in samples]}


def summarised(vggss, is4):
    """The meters of held_out -> {row: scores}, without a row that has none, and counts"""
    scores = {}
    for row in ROWS:
        multi = is4['mask'][row].iou
        every = vggss['mask'][row].iou + multi
        found = {**vggss['box'][row].compute(), **is4['pair'][row].compute(),
                 'mIoU': 100 * mean(every), 'mIoU_multi': 100 * mean(multi)}
        if row == 'ours':
            found |= vggss['area'][row].compute()
        found = {name: found.get(name, math.nan) for name in SUMMARY}
        if not all(map(math.isnan, found.values())):
            scores[row] = without_nan(found)
    masks = len(vggss['mask']['ours'])
    multi = len(is4['mask']['ours'])
    silent = vggss['area']['ours'].shares['silence']
    return scores, {'boxes': len(vggss['box']['ours']), 'masks': masks + multi, 'multi': multi,
                    'pairs': len(is4['pair']['ours']), 'silence': len(silent)}


def before_after_sheet(untrained, trained, tokenizer, preset, data_root, path, frames=6):
    """Figure 11's habit: the same frames untrained, trained and by the text oracle."""
    config = PRESETS[preset]
    try:
        dataset = Benchmark('is4', data_root, config.image_size, config.seconds, 2 * frames)
    except FileNotFoundError:
        return                                              # held_out has said so
    words = embed_names(trained, tokenizer, dataset)
    shown = []
    for batch in dataset.batches(1):                        # a frame under both of its sounds
        if samples := read_samples(dataset, batch):
            after = localise(trained, samples, words)
            maps = [localise(untrained, samples)['ours'], *after.values()]
            shown += zip(samples, zip(*maps))
    if shown:
        from figures.examples import draw_before_after      # pictures cost an import
        draw_before_after(path, shown)


# ------------------------------------------------------------------------------------------------
# One picture and one sound of your own
# ------------------------------------------------------------------------------------------------

def one_pair(model, config, image_file, audio_file, out):
    """Localise one sound in one picture and save frame | heatmap | overlay, each of its size.

    A large picture is made smaller first, as the heatmap has as many pixels as the picture.
    """
    picture, reduced = read_own_image(image_file)
    wav = read_audio(audio_file, config.seconds)
    heard = part_heard(audio_file, config.seconds)
    silent = ', all of it silent' if wav.abs().max() < SILENT else ''
    if heard or silent:
        print(f'hears {heard or Path(audio_file).name}{silent}')
    device = next(model.parameters()).device
    image = evaluation_image(picture, config.image_size)[None].to(device)
    size = picture.height, picture.width
    heat = model.heatmap(image, wav[None].to(device), size)[0].cpu().numpy()
    from figures.examples import draw_pair
    draw_pair(out, np.asarray(picture), heat)
    smaller = f', brought down to {picture.width} x {picture.height} pixels' if reduced else ''
    print(f'{out}: frame | heatmap | overlay{smaller}; {(heat > 0.5).mean():.1%} of the frame is '
          f'over 0.5, the peak is {heat.max():.2f}')


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------

NEEDS = {'image': 'audio', 'audio': 'image', 'out': 'image', 'examples': 'figures'}
EXCLUDES = {    # the options that would be ignored beside these (--data-root may always be given)
    'image': ('task', 'benchmarks', 'threshold', 'reading', 'batch_size', 'limit', 'json', 'csv',
              'figures', 'examples', 'save_heatmaps', 'heatmaps'),
    'heatmaps': ('checkpoint', 'untrained', 'prompt', 'clipseg', 'beats', 'device',
                 'save_heatmaps'),
    'untrained': ('checkpoint', 'variant')}
DATA = ('vggsound', 'vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avsbench', 'ade20k',
        'vgg_instruments', 'vgg_duet', 'world.json', 'scenes.jsonl', 'captions.jsonl',
        'captions-image.jsonl', 'captions-audio.jsonl')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--task', choices=[*TASKS, 'all'], default='all', help='of section 4.1; single: Tables 1 '
        'and 2, segmentation: 6, robustness: 3 to 5, interactive: 7, multisource: 8 (default: all)')
    add('--benchmarks', nargs='+', choices=list(BENCHMARKS), help='only these of the task')
    add('--preset', choices=list(PRESETS),
        help='scale (default: the one in the checkpoint, paper if it names none)')
    add('--variant', choices=list(SHIPPED), help='which shipped checkpoint, and which of the '
        'paper\'s rows beside ours (default: the checkpoint\'s, or av)')
    add('--checkpoint', type=some_path, help='of train.py, or the authors\' (default: shipped)')
    add('--untrained', action='store_true', help='the weights that training begins with (seed 0)')
    add('--prompt', help='default: the one the checkpoint was trained with')
    add('--data-root', type=some_path, help='default: the preset\'s')
    add('--clipseg', type=some_path, help='hub name or folder instead of the preset\'s')
    add('--beats', type=some_path, help='BEATs file instead of the preset\'s')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: the best that is there')
    add('--threshold', default='fixed:0.5', help='fixed:T, top50, adaptive or sweep (metrics.py; '
        'default: fixed:0.5 for every task)')
    add('--reading', choices=['release', 'paper'], default='release', help='paper: four metrics by '
        'the paper\'s letter, not by the evaluators that its tables are made by, and textbook AP '
        'beside AP (metrics.py; default: release)')
    add('--batch-size', type=int, default=16, help='samples at once, in complete frames '
        '(default: 16)')
    add('--limit', type=int, help='the first N samples of each benchmark or of its conditions')
    add('--json', type=some_path, help='write the scores here')
    add('--csv', type=some_path, help='the same, a line per task, benchmark, row and metric')
    add('--figures', type=some_path, help='folder for contact sheets, precision-recall curves and '
        'report.html; what cannot be drawn is named, and costs nothing else')
    add('--examples', type=int, default=3, help='frames of each benchmark there (default: 3)')
    add('--save-heatmaps', type=some_path, metavar='DIR', help='write DIR/<benchmark>/<id>.npy')
    add('--heatmaps', type=some_path, metavar='DIR',
        help='score these maps (.npy or 8-bit .png) instead of a model\'s')
    add('--image', type=some_path, help='a picture of your own')
    add('--audio', type=some_path, help='and its sound')
    add('--out', type=some_path, default='heat.png', help='for both and the heatmap over the frame'
        ' (default: heat.png)')
    args = parser.parse_args(argv)
    outputs = [('--json', args.json), ('--csv', args.csv), ('--out', args.image and args.out)]
    inputs = [(f'--{name}', getattr(args, name)) for name in ('image', 'audio', 'checkpoint',
                                                              'beats', 'clipseg')]
    inputs += [('the weights that ship', ROOT / 'miniature/weights')]
    roots = [args.data_root] if args.data_root else [p.data_root for p in PRESETS.values()]
    inputs += [('a file of the data', Path(root, name)) for root in roots for name in DATA]
    if args.heatmaps:
        tables = Path(args.heatmaps).glob('*/confidence.csv')
        inputs += [('--heatmaps', table) for table in tables]
    if sentence := ignored(given_options(parser, argv)) or overwritten(outputs, inputs):
        parser.error(sentence)
    level = args.threshold.removeprefix('fixed:')
    fixed = args.threshold.startswith('fixed:') and level.replace('.', '', 1).isdecimal()
    if args.threshold not in ('top50', 'adaptive', 'sweep') and not (fixed and float(level) <= 1):
        parser.error('--threshold is fixed:T with T in 0..1, top50, adaptive or sweep, not '
                     f'{args.threshold}')
    for name in ('batch_size', 'limit', 'examples'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    chosen = set(args.benchmarks or BENCHMARKS)
    args.wanted = {}
    for task in TASKS if args.task == 'all' else [args.task]:
        metrics = metrics_of(task)
        if args.benchmarks and args.task != 'all' and (other := chosen - set(metrics)):
            parser.error(f'--task {task} has the benchmarks {", ".join(metrics)}, not '
                         f'{", ".join(sorted(other))}')
        if scored := {name: metric for name, metric in metrics.items() if name in chosen}:
            args.wanted[task] = scored
    if args.threshold == 'sweep' and Extended in args.wanted.get('robustness', {}).values():
        parser.error('--threshold sweep does not go with the extended sets, which sweep the '
                     'confidence: name the other tasks or --benchmarks')
    return args


def ignored(given):
    """The sentence for an option that another makes useless, or that lacks the one it needs."""
    for one, others in EXCLUDES.items():
        for other in others:
            if one in given and other in given:
                return f'{given[one]} and {given[other]} do not go together: leave one out'
    for one, other in NEEDS.items():
        if one in given and other not in given:
            return f'{given[one]} goes with --{other}: name both, or neither'
    return None


def metrics_of(task):
    """{benchmark: the class that scores the task on it}, in the order of the paper's tables"""
    return {name: metric for metric, names in TASKS[task].items() for name in names}


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------

def evaluate(args):
    """Score every benchmark asked for. -> {task: {benchmark: scores}, ORACLE: the same for it}"""
    check_outputs([args.json, args.csv, args.out if args.image else None],
                  [args.figures, args.save_heatmaps])
    device = start_processes(args.device)
    first = rank_and_processes()[0] == 0
    model = tokenizer = None
    preset = args.preset or 'miniature'
    variant = args.variant or 'av'
    if not args.heatmaps:
        model, tokenizer, preset, variant = load(
            device, args.checkpoint, args.variant, args.preset, args.untrained,
            prompt=args.prompt, clipseg=args.clipseg, beats=args.beats)
    if args.image:
        return one_pair(model, PRESETS[preset], args.image, args.audio, args.out)
    datasets = open_benchmarks(args.wanted, preset, args.data_root, args.limit)
    meters = {}
    finders = {}
    for name, dataset in datasets.items():
        meters[name] = meters_for(args.wanted, dataset, bool(model), args.threshold, args.reading)
        finders[name] = finder(dataset, meters[name], model, tokenizer, args.heatmaps)
    results = {task: {} for task in args.wanted} | {ORACLE: {task: {} for task in args.wanted}}
    paper = variant if preset == 'paper' else None          # no row of it beside the miniature's
    examples = []
    show = None
    if args.figures:
        from figures.examples import draw_report, draw_sheets, examples_of, ids_to_show
    for name, dataset in datasets.items():
        if args.figures:
            shown = ids_to_show(dataset.samples, args.examples)
            show = functools.partial(examples_of, shown=shown)
        folder = Path(args.save_heatmaps, name) if args.save_heatmaps else None
        mine = share(dataset.batches(args.batch_size))
        scored = score(dataset, mine, meters[name], finders[name], show, folder)
        pictures = gather(dataset, meters[name], *scored, folder)
        add_scores(results, args.wanted, dataset, meters[name])
        if not first:
            continue
        tell_counts(dataset, meters[name])
        if args.json:
            write_file(args.json, json_text(results))
        if args.csv:
            write_file(args.csv, csv_text(results))
        if args.figures:
            draw_sheets(args.figures, name, meters[name], pictures)
            examples += pictures
        for task in meters[name]:
            if set(args.wanted[task]) <= set(results[task]):
                print('\n' + task_tables(task, results[task], results[ORACLE][task], paper))
    if first and args.figures:
        source = 'none, untrained'
        if not args.untrained:
            source = args.heatmaps or from_here(args.checkpoint or SHIPPED[variant])
        facts = {'heatmaps' if args.heatmaps else 'checkpoint': source, 'preset': preset,
                 'threshold': args.threshold, 'metrics': f'reading of the {args.reading}'}
        tables = {task: (results[task], results[ORACLE][task], paper) for task in args.wanted}
        draw_report(args.figures, tables, examples, meters, facts)
    return results


def load(device, checkpoint, variant, preset, untrained, **given):
    """The model of the command line; prints which it is. -> model, tokenizer, preset, variant"""
    if untrained:
        torch.manual_seed(0)
        checkpoint = None
        preset = preset or 'miniature'
    elif preset == 'paper' and not checkpoint:
        raise ValueError('no checkpoint ships for the paper preset: train one, or name the '
                         'authors\' by --checkpoint')
    else:
        checkpoint = checkpoint or SHIPPED[variant or 'av']
        if rank_and_processes()[0] == 0:
            print(f'checkpoint: {from_here(checkpoint)}')
        saved = read_checkpoint(checkpoint)
        # the authors' file does not name its scale: it is the paper's
        preset = preset or saved.get('preset', 'paper')
        variant = variant or saved.get('variant', 'av')
    model, tokenizer = load_model(preset, checkpoint, **given)
    return model.to(device), tokenizer, preset, variant or 'av'


def from_here(path):
    """The path relative to the current folder, or as it is on another drive."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def open_benchmarks(wanted, preset, data_root, limit):
    """Open every set before the first is scored, so that a missing one costs nothing.

    wanted: {task: {benchmark: metric}}. The miniature is drawn where it is not there. ->
    {name: Benchmark}. FileNotFoundError says how to leave one out.
    """
    config = PRESETS[preset]
    root = data_root or config.data_root
    if preset == 'miniature' and not data_root and rank_and_processes()[0] == 0:
        from miniature import world
        world.build(root)
    wait_for_all()
    datasets = {}
    for name in dict.fromkeys(name for metrics in wanted.values() for name in metrics):
        try:
            datasets[name] = Benchmark(name, root, config.image_size, config.seconds, limit)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{error}; --benchmarks names the sets that are '
                                    'there') from None
    for name in wanted.get('segmentation', ()):
        if not all(sample.masks for sample in datasets[name].samples):
            raise ValueError(f'{name} below {root} has no masks, which segmentation is scored by: '
                             'README.md, "Real data", says where they go; --task or --benchmarks '
                             'leaves it out')
    return datasets


def meters_for(wanted, dataset, by_model, threshold, reading):
    """{task: {'ours': metric, 'oracle': metric, where the paper has one}} of a benchmark"""
    with_names = by_model and any(sample.label for sample in dataset.samples)
    meters = {}
    for task, metrics in wanted.items():
        if dataset.name in metrics:
            rows = ('ours', 'oracle') if with_names and task in WITH_ORACLE else ('ours',)
            meters[task] = {row: metrics[dataset.name](threshold, reading=reading) for row in rows}
    return meters


def finder(dataset, meters, model, tokenizer, heatmaps):
    """Where the maps of a benchmark come from: the model, or files. -> find(samples), see score"""
    needs = {key for rows in meters.values() for key in rows['ours'].needs}
    if heatmaps:
        folder = Path(heatmaps, dataset.name)
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}: --heatmaps needs one per benchmark; '
                                    '--benchmarks or --task names those that are there')
        confidences = read_confidences(folder)
        if 'confidence' in needs and not confidences:
            print(f'no {folder}/confidence.csv: taking the mean of the highest quarter of each '
                  'map, as SLAVC does')
        return functools.partial(read_maps, folder, needs, confidences)
    if 'sources' in needs:
        classes = model.embed_text(tokenizer, dataset.classes)                      # (N, D)
        return functools.partial(localise_sources, model, classes=classes, known={})
    with_oracle = any('oracle' in rows for rows in meters.values())
    words = embed_names(model, tokenizer, dataset) if with_oracle else None
    return functools.partial(localise, model, words=words, known={},
                             with_confidence='confidence' in needs)


def add_scores(results, wanted, dataset, meters):
    """Enter the scores of a benchmark, in the order of the paper's tables."""
    for task, rows in meters.items():
        for table, row in ((results, 'ours'), (results[ORACLE], 'oracle')):
            meter = rows.get(row)
            scores = None
            if meter:                                       # and it has seen a sample
                scores = {**meter.compute(), 'n': len(meter), 'n_expected': dataset.expected}
            both = {**table[task], dataset.name: scores}
            table[task] = {name: both[name] for name in wanted[task] if name in both}


def tell_counts(dataset, meters):
    """Say what was not scored, and which boxes had to be clipped."""
    name = dataset.name
    n = len(next(iter(meters.values()))['ours'])
    if n < dataset.expected:
        lost = [f', not e.g. {one}' for one in dataset.missing + dataset.unreadable]
        print(f'{name}: scored {n} of {dataset.expected} samples{"".join(lost[:1])}')
    nameless = [sample.id for sample in dataset.samples if not sample.label]
    if nameless and any('oracle' in rows for rows in meters.values()):
        print(f'{name}: {len(nameless)} of {len(dataset)} samples have no class name, the first '
              f'{nameless[0]}; the oracle is scored on the others')
    if 'interactive' in meters:
        seen = Counter(meters['interactive']['ours'].groups)
        if short := sum(seen[group] < size for group, size in dataset.listed_groups.items()):
            print(f'{name}: {short} of {len(dataset.listed_groups)} frames lack a sound; the '
                  'interactive task leaves them out')
    if dataset.clipped:
        print(f'{name}: {dataset.clipped} boxes reach beyond the frame and were clipped, '
              f'{dataset.empty} samples are left without any area and are kept')


def main():
    evaluate(parse_args())


if __name__ == '__main__':
    run_script('evaluate.py', main, 'interrupted; --json and --csv, where given, hold the '
               'benchmarks that were finished')

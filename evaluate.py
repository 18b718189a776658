"""Evaluation, section 4.2: five tasks on fourteen benchmarks, and a look at your own picture and sound.

    python evaluate.py --task interactive                             # the checkpoint that ships, on the miniature
    python evaluate.py --task all --json scores.json --figures pictures      # every table, contact sheets, report.html
    python evaluate.py --preset paper --checkpoint weights/acl_ssl.pt # the real benchmarks (README: what goes where)
    torchrun --nproc_per_node=2 evaluate.py --task all                # the same scores from several processes
    python evaluate.py --heatmaps DIR --task single                   # another method's maps, by the same rules
    python evaluate.py --image photo.jpg --audio sound.wav --out heat.png

A benchmark is read once and scored for every task that uses it, at 224 x 224 (metrics.py). Beside our row stands the
oracle's where the paper has one: CLIPSeg with the ground-truth class name in place of the sound (section 4.1,
Baselines), under the same shift b/w.
"""

import argparse
import csv
import io
import json
import math
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

import figures.curves
import figures.pictures
import figures.tables
import metrics
from figures import report
from data import (BENCHMARKS, SAMPLE_RATE, Benchmark, displayable, evaluation_image,
                  evaluation_loader, read_audio)
from heatmaps import (PAIR_SIZE, localise, localise_sources, only, oracle_of_named,
                      read_confidences, read_localised, save_heatmaps)
from media import part_heard, read_own_image
from model import PRESETS, ROOT, load_model, read_checkpoint
from processes import end, gather_lists, lost_process, rank_and_processes, shard, start_processes
from resumable import given_options, overwritten, some_path, write_whole

TASKS = {   # which benchmarks a task is run on (section 4.1), in the order of the paper's tables
    'single': ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'),
    'segmentation': ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'),
    'robustness': ('ext_vggss', 'ext_flickr', 'robust_s4', 'robust_ms3'),
    'interactive': ('is4', 'vpo_ms'),
    'multisource': ('vgg_instruments', 'vgg_duet'),
}
WITH_ORACLE = ('single', 'segmentation', 'interactive')         # Tables 1, 2, 6 and 7
HEADLINE = {'single': 'cIoU', 'segmentation': 'mIoU', 'robustness': 'AP', 'interactive': 'IIoU', 'multisource': 'CAP'}
SILENT = 2**-14                         # a sound whose peak is below two steps of 16 bits is silent
SHIPPED = {variant: ROOT / f'miniature/weights/{variant}.pt' for variant in ('av', 'av_llm')}


# ------------------------------------------------------------------------------------------------
# Scores
# ------------------------------------------------------------------------------------------------

def meter_for(task, dataset, threshold, reading='release'):
    """The metrics of Tables 1 to 8 for one task on one benchmark.

    reading: 'release' or 'paper', see metrics.py
    """
    if task == 'interactive':
        return metrics.Interactive(threshold, reading=reading)
    robustness = metrics.Extended if dataset.name.startswith('ext_') else metrics.Robustness
    kind = {'single': metrics.SingleSource, 'segmentation': metrics.Segmentation,
            'robustness': robustness, 'multisource': metrics.MultiSource}[task]
    return kind(threshold, reading=reading)


def feed(meter, batch, heat, confidence=None):
    """Hand a batch of heatmaps to a meter, with the ground truth that it scores against."""
    known = {**batch, 'confidence': confidence}
    meter.update(heat, *[known[key] for key in meter.needs])


def score(dataset, tasks, find, args):
    """Read one benchmark once and score it for every task that uses it.

    find(batch) -> {'ours': heatmaps, ...} as localise gives them. Returns {task: {'ours': scores, 'oracle': scores or
    None}}, the same in every process, the meters, and the examples for pictures.
    """
    with_oracle = not args.heatmaps and any(sample.label for sample in dataset.samples)
    meters = {task: {who: meter_for(task, dataset, args.threshold, args.reading)
                     for who in ('ours', *(['oracle'] if with_oracle and task in WITH_ORACLE else []))} for task in tasks}
    part, shown, examples, confidences = shard(dataset, args.batch_size), for_pictures(dataset, args), [], {}
    for number, (batch, bar) in enumerate(read_batches(part, args.batch_size)):
        known = len(batch['errors'])
        found = find(batch)
        for error in batch['errors'][known:]:               # heatmaps that could not be read
            tqdm.write(f'{dataset.name}: {error}')
            part.unreadable.append(str(error))
        if 'ours' not in found:
            continue
        sure = found.get('confidence')
        if dataset.name.startswith('ext_') and sure is None:
            sure = metrics.top_quarter_mean(found['ours'])
        named = [i for i, label in enumerate(batch['label']) if label]
        for task in tasks:
            feed(meters[task]['ours'], batch, found['ours'], sure)
            if 'oracle' in meters[task] and named:
                feed(meters[task]['oracle'], only(batch, named), found['oracle'][named])
        if sure is not None:
            confidences.update(zip(batch['id'], sure.tolist()))
        if args.save_heatmaps:
            save_heatmaps(Path(args.save_heatmaps) / dataset.name, batch['id'], found['ours'])
        examples += [example(batch, found, sure, i, dataset.name, task, meters[task]['ours']) for task in tasks
                     for i, name in enumerate(batch['id']) if name in shown]
        if number % max(1, len(bar) // 20) == 0:            # a running metric costs a pass over all samples so far
            now = meters[tasks[0]]['ours'].compute()
            key = HEADLINE[tasks[0]] if HEADLINE[tasks[0]] in now else 'mIoU_positive'
            value = now[key]
            bar.set_postfix({key: f'{value[len(value) // 2] if isinstance(value, list) else value:.1f}'})
    for meter in (meter for by_row in meters.values() for meter in by_row.values()):
        meter.merge_across_ranks()
    dataset.unreadable = gather_lists(part.unreadable)
    if args.save_heatmaps and dataset.name.startswith('ext_'):     # every process, also one that had no sample of it
        lines = ['id,confidence', *(f'{k},{v}' for many in gather_lists([confidences]) for k, v in many.items())]
        if rank_and_processes()[0] == 0:
            write_whole(Path(args.save_heatmaps) / dataset.name / 'confidence.csv', '\n'.join(lines) + '\n')
    if len(dataset.unreadable) == len(dataset):
        raise ValueError(f'no sample of {dataset.name} could be scored, the first because {dataset.unreadable[0]}')
    results = {task: {who: scores_of(by_row.get(who), dataset) for who in ('ours', 'oracle')}
               for task, by_row in meters.items()}
    return results, meters, gather_lists(examples)


def scores_of(meter, dataset):
    """A meter's scores and of how many samples they are; None without a meter or any sample."""
    return {**meter.compute(), 'n': len(meter), 'n_expected': dataset.expected} if meter else None


def open_benchmark(name, root, config, limit):
    """-> Benchmark. FileNotFoundError, which says how to leave it out."""
    try:
        return Benchmark(name, root, config.image_size, config.seconds, limit)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; --benchmarks names the sets that are there') from None


def read_batches(dataset, batch_size, label=None):
    """Batches of a benchmark under a progress bar. Yields (batch, bar).

    Unreadable samples are named, kept in dataset.unreadable, and left out.
    """
    bar = tqdm(evaluation_loader(dataset, batch_size), label or dataset.name, leave=False, unit=' batches',
               disable=rank_and_processes()[0] > 0)
    for batch in bar:
        for error in batch['errors']:
            tqdm.write(f'{dataset.name}: {error}')
            dataset.unreadable.append(str(error))
        if batch['id']:
            yield batch, bar


def for_pictures(dataset, args):
    """Ids of up to args.examples frames, spread over the benchmark, each with all of its sounds."""
    if not args.figures:
        return set()
    groups = list(dict.fromkeys(sample.group for sample in dataset.samples))
    chosen = set(groups[::-(-len(groups) // args.examples)])
    return {sample.id for sample in dataset.samples if sample.group in chosen}


def example(batch, found, sure, i, benchmark, task, meter):
    """What report.py needs of sample i of a batch, which the meter has just seen, to show it and let it be heard."""
    frame, heat = displayable(batch['image'][i]), found['ours'][i]
    pair = task == 'multisource'
    if pair:                                                # squashed for the model: back to two frames side by side
        frame = np.asarray(Image.fromarray(frame).resize(PAIR_SIZE[::-1], Image.Resampling.BICUBIC))
        truth, heat = batch['sources'][i], heat[meter.pairing[i]]       # each source beside the map that it is scored with
    else:
        truth = batch['boxes' if task in ('single', 'interactive') or benchmark.startswith('ext_') else 'mask'][i]
    iou = None if pair else meter.last_iou[i]
    with_oracle = task in WITH_ORACLE and 'oracle' in found and batch['label'][i]
    as_arrays = lambda maps: [one.numpy() for one in maps] if pair else maps.numpy()
    return {'task': task, 'benchmark': benchmark, 'id': batch['id'][i], 'group': batch['group'][i],
            'condition': batch['condition'][i], 'label': batch['label'][i], 'frame': frame,
            'truth': as_arrays(truth), 'heat': as_arrays(heat),
            'oracle': found['oracle'][i].numpy() if with_oracle else None,
            'wav': batch['wav'][i].numpy(), 'rate': SAMPLE_RATE, 'score': iou,
            'confidence': None if sure is None else float(sure[i])}


# ------------------------------------------------------------------------------------------------
# One picture and one sound of your own
# ------------------------------------------------------------------------------------------------

def one_pair(model, preset, image_file, audio_file, out):
    """Localise one sound in one picture and save frame | heatmap | overlay, each of its size.

    A large picture is made smaller first, as the heatmap has as many pixels as the picture.
    """
    config, device = PRESETS[preset], next(model.parameters()).device
    picture, reduced = read_own_image(image_file)
    wav = read_audio(audio_file, config.seconds)
    heard = part_heard(audio_file, config.seconds)
    silent = bool(wav.abs().max() < SILENT)
    if heard or silent:
        print(f'hears {heard or Path(audio_file).name}{", all of it silent" if silent else ""}')
    image = evaluation_image(picture, config.image_size)[None].to(device)
    size = picture.height, picture.width
    heat = model.heatmap(image, wav[None].to(device), size)[0].cpu().numpy()
    frame = np.asarray(picture)
    tiles = [frame, figures.pictures.heat_colours(heat), figures.pictures.overlay(frame, heat)]
    content = io.BytesIO()
    try:
        kind = Image.registered_extensions()[Path(out).suffix.lower()]
        Image.fromarray(np.concatenate(tiles, 1)).save(content, kind)
    except (KeyError, OSError, ValueError) as error:
        raise OSError(f'cannot write {out} ({error}): name a .png or .jpg file') from None
    write_whole(out, content.getvalue())
    smaller = f', brought down to {picture.width} x {picture.height} pixels' if reduced else ''
    print(f'{out}: frame | heatmap | overlay{smaller}; {(heat > 0.5).mean():.1%} of the frame is '
          f'over 0.5, the peak is {heat.max():.2f}')


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------

NEEDS = {'image': 'audio', 'audio': 'image', 'out': 'image', 'examples': 'figures'}
EXCLUDES = {    # the options that would be ignored beside these (--data-root may always be given)
    'image': ('task', 'benchmarks', 'threshold', 'reading', 'batch_size', 'limit', 'json', 'csv',
              'figures', 'examples', 'save_heatmaps', 'heatmaps'),
    'heatmaps': ('checkpoint', 'untrained', 'prompt', 'clipseg', 'beats', 'save_heatmaps'),
    'untrained': ('checkpoint', 'variant')}
DATA_FOLDERS = ('vggsound', 'vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avsbench', 'ade20k',
                'vgg_instruments', 'vgg_duet')
DATA_FILES = ('world.json', 'scenes.jsonl', 'captions.jsonl', 'captions-image.jsonl',
              'captions-audio.jsonl')


def refuse_ignored(parser, given):
    """An option that another one makes useless, or that needs one which is absent, is an error."""
    for one, others in EXCLUDES.items():
        for other in others:
            if one in given and other in given:
                parser.error(f'{given[one]} and {given[other]} do not go together: leave one out')
    for one, other in NEEDS.items():
        if one in given and other not in given:
            parser.error(f'{given[one]} goes with --{other}: name both, or neither')


def refuse_overwriting(parser, args):
    """A result in the place of an input, of the data or of another result is an error."""
    outputs = [('--json', args.json), ('--csv', args.csv)]
    outputs += [('--out', args.out)] if args.image else []
    names = ('image', 'audio', 'checkpoint', 'beats', 'clipseg')
    inputs = [(f'--{name}', getattr(args, name)) for name in names]
    inputs += [('the weights that ship', ROOT / 'miniature/weights')]
    roots = [args.data_root] if args.data_root else [p.data_root for p in PRESETS.values()]
    inputs += [('a file of the data', Path(root, name)) for root in roots
               for name in DATA_FOLDERS + DATA_FILES]
    if args.heatmaps:
        inputs += [('--heatmaps', file) for file in Path(args.heatmaps).glob('*/confidence.csv')]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=[*TASKS, 'all'], default='all',
                        help='of section 4.1; single: Tables 1 and 2, segmentation: 6, robustness: 3 to 5, interactive: '
                             '7, multisource: 8 (default: all)')
    parser.add_argument('--benchmarks', nargs='+', choices=list(BENCHMARKS), help='only these of the task')
    parser.add_argument('--preset', choices=list(PRESETS), help='scale (default: the one in the checkpoint, paper if it names none)')
    parser.add_argument('--variant', choices=list(SHIPPED),
                        help='which shipped checkpoint, and which of the paper\'s rows beside ours (default: the checkpoint\'s, or av)')
    parser.add_argument('--checkpoint', type=some_path,
                        help='of train.py, or the authors\' released file '
                             '(default: the shipped one)')
    parser.add_argument('--untrained', action='store_true', help='a projection as training begins with (seed 0), to compare with')
    parser.add_argument('--prompt', help='default: the one the checkpoint was trained with')
    parser.add_argument('--data-root', type=some_path, help='default: the preset\'s')
    parser.add_argument('--clipseg', type=some_path,
                        help='hub name or folder instead of the preset\'s')
    parser.add_argument('--beats', type=some_path, help='BEATs file instead of the preset\'s')
    # Paper: the threshold behind its tables is nowhere named; metrics.py says why 0.5, for every task
    parser.add_argument('--threshold', default='fixed:0.5',
                        help='fixed:T, top50, adaptive or sweep (metrics.py; default: fixed:0.5 for every task)')
    parser.add_argument('--reading', choices=['release', 'paper'], default='release',
                        help='paper: four metrics by the paper\'s letter, not by the evaluators '
                             'that its tables are made by, and textbook AP beside AP (metrics.py; '
                             'default: release)')
    parser.add_argument('--batch-size', type=int, default=16, help='samples at once (default: 16)')
    parser.add_argument('--limit', type=int, help='only the first N samples of each benchmark, or of each of its conditions')
    parser.add_argument('--json', type=some_path, help='write the scores here')
    parser.add_argument('--csv', type=some_path,
                        help='write the scores here, a line per task, benchmark, row and metric')
    parser.add_argument('--figures', type=some_path,
                        help='folder for contact sheets, precision-recall curves and report.html; '
                             'what cannot be drawn is named, and costs nothing else')
    parser.add_argument('--examples', type=int, default=3,
                        help='frames of each benchmark in the pictures (default: 3)')
    parser.add_argument('--save-heatmaps', type=some_path, metavar='DIR',
                        help='write every heatmap to DIR/<benchmark>/<id>.npy')
    parser.add_argument('--heatmaps', type=some_path, metavar='DIR',
                        help='score these maps (.npy or 8-bit .png) instead of a model\'s')
    parser.add_argument('--image', type=some_path, help='a picture of your own')
    parser.add_argument('--audio', type=some_path, help='and its sound')
    parser.add_argument('--out', type=some_path, default='heat.png',
                        help='where frame | heatmap | overlay go (default: heat.png)')
    args = parser.parse_args(argv)
    refuse_ignored(parser, given_options(parser, argv))
    refuse_overwriting(parser, args)
    if args.task != 'all' and (other := set(args.benchmarks or ()) - set(TASKS[args.task])):
        parser.error(f'--task {args.task} has the benchmarks {", ".join(TASKS[args.task])}, not {", ".join(sorted(other))}')
    level = args.threshold.removeprefix('fixed:')
    if args.threshold not in ('top50', 'adaptive', 'sweep') and not (
            args.threshold.startswith('fixed:') and level.replace('.', '', 1).isdecimal() and 0 <= float(level) <= 1):
        parser.error(f'--threshold is fixed:T with T in 0..1, top50, adaptive or sweep, not {args.threshold}')
    for name in ('batch_size', 'limit', 'examples'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    args.wanted = {task: [b for b in TASKS[task] if b in (args.benchmarks or TASKS[task])]
                   for task in (TASKS if args.task == 'all' else [args.task])}
    args.wanted = {task: names for task, names in args.wanted.items() if names}
    if not args.wanted:
        parser.error(f'--task {args.task} has the benchmarks {", ".join(TASKS[args.task])}, none of those named')
    if args.threshold == 'sweep' and any(b.startswith('ext_') for b in args.wanted.get('robustness', ())):
        parser.error('--threshold sweep does not go with the extended sets, which sweep the confidence: name the other '
                     'tasks or --benchmarks')
    return args


def load(args, device):
    """The model of the command line. Prints which checkpoint it is. -> model on the device, tokenizer"""
    checkpoint = args.checkpoint or SHIPPED[args.variant or 'av']
    if args.untrained:
        torch.manual_seed(0)
        args.preset = args.preset or 'miniature'
        model, tokenizer = load_model(args.preset, prompt=args.prompt, clipseg=args.clipseg, beats=args.beats)
        return model.to(device), tokenizer
    if not args.checkpoint and args.preset == 'paper':
        raise ValueError('no checkpoint ships for the paper preset: train one, or name the authors\' by --checkpoint')
    if rank_and_processes()[0] == 0:
        print(f'checkpoint: {os.path.relpath(checkpoint)}')
    # the authors' file does not name its scale: it is the paper's
    saved = read_checkpoint(checkpoint)
    args.preset, args.variant = args.preset or saved.get('preset', 'paper'), args.variant or saved.get('variant', 'av')
    model, tokenizer = load_model(args.preset, checkpoint, args.prompt, clipseg=args.clipseg, beats=args.beats)
    return model.to(device), tokenizer


def evaluate(args):
    """Score every benchmark asked for. -> {task: {benchmark: scores}, 'clipseg_gt_text': the same for the oracle}"""
    check_outputs(args)
    device = start_processes()
    first = rank_and_processes()[0] == 0
    if args.heatmaps:
        model, tokenizer, args.preset = None, None, args.preset or 'miniature'
    else:
        model, tokenizer = load(args, device)
    if args.image:
        return one_pair(model, args.preset, args.image, args.audio, args.out)
    config = PRESETS[args.preset]
    root = args.data_root or config.data_root
    if args.preset == 'miniature' and not args.data_root and first:
        from miniature import world
        world.build(root)
    if dist.is_initialized():
        dist.barrier()
    # every set is opened before the first is scored, so that a missing one costs nothing already computed
    names = list(dict.fromkeys(name for many in args.wanted.values() for name in many))
    datasets = {name: open_benchmark(name, root, config, args.limit) for name in names}
    if args.heatmaps:
        check_heatmaps(Path(args.heatmaps), names)
    for name in args.wanted.get('segmentation', ()):
        if not all(sample.masks for sample in datasets[name].samples):
            raise ValueError(f'{name} below {root} has no masks, which segmentation is scored by: README.md, "Real data", says '
                             'where they go; --task or --benchmarks leaves it out')
    results = {task: {} for task in args.wanted} | {'clipseg_gt_text': {task: {} for task in args.wanted}}
    examples, curves = [], {}
    for name, dataset in datasets.items():
        tasks = [task for task in args.wanted if name in args.wanted[task]]
        scored, meters, pictures = score(dataset, tasks, finder(model, tokenizer, dataset, tasks, args), args)
        for task in tasks:
            for rows, who in ((results, 'ours'), (results['clipseg_gt_text'], 'oracle')):
                rows[task] = {b: {**rows[task], name: scored[task][who]}[b] for b in args.wanted[task]
                              if b in rows[task] or b == name}              # the order of the paper's tables
        if not first:
            continue
        tell_counts(dataset, scored, meters)
        if args.json:
            write_whole(args.json, json.dumps(without_nan(results), indent=1))
        if args.csv:
            write_whole(args.csv, csv_text(results))
        if args.figures:
            examples += pictures
            for task in tasks:
                sheet = Path(args.figures, f'{task}_{name}.png')
                shown = [e for e in pictures if e['task'] == task]
                figures.attempt(sheet, report.example_sheet, task, name, shown, sheet)
            if name.startswith('ext_'):
                curves[name] = meters['robustness']['ours']
        for task in tasks:
            if set(args.wanted[task]) <= set(results[task]):
                print_task(task, results, args)
    if first and args.figures:
        finish_pictures(results, examples, curves, args)
    if dist.is_initialized():
        dist.destroy_process_group()
    return results


def check_heatmaps(folder, names):
    """Find out now, not after the scoring, what --heatmaps lacks.

    FileNotFoundError: the folder of a benchmark; ValueError: a line of its confidence.csv.
    """
    for name in names:
        if not (folder / name).is_dir():
            raise FileNotFoundError(f'no folder {folder / name}: --heatmaps needs one per '
                                    'benchmark; --benchmarks or --task names those that are there')
        read_confidences(folder / name)


def finder(model, tokenizer, dataset, tasks, args):
    """How this benchmark's heatmaps come about: by the model, or from --heatmaps. -> find(batch), see score"""
    two_sources = 'multisource' in tasks
    if args.heatmaps:
        folder = Path(args.heatmaps) / dataset.name
        confidences = read_confidences(folder)
        if dataset.name.startswith('ext_') and not confidences:
            print(f'no {folder}/confidence.csv: taking the mean of the highest quarter of each map, as SLAVC does')
        return lambda batch: read_localised(folder, batch, confidences, two_sources)
    if two_sources:
        classes = model.embed_text(tokenizer, dataset.classes)                                  # (N, D)
        return lambda batch: localise_sources(model, batch, classes)
    if not set(tasks) & set(WITH_ORACLE):
        return lambda batch: localise(model, batch, None, dataset.name.startswith('ext_'))
    words = embed_names(model, tokenizer, dataset)
    find = lambda batch: localise(model, batch, words)
    return lambda batch: oracle_of_named(find(batch), batch, find)


def embed_names(model, tokenizer, dataset):
    """The oracle's conditions: {class name: text embedding (D,)} of every name in a benchmark.

    Paper: "CLIPSeg with ground-truth text" (4.1), without a template or a threshold. Here the name
    stands in "A photo of a {name}", whatever the audio's --prompt, and its heatmap is
    sigmoid(M_G + b/w) with the b/w of the trained model, so that the two rows differ by what is
    asked for and by nothing else. An untrained model's b/w is the initial 1.4.
    """
    names = sorted({sample.label for sample in dataset.samples if sample.label})
    return {name: model.embed_text(tokenizer, [name])[0] for name in names}


def tell_counts(dataset, scored, meters):
    """Say what was not scored, and which boxes had to be clipped."""
    name, n = dataset.name, next(iter(scored.values()))['ours']['n']
    if n < dataset.expected:
        lost = dataset.missing + dataset.unreadable
        example = f', not e.g. {lost[0]}' if lost else ''
        print(f'{name}: scored {n} of {dataset.expected} samples{example}')
    nameless = [sample.id for sample in dataset.samples if not sample.label]
    if nameless and any('oracle' in by_row for by_row in meters.values()):
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


def print_task(task, results, args):
    print('\n' + figures.tables.task_tables(task, results[task], results['clipseg_gt_text'][task], paper_row(args)))


def paper_row(args):
    """Which of the paper's rows stands beside ours: none in the miniature, whose scores compare with nothing."""
    return (args.variant or 'av') if args.preset == 'paper' else None


def finish_pictures(results, examples, curves, args):
    """Figure 7's curves of the extended sets, and the report with the examples' sounds.

    The scores are there by then: a picture that fails is named, and the exit code stays 0.
    """
    folder = Path(args.figures)
    if curves:
        picture = folder / 'precision_recall.png'
        draw = lambda: figures.curves.precision_recall_picture(
            {name: curve_of(meter) for name, meter in curves.items()}, picture)
        figures.attempt(picture, draw)
    tables = {task: (results[task], results['clipseg_gt_text'][task], paper_row(args)) for task in args.wanted}
    source = args.heatmaps or ('none, untrained' if args.untrained else os.path.relpath(args.checkpoint or SHIPPED[args.variant or 'av']))
    facts = {'heatmaps' if args.heatmaps else 'checkpoint': source, 'preset': args.preset,
             'threshold': args.threshold, 'metrics': f'reading of the {args.reading}'}
    page = folder / 'report.html'
    if figures.attempt(page, report.report, page, 'Hearing and seeing', tables, examples, facts):
        print(f'{page}: open it in a browser')


def curve_of(meter):
    """Precision and recall over all confidences of an extended set, and the point of max-F1 (Figure 7)."""
    levels = torch.tensor(meter.confidence, dtype=torch.float64).sort().values
    f1, precision, recall = meter.f1_curve()
    best = int(f1.argmax())
    return (*(p.numpy() for p in meter.precision_recall(levels)), (float(precision[best]), float(recall[best])))


# ------------------------------------------------------------------------------------------------
# Files that a run writes
# ------------------------------------------------------------------------------------------------

def check_outputs(args):
    """Find out now, not after the scoring, that a result has no place to go. OSError names it."""
    for path in (args.json, args.csv, args.out if args.image else None):
        if path and Path(path).exists() and not Path(path).is_file():
            raise OSError(f'cannot write {path}: it is no file; name another place')
        if path:
            writable_folder(Path(path).parent)
    for folder in (args.figures, args.save_heatmaps):
        if folder:
            writable_folder(Path(folder))


def writable_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f'cannot write into {folder} ({error.strerror}): name another place') from None


def without_nan(value):
    """NaN as null, which JSON knows."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def csv_text(results):
    """The scores as lines of row, task, benchmark, metric, value."""
    lines = [('row', 'task', 'benchmark', 'metric', 'value')]
    for row, tasks in (('ours', {k: v for k, v in results.items() if k != 'clipseg_gt_text'}),
                       ('clipseg_gt_text', results['clipseg_gt_text'])):
        lines += [(row, task, benchmark, metric, value) for task, sets in tasks.items()
                  for benchmark, scores in sets.items() for metric, value in (scores or {}).items()]
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(lines)
    return text.getvalue()


if __name__ == '__main__':
    try:
        evaluate(parse_args())
    except (OSError, ValueError) as problem:
        if os.environ.get('ACL_DEBUG'):     # ACL_DEBUG=1 shows where it happened
            raise
        if getattr(problem, 'filename', None):
            problem = f'cannot use {problem.filename} ({problem.strerror}): name another place'
        end(f'evaluate.py: {problem}')
    except RuntimeError as problem:
        if lost := lost_process(problem):
            end(f'evaluate.py: {lost}')
        raise
    except KeyboardInterrupt:
        end('evaluate.py: interrupted; --json and --csv, where given, hold the benchmarks that were finished', 128 + signal.SIGINT)

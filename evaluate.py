"""Evaluation, section 4.2, and a look at your own picture and sound.

    python evaluate.py --task single                                  # the checkpoint that ships, on the miniature
    python evaluate.py --task single --checkpoint runs/miniature-av-seed0/last.pt --json scores.json --figures pictures
    python evaluate.py --preset paper --checkpoint weights/acl_ssl.pt # the real benchmarks (README: what goes where)
    python evaluate.py --image photo.jpg --audio sound.wav --out heat.png

Every benchmark is scored at 224 x 224 (metrics.py). Beside our row stands the oracle's, CLIPSeg with the ground-truth
class name in place of the sound (section 4.1, Baselines), under the same shift b/w.
"""

import argparse
import contextlib
import copy
import csv
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

import figures
import metrics
from data import (BENCHMARKS, GROUND_TRUTH_SIZE, Benchmark, displayable, evaluation_image, evaluation_loader,
                  read_audio, read_image)
from model import PRESETS, ROOT, encode_image, load_model, read_checkpoint

TASKS = {'single': ('vggss', 'is4')}        # which benchmarks a task is run on (section 4.1)
SHIPPED = {'av': ROOT / 'miniature/weights/av.pt'}
SIZE = (GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE)


# ------------------------------------------------------------------------------------------------
# Heatmaps
# ------------------------------------------------------------------------------------------------

@torch.no_grad()
def localise(model, tokenizer, dataset, batch_size, label='', with_negatives=False):
    """Run the model over a benchmark. Yields (batch, {'ours': (B, 224, 224), 'oracle': ..., ...}) of heatmaps.

    'oracle' is there when every sample has a class name. with_negatives adds 'silence' (a waveform of zeros) and
    'noise' (uniform noise of full scale, seed 42), as AVSBench-Robust makes them. The vision encoder runs once per
    image whatever is asked. Unreadable samples are named, kept in dataset.unreadable, and left out.
    """
    device, noise = next(model.parameters()).device, torch.Generator().manual_seed(42)
    texts = {}
    for batch in tqdm(evaluation_loader(dataset, batch_size), label or dataset.name, leave=False, unit=' batches'):
        for error in batch['errors']:
            tqdm.write(f'{dataset.name}: {error}')
            dataset.unreadable.append(str(error))
        if not batch['id']:
            continue
        image, wav = batch['image'].to(device), batch['wav'].to(device)
        conditions = {'ours': model.embed_audio(wav)}
        if all(batch['label']):
            for word in set(batch['label']) - texts.keys():
                texts[word] = model.embed_text(tokenizer, [word])[0]
            conditions['oracle'] = torch.stack([texts[word] for word in batch['label']])
        if with_negatives:
            loud = torch.rand(wav.shape, generator=noise).to(device) * 2 - 1
            conditions.update(silence=model.embed_audio(torch.zeros_like(wav)), noise=model.embed_audio(loud))
        A = torch.stack(list(conditions.values()), 1)                           # (B, conditions, D)
        heat = model.heatmaps(encode_image(model.clipseg, image), A, SIZE)      # (B, conditions, 224, 224)
        yield batch, dict(zip(conditions, heat.unbind(1)))


# ------------------------------------------------------------------------------------------------
# Single sound source localization (4.2.1)
# ------------------------------------------------------------------------------------------------

def single_source(model, tokenizer, dataset, batch_size, threshold):
    """cIoU, AUC and their adaptive versions on one benchmark, with n and n_expected. -> ours, oracle (or None)"""
    scores = {}
    for batch, heat in localise(model, tokenizer, dataset, batch_size):
        for who in heat:
            score = scores.setdefault(who, metrics.SingleSource(threshold))
            score.update(heat[who].cpu(), batch['boxes'])
    if not scores:
        raise ValueError(f'no sample of {dataset.name} could be read, the first because {dataset.unreadable[0]}')
    counts = {'n': len(dataset) - len(dataset.unreadable), 'n_expected': dataset.expected}
    results = {who: {**score.compute(), **counts} for who, score in scores.items()}
    return results.get('ours'), results.get('oracle')


# ------------------------------------------------------------------------------------------------
# The small table at the end of a training: boxes, masks, interaction, silence and noise
# ------------------------------------------------------------------------------------------------

def held_out(model, tokenizer, preset, data_root, batch_size=32):
    """Scores on held-out scenes for summary.json. -> {'ours', 'oracle', 'ceiling'}: scores, and counts

    cIoU, AUC: VGG-SS, boxes. mIoU: every sample with a mask; mIoU_multi: IS4, whose frames hold two sounding objects;
    both_right: share of IS4 frames in which, for both sounds, the mean heat on the sound's own object exceeds that on
    the other. area_silence, area_noise: mean share of VGG-SS frames over 0.5 when nothing, or noise, is heard.
    All in per cent but the areas, which are fractions. 'ceiling' is what perfect masks score. A score is None where
    its benchmark is not on the disk; that, and every sample left out, is said.
    """
    config, kept = PRESETS[preset], {}      # kept[row of the table][score]: a list with one number per sample
    keep = lambda who, score, values: kept.setdefault(who, {}).setdefault(score, []).extend(values)
    counts = {}
    for name in ('vggss', 'is4'):
        try:
            dataset = Benchmark(name, data_root, config.image_size, config.seconds)
        except FileNotFoundError as error:
            print(f'held-out scores without {name}: {error}')
            continue
        groups, waiting = {s.id: s.group for s in dataset.samples}, {}
        for batch, heat in localise(model, tokenizer, dataset, batch_size, with_negatives=name == 'vggss'):
            heat = {who: h.cpu() for who, h in heat.items()}
            for kind in heat.keys() & {'silence', 'noise'}:
                keep('ours', f'area_{kind}', (heat.pop(kind) > 0.5).float().mean((1, 2)).tolist())
            with_mask = [i for i, mask in enumerate(batch['mask']) if mask is not None]
            masks = torch.stack([batch['mask'][i] for i in with_mask]) if with_mask else None
            if len(with_mask) == len(batch['id']):
                heat['ceiling'] = masks
            for who, h in heat.items():
                if name == 'vggss':
                    iou = metrics.overlap(h, batch['boxes'], metrics.thresholds_for(h))
                    keep(who, 'box_iou', metrics.ratio(*iou, 0.0)[:, 0].tolist())
                if with_mask:
                    iou = (metrics.mask_iou(h[with_mask] > 0.5, masks > 0.5) * 100).tolist()
                    keep(who, 'mIoU', iou)
                    keep(who, 'mIoU_multi', iou if name == 'is4' else [])
            for i in with_mask if name == 'is4' else ():
                # the two samples of a frame need not lie in one batch: the first waits for the second
                mine = {who: h[i] for who, h in heat.items()}, masks[with_mask.index(i)] > 0.5
                if other := waiting.pop(groups[batch['id'][i]], None):
                    for who in heat:
                        keep(who, 'both_right', [_both_right(other, mine, who)])
                else:
                    waiting[groups[batch['id'][i]]] = mine
        if len(dataset) - len(dataset.unreadable) < dataset.expected or waiting:
            print(f'{name}: scored {len(dataset) - len(dataset.unreadable)} of {dataset.expected} samples'
                  + (f'; {len(waiting)} frames lack their second sound' if waiting else ''))
    mean = lambda values: sum(values) / len(values) if values else None
    scores = {}
    for who, lists in kept.items():
        box_iou = lists.pop('box_iou', [])
        scores[who] = {'cIoU': metrics.success_share(box_iou) if box_iou else None,
                       'AUC': metrics.area_under_success(box_iou) if box_iou else None,
                       **{k: mean(lists.get(k, [])) for k in ('mIoU', 'mIoU_multi', 'both_right', 'area_silence',
                                                              'area_noise')}}
        if who == 'ours':
            counts = {'boxes': len(box_iou), **{new: len(lists.get(k, [])) for new, k in (
                ('masks', 'mIoU'), ('multi', 'mIoU_multi'), ('pairs', 'both_right'), ('silence', 'area_silence'))}}
    return scores, counts


def _both_right(one, other, who):
    """100 if either sound's mean heat is stronger on its own object than on the other's, else 0."""
    (heat_1, mask_1), (heat_2, mask_2) = one, other
    mean = lambda heat, mask: float(heat[who][mask].mean())
    return 100.0 * (mean(heat_1, mask_1) > mean(heat_1, mask_2) and mean(heat_2, mask_2) > mean(heat_2, mask_1))


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------

def single_sheet(model, tokenizer, dataset, path, count=12):
    """A contact sheet: frame | ground truth | heatmap | overlay, with the class and the IoU of each sample."""
    rows, labels = [], []
    part = copy.copy(dataset)
    part.samples = dataset.samples[::-(-len(dataset) // count)][:count]
    for batch, heat in localise(model, tokenizer, part, 1, label='pictures'):
        frame, map_ = displayable(batch['image'][0]), heat['ours'][0].cpu().numpy()
        iou = metrics.SingleSource('fixed:0.5')
        iou.update(heat['ours'].cpu(), batch['boxes'])
        rows.append([frame, figures.ground_truth_tile(frame, batch['boxes'][0].numpy()),
                     figures.heat_colours(map_), figures.overlay(frame, map_)])
        labels.append(f'{batch["label"][0] or batch["id"][0]}\nIoU {iou.iou[0]:.2f}')
    if rows:
        figures.contact_sheet(rows, path, ['frame', 'ground truth', 'heatmap', 'overlay'], labels)


def before_after_sheet(untrained, trained, tokenizer, preset, data_root, path, frames=6):
    """Figure 11's habit: the same frames untrained, trained and by the text oracle, under both sounds of each frame."""
    config = PRESETS[preset]
    try:
        dataset = Benchmark('is4', data_root, config.image_size, config.seconds, 2 * frames)
    except FileNotFoundError:
        return                                              # held_out has said so
    look = lambda model: localise(model, tokenizer, dataset, 1, 'pictures')
    rows, names = [], []
    for (batch, before), (_, after) in zip(look(untrained), look(trained)):
        frame = displayable(batch['image'][0])
        heats = [before['ours'], after['ours'], after['oracle']]
        truth = (batch['mask'][0] if batch['mask'][0] is not None else batch['boxes'][0]).numpy()
        rows.append([frame, figures.ground_truth_tile(frame, truth),
                     *(figures.overlay(frame, heat[0].cpu().numpy()) for heat in heats)])
        names.append(batch['label'][0])
    if rows:
        figures.contact_sheet(rows, path, ['frame', 'sounding object', 'untrained', 'trained', 'text oracle'], names)


def one_pair(model, preset, image_file, audio_file, out):
    """Localise one sound in one picture and save frame | heatmap | overlay at the picture's own size."""
    config, device = PRESETS[preset], next(model.parameters()).device
    picture = ImageOps.exif_transpose(read_image(image_file))       # phones turn the tag, not the pixels
    image = evaluation_image(picture, config.image_size)[None].to(device)
    wav = read_audio(audio_file, config.seconds)[None].to(device)
    heat = model.heatmap(image, wav, (picture.height, picture.width))[0].cpu().numpy()
    frame = np.asarray(picture)
    tiles = [frame, figures.heat_colours(heat), figures.overlay(frame, heat)]
    try:
        Image.fromarray(np.concatenate(tiles, 1)).save(out)
    except (OSError, ValueError) as error:
        raise OSError(f'cannot write {out} ({error}): name a .png or .jpg file in a folder that is there') from None
    print(f'{out}: frame | heatmap | overlay; {(heat > 0.5).mean():.1%} of the frame is over 0.5, the peak is '
          f'{heat.max():.2f}')


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=[*TASKS, 'all'], default='all', help='of section 4.1; single: Tables 1 and 2 (default: all)')
    parser.add_argument('--benchmarks', nargs='+', choices=list(BENCHMARKS), help='only these of the task')
    parser.add_argument('--preset', choices=list(PRESETS), help='scale (default: the one in the checkpoint, paper if it names none)')
    parser.add_argument('--variant', choices=['av'], default='av', help='which shipped checkpoint (default: av)')
    parser.add_argument('--checkpoint', help='of train.py, or the authors\' released file (default: the shipped one)')
    parser.add_argument('--prompt', help='default: the one the checkpoint was trained with')
    parser.add_argument('--data-root', help='default: the preset\'s')
    parser.add_argument('--clipseg', help='hub name or folder instead of the preset\'s')
    parser.add_argument('--beats', help='BEATs file instead of the preset\'s')
    parser.add_argument('--threshold', default='fixed:0.5',
                        help='fixed:T, top50, adaptive or sweep (metrics.py; default: fixed:0.5)')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--limit', type=int, help='only the first N samples of each benchmark')
    parser.add_argument('--json', help='write the scores here')
    parser.add_argument('--csv', help='write the scores here, a line per task, benchmark, row and metric')
    parser.add_argument('--figures', help='folder for contact sheets')
    parser.add_argument('--image', help='a picture of your own')
    parser.add_argument('--audio', help='and its sound')
    parser.add_argument('--out', default='heat.png', help='where frame | heatmap | overlay go (default: heat.png)')
    args = parser.parse_args(argv)
    if bool(args.image) != bool(args.audio):
        parser.error('--image and --audio go together')
    level = args.threshold.removeprefix('fixed:')
    if args.threshold not in ('top50', 'adaptive', 'sweep') and not (
            args.threshold.startswith('fixed:') and level.replace('.', '', 1).isdigit() and 0 <= float(level) <= 1):
        parser.error(f'--threshold is fixed:T with T in 0..1, top50, adaptive or sweep, not {args.threshold}')
    for name, least in (('batch_size', 1), ('limit', 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f'--{name.replace("_", "-")} must be at least {least}')
    return args


def load(args):
    """The model of the command line, on the GPU if there is one. Prints which checkpoint it is."""
    checkpoint = args.checkpoint or SHIPPED[args.variant]
    if not args.checkpoint and args.preset == 'paper':
        raise ValueError('no checkpoint ships for the paper preset: train one, or name the authors\' by --checkpoint')
    print(f'checkpoint: {os.path.relpath(checkpoint)}')
    # the authors' file does not name its scale: it is the paper's
    args.preset = args.preset or read_checkpoint(checkpoint).get('preset', 'paper')
    model, tokenizer = load_model(args.preset, checkpoint, args.prompt, clipseg=args.clipseg, beats=args.beats)
    return model.to('cuda' if torch.cuda.is_available() else 'cpu'), tokenizer


def check_outputs(args):
    """Find out now, not after the scoring, that a result has no place to go. OSError names it."""
    for path in (args.json, args.csv, args.out if args.image else None):
        if path and Path(path).exists() and not Path(path).is_file():
            raise OSError(f'cannot write {path}: it is no file; name another place')
        if path:
            writable_folder(Path(path).parent)
    if args.figures:
        writable_folder(Path(args.figures))


def writable_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f'cannot write into {folder} ({error.strerror}): name another place') from None


def evaluate(args):
    check_outputs(args)
    model, tokenizer = load(args)
    if args.image:
        return one_pair(model, args.preset, args.image, args.audio, args.out)
    config = PRESETS[args.preset]
    root = args.data_root or config.data_root
    if args.preset == 'miniature' and not args.data_root:
        from miniature import world
        world.build(root)
    wanted = {task: [b for b in TASKS[task] if b in (args.benchmarks or TASKS[task])]
              for task in (TASKS if args.task == 'all' else [args.task])}
    # every set is opened before the first is scored, so that a missing one costs nothing already computed
    datasets = {name: Benchmark(name, root, config.image_size, config.seconds, args.limit)
                for names in wanted.values() for name in names}
    results = {'clipseg_gt_text': {}}
    for task, names in wanted.items():
        for name in names:
            dataset = datasets[name]
            ours, oracle = single_source(model, tokenizer, dataset, args.batch_size, args.threshold)
            results.setdefault(task, {})[name] = ours
            results['clipseg_gt_text'].setdefault(task, {})[name] = oracle
            if ours['n'] < ours['n_expected']:
                print(f'{name}: scored {ours["n"]} of {ours["n_expected"]} samples, not e.g. '
                      f'{(dataset.missing + dataset.unreadable)[0]}')
            if args.json:
                write_whole(args.json, json.dumps(results, indent=1))
            if args.csv:
                write_whole(args.csv, csv_text(results))
            if args.figures:
                single_sheet(model, tokenizer, dataset, os.path.join(args.figures, f'{task}_{name}.png'))
        print_task(task, results)
    return results


def print_task(task, results):
    """The paper's Tables 1 and 2: benchmark rows, metric columns, our row and the oracle's."""
    rows, names = [], []
    for benchmark, ours in results[task].items():
        for who, scores in (('ours', ours), ('clipseg_gt_text', results['clipseg_gt_text'][task][benchmark])):
            rows.append([(scores or {}).get(k) for k in ('cIoU', 'cIoU_adap', 'AUC', 'AUC_adap', 'n')])
            names.append(f'{benchmark} {who}')
    # a sweep gives a score per threshold: the table shows the middle one, 0.5, the files hold all
    rows = [[value[len(value) // 2] if isinstance(value, list) else value for value in row] for row in rows]
    print(figures.table(rows, ['cIoU', 'w/ Adap.', 'AUC', 'w/ Adap.', 'n'], names))


def write_whole(path, text):
    """Write a file whole or not at all. OSError names the file and the mend."""
    path = Path(path)
    partial = path.with_name(f'{path.name}.partial')
    if path.exists() and not path.is_file():
        raise OSError(f'cannot write {path}: it is no file; name another place')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f'cannot write {path} ({error.strerror or error}): free some space or name another place') from None


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
        sys.exit(f'evaluate.py: {problem}')

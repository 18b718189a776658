"""Evaluation, section 4.2: five tasks on fourteen benchmarks, and your own picture and sound.

    python evaluate.py --task interactive           # the checkpoint that ships, on the miniature
    python evaluate.py --task all --json scores.json --figures pictures     # all tables, pictures
    python evaluate.py --checkpoint runs/paper-av-seed0/last.pt     # the real benchmarks
    torchrun --nproc_per_node=2 evaluate.py --task all      # the same scores, several processes
    python evaluate.py --heatmaps DIR --task single         # another method's maps, same rules
    python evaluate.py --compare av.json av_llm.json        # several results, the paper's beside
    python evaluate.py --image photo.jpg --audio sound.wav --out heat.png

A heatmap is sigmoid(M_G + b/w) (section 3.7, localise.py); metrics.py scores it at 224 x 224. Each
benchmark is read once, for all of its tasks. A table has a row for each method: ours and, where the
paper has one, the oracle: CLIPSeg with the ground-truth class name as its text (4.1, Baselines).

A batch is a list of samples (data.Benchmark) that holds all sounds of its frames, so that each
frame is encoded once. A localiser is a function of a batch: samples -> {row: a heatmap, or None, of
each sample}. Each task has a metric for each row.
"""

import argparse
import functools
import math
import re
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import BENCHMARKS
from benchmarks.lists import files_of_root, read_labels
from benchmarks.maps import (MOST_PRINTED, maps_below, open_others, read_maps, save_confidences,
                             save_heatmaps, with_others)
from data import Benchmark, draw_miniature
from figures.compare import comparison
from figures.own import one_pair
from figures.report import BY, draw_report, draw_sheets, ids_to_show
from figures.scores import in_json, print_counts, scores_of, write_scores
from figures.tables import EXTENDED, ORACLE_TASKS, task_tables
from launch import (between, check_outputs, gather_lists, given_options, overwritten,
                    rank_and_processes, run_script, some_path, start_processes, wait_for_all)
from localise import MIXTURE_ROWS, embed_names, localise, localise_sources
from metrics import Extended, Interactive, MultiSource, Robustness, Segmentation, SingleSource
from model import PRESETS, ROOT, load_model, read_checkpoint

TASKS = {   # {task: {benchmark: the metric of section 4.1}}, benchmarks in the paper's order
    'single': dict.fromkeys(                                                    # Tables 1 and 2
        ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'), SingleSource),
    'segmentation': dict.fromkeys(                                              # Table 6
        ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'), Segmentation),
    'robustness': {'ext_vggss': Extended, 'ext_flickr': Extended,               # Tables 3 and 4
                   'robust_s4': Robustness, 'robust_ms3': Robustness},          # Table 5
    'interactive': {'is4': Interactive, 'vpo_ms': Interactive},                 # Table 7
    'multisource': {'vgg_instruments': MultiSource, 'vgg_duet': MultiSource}}   # Table 8
SHIPPED = {'av': 'miniature/weights/av.pt', 'av_llm': 'miniature/weights/av_llm.pt'}


# ---- One benchmark: from heatmaps to metrics -----------------------------------------------------
def score(dataset, batches, metrics, localiser, shown=(), folders=()):
    """Update every metric with these batches. -> [(sample, {row: its heatmap})] of those in `shown`

    metrics: {task: {row: metric}}. For the extended sets the localiser adds to each sample its
    'confidence', {row: number}. shown: ids. folders: [(row, where its heatmaps are saved)].
    """
    pictured = []
    for batch in batches:
        samples = readable(dataset, [dataset[i] for i in batch])
        if not samples:
            continue
        maps = localiser(samples)
        readable(dataset, samples)          # prints and counts maps that could not be read
        for of_rows in metrics.values():
            for row, metric in of_rows.items():
                if row in maps:                     # --heatmaps has no oracle
                    feed(metric, samples, maps[row], row)
        for i, sample in enumerate(samples):
            if sample['id'] in shown:
                pictured.append((sample, {row: maps[row][i] for row in maps}))
        for row, folder in folders:
            save_heatmaps(folder, [s['id'] for s in samples], maps[row])
    return pictured


def readable(dataset, samples):
    """-> the samples without an error. Errors go to dataset.unreadable; the first are printed."""
    for sentence in [str(s['error']) for s in samples if 'error' in s]:
        printed = len(set(dataset.unreadable))
        if sentence not in dataset.unreadable and printed <= MOST_PRINTED:
            more = 'further ones are counted only'
            tqdm.write(f'{dataset.name}: {sentence if printed < MOST_PRINTED else more}')
        dataset.unreadable.append(sentence)
    return [s for s in samples if 'error' not in s]


def feed(metric, samples, maps, row):
    """Update a metric with the samples it can score: those with a map and with its ground truth.

    Negatives, whose sound comes from nothing in the frame, are only for metrics that need the
    condition. row: that of the maps, whose confidence is taken.
    """
    kept = []
    for sample, heat in zip(samples, maps):
        wanted = sample['condition'] == 'positive' or 'condition' in metric.needs
        if wanted and heat is not None and all(sample[key] is not None for key in metric.needs):
            kept.append((sample, heat))
    if not kept:
        return
    truth = []
    for key in metric.needs:
        values = [sample[key] for sample, _ in kept]
        if key == 'confidence':
            values = [of_rows[row] for of_rows in values]
        truth.append(torch.stack(values) if torch.is_tensor(values[0]) else values)
    metric.update(torch.stack([heat for _, heat in kept]), *truth)
    metric.ids += [sample['id'] for sample, _ in kept]


def share(batches):
    """This process's part of the batches, in order; the later processes may get fewer."""
    rank, processes = rank_and_processes()
    each = math.ceil(len(batches) / processes)
    return batches[rank * each:(rank + 1) * each]


def merge_across_ranks(metric):
    """-> a metric with the samples of all processes. A collective call."""
    first, *others = gather_lists([metric])
    for other in others:
        first.merge(other)
    return first


def score_benchmark(dataset, tasks, localiser, rows, batch_size, shown=(), folders=(), **settings):
    """Score a benchmark, in all processes together. -> {task: {row: metric}}, what `score` returns

    tasks: {task: class of its metrics}. shown, folders: see score; an extended set's confidences
    are saved beside its heatmaps. settings: threshold and reading. ValueError: nothing is readable.
    """
    rank, _ = rank_and_processes()
    metrics = {}
    for task, metric_class in tasks.items():
        metrics[task] = {row: metric_class(**settings) for row in rows}
    batches = tqdm(share(dataset.batches(batch_size)), dataset.name, leave=False,
                   unit=' batches', disable=rank > 0)
    pictured = gather_lists(score(dataset, batches, metrics, localiser, shown, folders))
    for of_rows in metrics.values():
        for row, metric in of_rows.items():
            of_rows[row] = merge_across_ranks(metric)
    dataset.unreadable = gather_lists(dataset.unreadable)
    if len(dataset.unreadable) == len(dataset):
        raise ValueError(f'no sample of {dataset.name} could be scored, the first because '
                         f'{dataset.unreadable[0]}')
    if dataset.name in EXTENDED and rank == 0:
        for row, folder in folders:
            metric = metrics['robustness'][row]
            save_confidences(folder, zip(metric.ids, metric.confidence))
    return metrics, pictured


# ---- All benchmarks: from metrics to tables ------------------------------------------------------
def add_scores(scores, wanted, dataset, metrics, paper, json_file, csv_file):
    """Add the scores of a benchmark; write all scores, and print the tables that are complete.

    scores: {row: {task: {benchmark: its scores}}}. wanted: {task: {benchmark: metric}}, all that
    will be scored. metrics: {task: {row: metric}}. paper: the variant, or None: see task_tables.
    """
    for task, of_rows in metrics.items():
        for row, metric in of_rows.items():
            if row in scores:                       # not those of --beside
                of_task = scores[row].setdefault(task, {})
                of_task[dataset.name] = scores_of(metric, dataset)
    if rank_and_processes()[0] > 0:
        return
    write_scores(scores, json_file, csv_file)
    print_counts(dataset, metrics)
    for task in metrics:
        rows = task_rows(scores, task)
        if all(len(sets) == len(wanted[task]) for sets in rows.values()):
            print('\n' + task_tables(task, rows, paper))


def tasks_of(name, wanted):
    """The tasks of a benchmark. wanted: {task: {benchmark: metric}} -> {task: metric}"""
    return {task: sets[name] for task, sets in wanted.items() if name in sets}


def task_rows(scores, task):
    """{row: {task: {benchmark: scores}}} -> {row: {benchmark: scores}}, of rows with this task"""
    return {row: tasks[task] for row, tasks in scores.items() if task in tasks}


# ---- The model, the benchmarks, and what localises -----------------------------------------------
def load(device, checkpoint, variant, preset, untrained, **given):
    """-> model, tokenizer, preset, variant, the checkpoint's path as text. given: see load_model"""
    if preset == 'paper' and not checkpoint and not untrained:
        raise ValueError('no checkpoint ships for the paper preset: train one, or name the '
                         'authors\' by --checkpoint')
    torch.manual_seed(0)                # the untrained weights
    source = 'none, untrained'
    saved = {'preset': 'miniature'}
    if not untrained:
        source = checkpoint or SHIPPED[variant or 'av']
        checkpoint = checkpoint or ROOT / source
        if rank_and_processes()[0] == 0:
            print(f'checkpoint: {source}')
        saved = read_checkpoint(checkpoint)
    preset = preset or saved.get('preset', 'paper')         # the authors' file names neither
    variant = variant or saved.get('variant', 'av')
    model, tokenizer = load_model(preset, checkpoint, **given)
    return model.to(device), tokenizer, preset, variant, source


def open_benchmarks(wanted, preset, data_root, limit):
    """Open all test sets before scoring the first, so that a missing one is reported at once.

    wanted: {task: its benchmarks}. Draws the miniature where it is missing.
    -> {name: Benchmark}, in the order of every table
    """
    config = PRESETS[preset]
    root = data_root or config.data_root
    if preset == 'miniature' and not data_root and rank_and_processes()[0] == 0:
        draw_miniature(root)
    wait_for_all()
    datasets = {}
    for name in sorted(set().union(*wanted.values()), key=list(BENCHMARKS).index):
        try:
            dataset = Benchmark(name, root, config.image_size, config.seconds, limit)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{error}; --benchmarks names the sets that are '
                                    'there') from None
        if name in wanted.get('segmentation', ()) and not all(s.masks for s in dataset.samples):
            raise ValueError(f'{name} below {root} has no masks, which segmentation needs: '
                             'docs/datasets.md says where they go; --task or --benchmarks leaves '
                             'it out')
        datasets[name] = dataset
    return datasets


def localiser_of(dataset, tasks, model, tokenizer, heatmaps, mixture_labels, mixture_rows):
    """A benchmark's localiser: of the model, or of maps on disk. tasks: {task: metric}

    Paper [78]: 4.2.5 takes "a predefined category list" and does not say which. Here it is the
    benchmark's own class names, or those of the file mixture_labels.
    """
    needs = {key for metric in tasks.values() for key in metric.needs}
    if heatmaps:
        return functools.partial(read_maps, maps_below(Path(heatmaps, dataset.name), needs))
    if 'sources' in needs:
        names = dataset.classes
        if mixture_labels:
            names = read_labels(mixture_labels, '--mixture-labels')
            if lacking := set(dataset.classes) - set(names):
                raise ValueError(f'{mixture_labels} lacks {len(lacking)} of the class names of '
                                 f'{dataset.name}, e.g. {min(lacking)!r}: add them')
        classes = model.embed_text(tokenizer, names)                                # (N, D)
        return functools.partial(localise_sources, model, classes=classes, cache={},
                                 names=names if mixture_rows else None)
    with_oracle = any(task in ORACLE_TASKS for task in tasks)
    words = embed_names(model, tokenizer, dataset) if with_oracle else None
    return functools.partial(localise, model, words=words, cache={},
                             with_confidence='confidence' in needs)


def evaluate(args):
    """Score every benchmark asked for, or localise --image. -> what --json holds, or None"""
    check_outputs([args.json, args.csv, args.out if args.image else None],
                  [args.figures, args.save_heatmaps])
    device = start_processes(args.device)
    model = tokenizer = None                # --heatmaps needs none
    preset = args.preset or 'miniature'
    variant = args.variant or 'av'
    if not args.heatmaps:
        model, tokenizer, preset, variant, source = load(
            device, args.checkpoint, args.variant, args.preset, args.untrained,
            prompt=args.prompt, clipseg=args.clipseg, beats=args.beats)
    if args.image:
        return one_pair(model, PRESETS[preset], args.image, args.audio, args.out)
    datasets = open_benchmarks(args.wanted, preset, args.data_root, args.limit)
    # all before the first benchmark is scored, so that a missing file is reported at once
    localisers = {name: localiser_of(dataset, tasks_of(name, args.wanted), model, tokenizer,
                                     args.heatmaps, args.mixture_labels, args.mixture_rows)
                  for name, dataset in datasets.items()}
    method = 'heatmaps' if args.heatmaps else 'ours'
    rows = (method, 'oracle', *(MIXTURE_ROWS if args.mixture_rows else ()))
    paper = variant if preset == 'paper' else None          # the miniature has no row in the paper
    scores = {row: {task: {} for task in args.wanted} for row in rows}
    scored = {}
    examples = []
    for name, dataset in datasets.items():
        tasks = tasks_of(name, args.wanted)
        shown = ids_to_show(dataset.samples, args.examples) if args.figures else ()
        others = open_others(args.beside, dataset, tasks)
        localiser = localisers[name]
        if others:
            localiser = functools.partial(with_others, localiser, others, shown, Counter())
        folders = [('ours', Path(args.save_heatmaps, name))] if args.save_heatmaps else []
        scored[name], pictured = score_benchmark(
            dataset, tasks, localiser, [*rows, *others], args.batch_size, shown, folders,
            threshold=args.threshold, reading=args.reading)
        add_scores(scores, args.wanted, dataset, scored[name], paper, args.json, args.csv)
        if args.figures and rank_and_processes()[0] == 0:
            examples += draw_sheets(args.figures, name, scored[name], pictured)
    if args.figures and rank_and_processes()[0] == 0:
        origin = {'heatmaps': args.heatmaps} if args.heatmaps else {'checkpoint': source}
        facts = {**origin, 'preset': preset, 'threshold': args.threshold, 'reading': args.reading}
        tables = {task: (task_rows(scores, task), paper) for task in args.wanted}
        draw_report(args.figures, tables, scored, examples, facts)
    return in_json(scores)


# ---- The command line ----------------------------------------------------------------------------
THRESHOLDS = r'top50|adaptive|sweep|fixed:([01](\.0*)?|0?\.\d+)'
GOES_WITH = {'image': 'audio', 'audio': 'image', 'out': 'image', 'examples': 'figures',
             'beside': 'figures'}
OF_MODEL = ('checkpoint', 'untrained', 'prompt', 'clipseg', 'beats', 'device')
OF_SCORES = ('task', 'benchmarks', 'threshold', 'reading', 'batch_size', 'limit', 'json', 'csv',
             'figures', 'save_heatmaps', 'heatmaps')
EXCLUDES = {    # option: others that have no effect beside it (--data-root may always be given)
    'image': OF_SCORES, 'untrained': ('checkpoint', 'variant'),
    'compare': (*OF_SCORES, *OF_MODEL, 'preset', 'variant', 'image'),
    'heatmaps': (*OF_MODEL, 'save_heatmaps', 'mixture_rows', 'mixture_labels')}


def parse_args(argv=None):
    """-> options, and `wanted`: {task: {benchmark: metric}}"""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--task', choices=[*TASKS, 'all'], default='all', help='of section 4.2; single: Tables 1 '
        'and 2, segmentation: 6, robustness: 3 to 5, interactive: 7, multisource: 8 (default: all)')
    add('--benchmarks', nargs='+', choices=list(BENCHMARKS), help='only these of the task')
    add('--preset', choices=list(PRESETS), help='default: the checkpoint\'s, paper if it has none')
    add('--variant', choices=list(SHIPPED), help='of the shipped checkpoint and the paper\'s row')
    add('--checkpoint', type=some_path, help='of train.py, or the authors\' (default: shipped)')
    add('--untrained', action='store_true', help='the weights that training begins with (seed 0)')
    add('--prompt', help='default: the one the checkpoint was trained with')
    add('--data-root', type=some_path, help='default: the preset\'s')
    add('--clipseg', type=some_path, help='hub name or folder instead of the preset\'s')
    add('--beats', type=some_path, help='BEATs file instead of the preset\'s')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    add('--threshold', default='fixed:0.5', help='fixed:T, top50, adaptive or sweep (metrics.py)')
    add('--reading', choices=['release', 'paper'], default='release', help='metrics as the '
        'released evaluators compute them (default), or by the paper\'s words (metrics.py)')
    add('--batch-size', type=between(int, 1), default=16, help='samples at once (default: 16)')
    add('--limit', type=between(int, 1), help='the first N of each benchmark or of its conditions')
    add('--json', type=some_path, help='write the scores here')
    add('--csv', type=some_path, help='the same, a line per task, benchmark, row and metric')
    add('--mixture-labels', type=some_path, metavar='FILE', help='Table 8: a class name per line, '
        'to choose from (default: the benchmark\'s own)')
    add('--mixture-rows', action='store_true', help='Table 8: rows that explain the scores')
    add('--figures', type=some_path, metavar='DIR', help='contact sheets, curves, report.html')
    add('--examples', type=between(int, 1), default=3, help='frames of a benchmark (default: 3)')
    add('--beside', nargs='+', type=named_folder, default=[], metavar='NAME=DIR', help='other '
        'methods\' maps in --figures too, folders as of --save-heatmaps')
    add('--save-heatmaps', type=some_path, metavar='DIR', help='write DIR/<benchmark>/<id>.npy')
    add('--heatmaps', type=some_path, metavar='DIR', help='maps to score (.npy or 8-bit .png)')
    add('--compare', nargs='+', type=some_path, metavar='FILE', help='print these results (--json '
        'of evaluate.py, as av.json and av_llm.json, and of baselines.py) in Tables 1 to 8')
    add('--image', type=some_path, help='a picture of your own')
    add('--audio', type=some_path, help='and its sound')
    add('--out', type=some_path, default='heat.png', help='heatmap of both (default: heat.png)')
    args = parser.parse_args(argv)
    try:
        check_options(args, given_options(parser, argv))
        args.wanted = tasks_wanted(args.task, args.benchmarks)
    except ValueError as error:
        parser.error(str(error))
    if args.threshold == 'sweep' and Extended in args.wanted.get('robustness', {}).values():
        parser.error('--threshold sweep does not go with the extended sets, which sweep the '
                     'confidence: name the other tasks or --benchmarks')
    return args


def named_folder(text):
    """argparse's type of NAME=DIR. -> (the row of that method, DIR)"""
    name, _, folder = text.partition('=')
    if not name.strip() or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f'expected NAME=DIR, a folder that exists, not {text!r}')
    return BY + name, folder


def check_options(args, given):
    """ValueError where an option is wrong, has no effect beside another, or would overwrite a file.

    given: {name: option} of the command line.
    """
    for one, others in EXCLUDES.items():
        for other in others:
            if one in given and other in given:
                raise ValueError(f'{given[one]} and {given[other]} do not go together: leave one '
                                 'out')
    for one, other in GOES_WITH.items():
        if one in given and other not in given:
            raise ValueError(f'{given[one]} goes with --{other}: name both, or neither')
    if not re.fullmatch(THRESHOLDS, args.threshold):
        raise ValueError('--threshold is fixed:T with T in 0..1, top50, adaptive or sweep, not '
                         f'{args.threshold}')
    if len(dict(args.beside)) < len(args.beside):
        raise ValueError('--beside has one name twice: give each folder its own')
    if (args.mixture_rows or args.mixture_labels) and args.task != 'multisource':
        raise ValueError('--mixture-rows and --mixture-labels go with --task multisource: name it')

    outputs = [('--json', args.json), ('--csv', args.csv), ('--out', args.image and args.out)]
    if args.save_heatmaps:
        outputs += [('--save-heatmaps', Path(args.save_heatmaps, name)) for name in BENCHMARKS]
    outputs.append(('--figures', args.figures))
    names = ('image', 'audio', 'checkpoint', 'beats', 'clipseg', 'mixture_labels')
    inputs = [(given.get(name), getattr(args, name)) for name in names]
    inputs.append(('the weights that ship', ROOT / 'miniature/weights'))
    roots = [args.data_root] if args.data_root else [p.data_root for p in PRESETS.values()]
    inputs += [pair for root in roots for pair in files_of_root(root)]
    if args.heatmaps:
        inputs += [('--heatmaps', file) for file in Path(args.heatmaps).glob('*/confidence.csv')]
    for _, folder in args.beside:
        inputs += [('--beside', Path(folder, name)) for name in BENCHMARKS]
    if sentence := overwritten(outputs, inputs):
        raise ValueError(sentence)


def tasks_wanted(asked, benchmarks):
    """--task and --benchmarks -> {task: {benchmark: metric}}. ValueError: not of that task"""
    chosen = set(benchmarks or BENCHMARKS)
    wanted = {}
    for task in TASKS if asked == 'all' else [asked]:
        scored = {name: metric for name, metric in TASKS[task].items() if name in chosen}
        if benchmarks and asked == task and len(scored) < len(chosen):
            raise ValueError(f'--task {task} has the benchmarks {", ".join(TASKS[task])}, not '
                             f'{", ".join(sorted(chosen - set(scored)))}')
        if scored:
            wanted[task] = scored
    return wanted


def main():
    args = parse_args()
    if args.compare:
        print(comparison(args.compare))
    else:
        evaluate(args)


if __name__ == '__main__':
    run_script('evaluate.py', main, 'interrupted; --json, --csv and the contact sheets of '
               '--figures, where given, have the benchmarks that were finished')

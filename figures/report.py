"""What evaluate.py shows of its samples, in the manner of Figures 5 to 10, on the page with sound.

Contact sheets are drawn after each benchmark, the curves of Figure 7 and report.html at the end;
one that fails is named and costs no other. An example is a sample of data.Benchmark with
    task, benchmark, id; group: of the frame; label: str, None, or one per source of a mixture
    condition: of CONDITIONS in AVSBench-Robust, 'sounding' or 'silent' in the extended sets
    frame (H, W, 3) uint8; truth (k, h, w), of k sources: two in a mixture, else one
    heats: {'overlay' or 'by <another method>': (k, h, w), or None without a map of the sample}
    scores: {'IoU' (of a mixture 'CAP', a fraction), 'confidence', 'by <another method>' (its IoU or
        CAP): a number or None}
    oracle: the text oracle's heatmap (h, w), or None; wav (samples,) in -1..1
"""

import base64
import io
import math
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import soundfile
from PIL import Image

from figures import attempt, curves
from figures.pictures import contact_sheet, ground_truth_tile, heat_colours, overlay
from figures.tables import BENCHMARK_NAMES, EXTENDED, TASK_NAMES, cell_text, grids, score_of
from launch import write_file
from media import SAMPLE_RATE, displayable
from metrics import CONDITIONS

BY = 'by '                  # begins the name of the row of another method (--beside)
LOUD = 0.35                 # root mean square of a sound; a louder one is played at SOFTENED
SOFTENED = 0.1
SOUND_SECONDS = 240         # in one report, each 43 KB (16 kHz, 16 bit, base64)


# ---- What is shown -------------------------------------------------------------------------------
def ids_to_show(samples, frames):
    """Ids of up to that many frames, spread over a benchmark, each with all of its sounds.

    Frames with several sounds, where there are enough of them: many of VPO-MS have one.
    """
    sounds = Counter(sample.group for sample in samples)
    groups = [group for group, count in sounds.items() if count > 1]
    if len(groups) < frames:
        groups = list(sounds)
    step = math.ceil(len(groups) / frames)
    chosen = set(groups[::step])
    return {sample.id for sample in samples if sample.group in chosen}


def examples_of(task, benchmark, metrics, pictured):
    """Samples to show, of those that the first row's metric has scored. -> examples

    metrics: {row: metric}. pictured: [(sample, {row: its heatmap, or None})].
    """
    first, metric = next(iter(metrics.items()))
    examples = []
    for sample, maps in pictured:
        name = sample['id']
        if name not in metric.ids:
            continue
        frame = displayable(sample['image'])
        truth = sample[metric.needs[0]].numpy()         # every metric needs its ground truth first
        if sample['sources'] is None:
            truth = truth[None]                                             # (1, h, w)
        else:                                   # of a mixture, whose two frames were squashed
            size = truth.shape[:0:-1]                                       # w, h
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        heat, score = heat_and_score(name, metric, maps[first])
        heats = {'overlay': heat}
        scores = {'IoU' if sample['sources'] is None else 'CAP': score}
        if 'confidence' in metric.needs:
            scores['confidence'] = metric.confidence[metric.ids.index(name)]
        for row in [row for row in maps if row.startswith(BY)]:
            heats[row], scores[row] = heat_and_score(name, metrics[row], maps[row])
        oracle = maps.get('oracle')
        examples.append({
            **sample, 'task': task, 'benchmark': benchmark, 'frame': frame, 'truth': truth,
            'oracle': None if oracle is None else oracle.numpy(), 'heats': heats, 'scores': scores})
    return examples


def heat_and_score(name, metric, heat):
    """Of one row: the maps (k, h, w) of sample `name`, k sources, and its score; or None, None."""
    if name not in metric.ids:
        return None, None
    place = metric.ids.index(name)
    if 'sources' in metric.needs:               # each source beside the map it is scored with
        return heat[metric.pairings[place]].numpy(), metric.cap[place]
    return heat[None].numpy(), score_of({'IoU': metric.iou[place]}, 'IoU')


def cards(examples, task, benchmark):
    """Yield (frame, [(heading, example or None)]) of a task and benchmark.

    A card is a frame with all of its sounds in Figures 8 (of CONDITIONS, None for a missing one)
    and 9, with a single sound elsewhere.
    """
    groups = {}
    is_robust = benchmark.startswith('robust')
    for i, example in enumerate(examples):
        if (example['task'], example['benchmark']) == (task, benchmark):
            key = example['group'] if is_robust or task == 'interactive' else i
            groups.setdefault(key, []).append(example)
    for group in groups.values():
        sounds = [('', group[0])]
        if is_robust:
            by_condition = {example['condition']: example for example in group}
            sounds = [(name, by_condition.get(name)) for name in CONDITIONS]
        elif task == 'interactive':
            sounds = [(f'sound {k}', example) for k, example in enumerate(group, 1)]
        yield group[0]['frame'], sounds


def tiles(example):
    """The pictures of an example beside its frame: {caption: (H, W, 3) uint8, or None}."""
    frame = example['frame']
    is_robust = example['benchmark'].startswith('robust')
    pictures = {}
    for k, truth in enumerate(example['truth']):
        number = f' {k + 1}' if len(example['truth']) > 1 else ''           # Figure 10
        if not is_robust:                                   # Figure 8 has the overlay alone
            pictures[f'ground truth{number}'] = ground_truth_tile(frame, truth)
        if not is_robust and example['task'] not in ('interactive', 'multisource'):
            pictures['heatmap'] = heat_colours(example['heats']['overlay'][k])
        for caption, heat in example['heats'].items():
            pictures[caption + number] = None if heat is None else overlay(frame, heat[k])
    return pictures


def name_of(example):
    """What labels an example: its class name, of a mixture both, or its id."""
    name = example['label'] or example['id']
    return name if isinstance(name, str) else ' + '.join(name)


def facts_of(example):
    """-> ['sounding', 'IoU 0.81', 'confidence 0.68', 'by FNAC 0.47'], some may be missing"""
    facts = [example['condition']] if example['condition'] in ('sounding', 'silent') else []
    scores = example['scores']                              # Figure 5 has the IoU of each method
    if example['condition'] == 'silent':                    # nothing sounds: there is no IoU
        scores = {'confidence': scores['confidence']}
    return facts + [f'{word} {value:.2f}' for word, value in scores.items() if value is not None]


# ---- Contact sheets, curves and the page ---------------------------------------------------------
def draw_sheets(folder, benchmark, metrics, pictured):
    """A contact sheet for each task of a benchmark. -> all examples on them, for draw_report

    metrics: {task: {row: metric}}. pictured: see examples_of.
    """
    examples = []
    for task, rows in metrics.items():
        sheet = Path(folder, f'{task}_{benchmark}.png')
        shown = examples_of(task, benchmark, rows, pictured)
        attempt(sheet, example_sheet, task, benchmark, shown, sheet)
        examples += shown
    return examples


def example_sheet(task, benchmark, examples, path):
    """The contact sheet of a task and benchmark: a row is a frame and the tiles of its sounds."""
    rows = []
    columns = []
    labels = []
    for frame, sounds in cards(examples, task, benchmark):
        row = {'frame': frame}
        named = [example for _, example in sounds if example]
        for heading, example in sounds:
            pictures = tiles(example) if example else dict.fromkeys(tiles(named[0]))
            row |= {f'{heading}\n{caption}'.strip(): tile for caption, tile in pictures.items()}
        rows.append(list(row.values()))
        columns = max(columns, list(row), key=len)          # a frame of VPO-MS has 1 to 5 sounds
        if benchmark.startswith('robust'):
            named = named[:1]                               # the positive sound
        facts = {}                                          # {'IoU': [of each sound]}
        for fact in [fact for example in named for fact in facts_of(example)]:
            word, _, value = fact.rpartition(' ')
            facts.setdefault(word, []).append(value)
        lines = [f'{word} {" / ".join(values)}'.strip() for word, values in facts.items()]
        labels.append('\n'.join([' / '.join(map(name_of, named)), *lines]))
    title = f'{TASK_NAMES[task]}: {BENCHMARK_NAMES[benchmark]}'
    contact_sheet(rows, path, columns, labels, title)


def sheet_of_samples(path, samples, maps, columns, labels, title=''):
    """Contact sheet of samples of data.Benchmark: frame, ground truth, and the frame under maps.

    maps: of each sample (h, w) in 0..1, or None for a blank. columns: names of all; labels, title:
    see contact_sheet.
    """
    rows = []
    for sample, heats in zip(samples, maps):
        frame = displayable(sample['image'])
        truth = sample['boxes'] if sample['mask'] is None else sample['mask']
        under = [None if heat is None else overlay(frame, heat.numpy()) for heat in heats]
        rows.append([frame, ground_truth_tile(frame, truth.numpy()), *under])
    contact_sheet(rows, path, columns, labels, title)


def draw_report(folder, tables, metrics, examples, facts):
    """The curves of the extended sets (Figure 7) and report.html. tables, facts: see report

    metrics: {benchmark: {task: {row: metric}}}. With other methods' rows (--beside),
    precision_recall_<benchmark>.png has the curves of all. examples: of all benchmarks.
    """
    curves_of = {'precision_recall.png': {}}
    for name in [name for name in EXTENDED if name in metrics]:
        scored = {row: metric for row, metric in metrics[name]['robustness'].items() if metric}
        curves_of['precision_recall.png'][BENCHMARK_NAMES[name]] = next(iter(scored.values()))
        if len(scored) > 1:
            curves_of[f'precision_recall_{name}.png'] = scored
    for file, rows in curves_of.items():
        picture = Path(folder, file)
        if rows:
            attempt(picture, curves.precision_recall_picture, rows, picture)
    page = Path(folder, 'report.html')
    if attempt(page, report, page, tables, examples, facts):
        print(f'{page}: open it in a browser')


def report(path, tables, examples, facts):
    """Write one HTML file that holds all it needs: tables, pictures, sounds.

    tables: {task: (rows, paper)}, as task_tables takes them. facts: {name: str}, at the top. Each
    sound gets an equal share of SOUND_SECONDS.
    """
    [scale] = heat_colours(np.linspace(0, 1, 17)[None])         # (17, 3)
    template = Path(__file__).with_name('report_template.html').read_text(encoding='utf-8')
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template)
    write_file(path, page.render(
        facts=facts, tables=tables, examples=examples, scale=scale, grids=grids,
        task_names=TASK_NAMES, benchmark_names=BENCHMARK_NAMES, cell_text=cell_text, cards=cards,
        name_of=name_of, facts_of=facts_of, tiles=tiles, overlay=overlay, jpeg=jpeg, sound=sound,
        longest=SOUND_SECONDS / max(1, len(examples))))


def jpeg(picture):
    """(H, W, 3) uint8 -> JPEG of at most 448 x 224 as a data URI"""
    small = Image.fromarray(picture)
    small.thumbnail((448, 224))
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=85)
    return data_uri('image/jpeg', file)


def sound(wav, longest):
    """-> 16-bit mono WAV of at most `longest` seconds as a data URI, [what was changed]"""
    notes = []
    heard = np.asarray(wav, np.float64)[:max(1, round(longest * SAMPLE_RATE))]
    if len(heard) < len(wav):
        notes.append(f'the first {len(heard) / SAMPLE_RATE:.1f} of {len(wav) / SAMPLE_RATE:.1f} s')
    power = np.sqrt(np.mean(heard ** 2))
    if power > LOUD:                                    # full-scale noise hurts the ears
        heard = heard * SOFTENED / power
        notes.append(f'played at {SOFTENED / power:.0%} of its level')
    file = io.BytesIO()
    samples = (heard * 32768).round().clip(-32768, 32767).astype(np.int16)
    soundfile.write(file, samples, SAMPLE_RATE, format='WAV')
    return data_uri('audio/wav', file), notes


def data_uri(kind, file):
    """A file in memory as text, which an HTML page can hold."""
    return f'data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}'

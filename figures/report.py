"""Examples of section 4.2: contact sheets like Figures 5, 6, 8, 9 and 10; report.html with sound.

    example_sheet('interactive', 'is4', examples, 'interactive_is4.png')
    report('report.html', {'single': (rows, 'av')}, examples, {'preset': 'paper'})

An example is a sample of data.Benchmark as examples.py completes it, a dict of
    task, benchmark, id; group: of the frame; label: str, None, or one per source of a mixture
    condition: of CONDITIONS in AVSBench-Robust, 'sounding' or 'silent' in the extended sets
    score: the IoU; confidence; oracle: the text oracle's heatmap (h, w); each may be None
    frame (H, W, 3) uint8; truth, heat (h, w), of a mixture lists of two
    beside: {'by <another method>': its heat and score, or None without a map of the sample}
    wav (samples,) in -1..1; rate
"""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import soundfile
from PIL import Image

from figures.pictures import contact_sheet, ground_truth_tile, heat_colours, overlay
from figures.tables import BENCHMARK_NAMES, CONDITIONS, TASK_NAMES, cell_text, grids
from launch import write_file

LOUD = 0.35                 # root mean square of a sound; a louder one is played at SOFTENED
SOFTENED = 0.1
SOUND_SECONDS = 240         # in one report, each 43 KB (16 kHz, 16 bit, base64)


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
    truth = example['truth']
    heats = {'overlay': example['heat']}
    for row, other in example['beside'].items():
        heats[row] = other and other['heat']
    pictures = {}
    if example['task'] == 'multisource':                    # Figure 10
        for k in (0, 1):
            pictures[f'ground truth {k + 1}'] = ground_truth_tile(frame, truth[k])
            for caption, heat in heats.items():
                pictures[f'{caption} {k + 1}'] = None if heat is None else overlay(frame, heat[k])
        return pictures
    if not example['benchmark'].startswith('robust'):       # Figure 8 has the overlay alone
        pictures['ground truth'] = ground_truth_tile(frame, truth)
        if example['task'] != 'interactive':                # Figure 9
            pictures['heatmap'] = heat_colours(example['heat'])
    for caption, heat in heats.items():
        pictures[caption] = None if heat is None else overlay(frame, heat)
    return pictures


def name_of(example):
    """What labels an example: its class name, of a mixture both, or its id."""
    name = example['label'] or example['id']
    return name if isinstance(name, str) else ' + '.join(name)


def facts_of(example):
    """-> ['sounding', 'IoU 0.81', 'confidence 0.68', 'by FNAC 0.47'], some may be missing"""
    facts = [example['condition']] if example['condition'] in ('sounding', 'silent') else []
    scores = {'IoU': example['score'], 'confidence': example['confidence']}
    for row, other in example['beside'].items():            # Figure 5 has the IoU of each
        scores[row] = other and other['score']
    return facts + [f'{word} {value:.2f}' for word, value in scores.items() if value is not None]


def jpeg(picture):
    """(H, W, 3) uint8 -> JPEG of at most 448 x 224 as a data URI"""
    small = Image.fromarray(picture)
    small.thumbnail((448, 224))
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=85)
    return data_uri('image/jpeg', file)


def sound(wav, rate, longest):
    """-> 16-bit mono WAV of at most `longest` seconds as a data URI, [what was changed]"""
    notes = []
    heard = np.asarray(wav, np.float64)[:max(1, round(longest * rate))]
    if len(heard) < len(wav):
        notes.append(f'the first {len(heard) / rate:.1f} of {len(wav) / rate:.1f} s')
    power = np.sqrt(np.mean(heard ** 2))
    if power > LOUD:                                    # full-scale noise hurts the ears
        heard = heard * SOFTENED / power
        notes.append(f'played at {SOFTENED / power:.0%} of its level')
    file = io.BytesIO()
    samples = (heard * 32768).round().clip(-32768, 32767).astype(np.int16)
    soundfile.write(file, samples, rate, format='WAV')
    return data_uri('audio/wav', file), notes


def data_uri(kind, file):
    """A file in memory as text, which an HTML page can hold."""
    return f'data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}'

"""Examples of section 4.2 to look at and to listen to: Figures 5, 6, 8, 9 and 10 as contact sheets, and report.html.

    example_sheet('interactive', 'is4', examples, 'interactive_is4.png')
    report('report.html', 'My run', {'single': (ours, oracle, 'av')}, examples, {'checkpoint': 'last.pt'})

An example is one sample as evaluate.py collects it, a dict of
    task, benchmark, id; group: of the frame it shares with others; label: str, None, or one per source
    condition: of CONDITIONS in AVSBench-Robust, 'sounding' or 'silent' in the extended sets, else 'positive'
    frame (H, W, 3) uint8; truth (h, w) or None; heat (h, w) in 0..1; truth and heat are lists of two for a mixture
    oracle: the text oracle's heat, or None; wav (samples,) in -1..1 or None, rate; score: IoU 0..1; confidence
"""

import base64
import html
import io
import math
import string
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from figures.pictures import (TURBO, checked_rgb, contact_sheet, ground_truth_tile, heat_colours,
                              overlay, write_file)
from figures.tables import BENCHMARK_NAMES, CONDITIONS, TABLES, TASK_NAMES, cell_text, grids

LOUD, SOFTENED = 0.35, 0.1      # root mean square: above the first (AVSBench-Robust's noise: 0.58) played at the second
SOUND_SECONDS = 240             # of sound in one report: 16 kHz, 16 bit and base64 make 43 KB a second


# ------------------------------------------------------------------------------------------------
# From examples to cards: which pictures and sounds stand together
# ------------------------------------------------------------------------------------------------

def cards(examples):
    """Yield (frame, parts) per picture: the sounds of one frame together in Figures 8 and 9, else a sound each.

    parts: list of (heading, name, facts, {caption: picture}, example), one per sound. AVSBench-Robust always has the
    four of CONDITIONS, an example of None standing for the absent; another raises ValueError.
    """
    groups = {}
    for i, example in enumerate(examples):
        shared = example['task'] == 'interactive' or example['benchmark'].startswith('robust')
        groups.setdefault((example['benchmark'], example['group']) if shared else i, []).append(example)
    for group in groups.values():
        frame, headings, wanted = group[0]['frame'], [''], None
        if group[0]['benchmark'].startswith('robust'):
            by_condition = {example['condition']: example for example in group}
            if strange := by_condition.keys() - set(CONDITIONS):
                raise ValueError(f'AVSBench-Robust has no condition {sorted(map(str, strange))}, only {CONDITIONS}.')
            group = [by_condition.get(condition) for condition in CONDITIONS]
            headings, wanted = CONDITIONS, ('overlay',)
        elif group[0]['task'] == 'interactive':
            headings, wanted = [f'sound {k + 1}' for k in range(len(group))], ('ground truth', 'overlay')
        parts = []
        for heading, example in zip(headings, group):
            pictures = tiles(example) if example else {}
            pictures = {caption: pictures.get(caption) for caption in wanted or pictures}
            parts.append((heading, *(_said(example) if example else ('', [])), pictures, example))
        yield frame, parts


def tiles(example):
    """The pictures of an example beside its frame, in the order of Figure 6: {caption: (H, W, 3) uint8, or None}."""
    frame, truth, heat = example['frame'], example['truth'], example['heat']
    if isinstance(heat, list):                                     # Figure 10: a map per source, over two frames
        pairs = [(ground_truth_tile(frame, t), overlay(frame, h)) for t, h in zip(truth, heat)]
        return {f'{what} {k}': picture for k, pair in enumerate(pairs, 1)
                for what, picture in zip(('ground truth', 'heatmap'), pair)}
    return {'ground truth': None if truth is None else ground_truth_tile(frame, truth),
            'heatmap': heat_colours(heat), 'overlay': overlay(frame, heat)}


def _said(example):
    """The name of an example, and what is known of it: ('dog', ['sounding', 'IoU 0.81'])."""
    label = example['label']
    name = ' + '.join(label) if isinstance(label, (list, tuple)) else label
    facts = [f'{word} {example[key]:.2f}' for word, key in (('IoU', 'score'), ('confidence', 'confidence'))
             if example.get(key) is not None]
    condition = example.get('condition')                            # outside the robustness task all are positive
    return name or example['id'], facts if condition in (None, 'positive') else [condition, *facts]


def example_sheet(task, benchmark, examples, path):
    """The contact sheet in the paper's habit for the task, written to `path` (.png, .jpg). Returns the path.

    A row is: single, segmentation, extended sets: frame | ground truth | heatmap | overlay (Figures 5 and 6).
    AVSBench-Robust: frame | overlay under each of CONDITIONS (Figure 8). Interactive: frame | for each sound, ground
    truth, overlay (Figure 9). Mixtures: both frames | for each source, ground truth, heatmap (Figure 10).
    Raises ValueError where there is no example.
    """
    rows, labels, columns = [], [], []
    for frame, parts in cards(examples):
        rows.append([frame, *(picture for *_, pictures, _ in parts for picture in pictures.values())])
        headings = [heading if heading in CONDITIONS else f'{heading} {caption}'.strip()
                    for heading, _, _, pictures, _ in parts for caption in pictures]
        columns = max(columns, ['frame', *headings], key=len)      # VPO-MS has frames of one, two, three or five sounds
        told = [part for part in parts if part[-1]]
        told = told[:1] if benchmark.startswith('robust') else told    # the sounding one names the row
        labels.append('\n'.join([' / '.join(name for _, name, *_ in told),
                                 *(fact for heading, _, facts, *_ in told for fact in facts if fact != heading)]))
    return contact_sheet(rows, path, columns, labels, tile=192 if task == 'multisource' else 128,
                         title=f'{TASK_NAMES[task]}: {BENCHMARK_NAMES[benchmark]}')


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------

def report(path, title, tables, examples, facts, seconds=SOUND_SECONDS):
    """One HTML file that needs no other, no server and no network: tables, pictures, sounds. Returns its path.

    tables: {task: (ours, oracle, paper)}, the arguments of task_tables. examples: list of dicts as above. facts:
    {name: str}, printed at the top. seconds: of sound in all; if the examples hold more, each is cut to an equal
    share, and the page says so, as it does of noise that is played softer. Raises OSError where it cannot be written,
    ValueError for a task that the paper does not have.
    """
    if strange := {*tables, *(example['task'] for example in examples)} - TABLES.keys():
        raise ValueError(f'The paper has the tasks {", ".join(TABLES)}, not {sorted(strange)[0][:40]!r}.')
    text, body, links = lambda value: html.escape(str(value)), [], []
    longest = seconds / max(1, sum(example['wav'] is not None for example in examples))
    for task in TABLES:
        mine = [example for example in examples if example['task'] == task]
        if task not in tables and not mine:
            continue
        links.append(f'<a href="#{task}">{TASK_NAMES[task]}</a>')
        body.append(f'<section id="{task}"><h2>{TASK_NAMES[task]}</h2>')
        for heading, columns, decimals, rows in grids(task, *tables[task]) if task in tables else ():
            head = ''.join(f'<th>{text(column)}</th>' for column in columns)
            lines = [''.join(f'<td>{text(cell_text(value, places))}</td>' for value, places in zip(row, decimals))
                     for row in rows]
            lines = [f'<tr class="{"ours" if row[1] == "ours" else "other"}">{line}</tr>' for row, line in zip(rows, lines)]
            body.append(f'<div class="scroll"><table><caption>{text(heading)}</caption><thead><tr>{head}</tr></thead>'
                        f'<tbody>{"".join(lines)}</tbody></table></div>')
        for benchmark in dict.fromkeys(example['benchmark'] for example in mine):
            body.append(f'<h3>{BENCHMARK_NAMES[benchmark]}</h3>')
            body += [_html_card(*card, longest) for card in cards([e for e in mine if e['benchmark'] == benchmark])]
        body.append('</section>')
    page = string.Template(Path(__file__).with_name('report_template.html').read_text(encoding='utf-8')).substitute(
        title=text(title), links='\n'.join(links), body='\n'.join(body),
        facts=''.join(f'<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>' for name, value in facts.items()),
        colours=', '.join('rgb({:.0f} {:.0f} {:.0f})'.format(*colour) for colour in TURBO))
    write_file(Path(path), lambda file: file.write(page.encode()))
    return Path(path)


def _html_card(frame, parts, longest):
    """One frame and its sounds. While a sound plays, the page shows its overlay in the frame's place."""
    sounds = []
    for heading, name, facts, pictures, example in parts:
        if example is None:
            continue
        if example.get('oracle') is not None and 'heatmap' in pictures:
            pictures = {**pictures, 'text oracle': overlay(frame, example['oracle'])}
        figures = ''.join(f'<figure><img class="{caption.split()[0]}" src="{_picture(picture)}" alt="{caption}">'
                          f'<figcaption>{caption}</figcaption></figure>'
                          for caption, picture in pictures.items() if picture is not None)
        chips = ''.join(f'<span>{html.escape(fact)}</span>' for fact in facts if fact != heading)
        told = f'<small>{heading}</small> ' if heading else ''
        sounds.append(f'<div class="sound"><h4>{told}{html.escape(name)}</h4><p class="chips">{chips}</p>'
                      f'<div class="pictures">{figures}</div>{_player(example, longest)}</div>')
    kind = f'{"wide" if frame.shape[1] > 1.5 * frame.shape[0] else "square"} {"many" if len(parts) > 1 else "one"}'
    return (f'<article class="{kind}"><figure class="stage"><img src="{_picture(frame)}" alt="frame"><figcaption>frame'
            f'</figcaption></figure><div class="sounds">{"".join(sounds)}</div></article>')


def _picture(picture, most=(448, 224)):
    """(H, W, 3) uint8 -> data URI of a JPEG, at most 448 x 224 pixels."""
    small, file = Image.fromarray(checked_rgb(picture)), io.BytesIO()
    small.thumbnail(most)
    small.save(file, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


def _player(example, longest):
    """An <audio> with the sound as 16-bit mono WAV, at most `longest` seconds, and a note on what was changed."""
    if example['wav'] is None or len(example['wav']) == 0:
        return '<p class="note">no sound on file</p>'
    wav, rate = np.asarray(example['wav'], np.float64), example['rate']
    heard, notes = wav[:max(1, round(longest * rate))], []
    if len(heard) < len(wav):
        notes.append(f'the first {len(heard) / rate:.1f} of {len(wav) / rate:.1f} s')
    power = math.sqrt(np.mean(heard ** 2))
    if power > LOUD:                                               # nobody's ears shall be hurt by full-scale noise
        heard = heard * SOFTENED / power
        notes.append(f'played at {SOFTENED / power:.0%} of its level')
    file = io.BytesIO()
    with wave.open(file, 'wb') as out:
        out.setparams((1, 2, rate, 0, 'NONE', ''))
        out.writeframes((heard * 32768).round().clip(-32768, 32767).astype('<i2').tobytes())
    note = f'<p class="note">{"; ".join(notes)}</p>' if notes else ''
    return (f'<audio controls controlslist="nodownload noplaybackrate" preload="metadata" src="data:audio/wav;base64,'
            f'{base64.b64encode(file.getvalue()).decode()}"></audio>{note}')

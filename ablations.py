"""The ablations of section 4.3: Tables 9 to 15, one command each; TABLES holds their rows.

    python ablations.py --table 13                          # one seed, in the miniature
    python ablations.py --table 9 --seeds 0 1 2 --jobs 2    # mean and deviation, two at a time
    python ablations.py --table 15 --dry-run                # prints the commands, runs nothing
    python ablations.py --table 11 --preset paper -- --precision bf16    # more for train.py

A row of a table is a model trained with other options (train.py) and scored on the benchmarks of
the paper's columns (evaluate.py). Each run has a folder below --out, named after its options, so
tables share their default row; a finished run is not repeated, an interrupted one is resumed. A
line is printed when a training or an evaluation begins; it names the log with its output.
"""

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import torch
from filelock import FileLock, Timeout

from figures.tables import BENCHMARK_NAMES, paper_scores, table
from launch import between, check_outputs, run_script, sentence_for, some_path

ROOT = Path(__file__).parent
AV = ['--variant', 'av']
AV_LLM = ['--variant', 'av_llm']

# {table: {row as the paper prints it: options of train.py}}
TABLES = {
    9: {    # 4.3.1: the terms of Eq. 5; the letters are the paper's
        'A': [*AV, '--lambda-f', '0', '--lambda-reg', '0'],         # L_ACL_I
        'B': [*AV, '--lambda-i', '0', '--lambda-reg', '0'],         # L_ACL_F
        'C': [*AV, '--lambda-reg', '0'],                            # L_ACL_I + L_ACL_F
        'D': [*AV, '--lambda-f', '0'],                              # L_ACL_I + L_Reg
        'E': [*AV, '--lambda-i', '0'],                              # L_ACL_F + L_Reg
        'F': AV},                                                   # all three
    10: {   # 4.3.2: which captions the language model is given
        'av': AV,
        'audio': [*AV_LLM, '--captions-from', 'audio'],
        'vision': [*AV_LLM, '--captions-from', 'image'],
        'audio_vision': AV_LLM},
    11: {'1': AV, **{k: [*AV, '--audio-tokens', k] for k in ('2', '4', '8')}},      # 4.3.3
    12: {   # 4.3.4: the prompt before the audio token
        'A photo of a <*>': AV,
        **{prompt: [*AV, '--prompt', prompt]
           for prompt in ('A photograph of a <*>', 'An image of a <*>', '<*>')}},
    13: {   # 4.3.5 to 4.3.7: the mask of L_ACL_I, then that of L_ACL_F
        'hard image': [*AV, '--feature-mask', 'image'],                             # M_I, M_I
        'feature feature': [*AV, '--image-mask', 'feature'],                        # M_F, M_F
        'soft feature': [*AV, '--image-mask', 'soft'],                  # sigma(M_G), M_F
        'hard feature': AV},                                                        # M_I, M_F
    14: {   # 4.3.8: the area priors p+ and p- of Eq. 4
        '0.2 0.0': [*AV, '--p-pos', '0.2'], '0.4 0.0': AV,
        '0.6 0.0': [*AV, '--p-pos', '0.6'], '0.4 0.2': [*AV, '--p-neg', '0.2']},
    15: {   # 4.3.9: lambda of L_ACL_C in Eq. 7
        '0.0': AV, **{k: [*AV_LLM, '--lambda-c', k] for k in ('0.01', '0.1')},
        '1': AV_LLM, **{k: [*AV_LLM, '--lambda-c', k] for k in ('10', '100')}}}

# what the rows of a table are
ROWS = {9: 'terms of Eq. 5', 10: 'captions', 11: 'audio tokens', 12: 'prompts',
        13: 'masks of L_ACL_I and L_ACL_F', 14: 'p+ and p-', 15: 'lambda of L_ACL_C'}
# columns that the paper prints: (task, benchmark, metric)
VGGSS = [('single', 'vggss', 'cIoU'), ('single', 'vggss', 'AUC')]
USUAL = [*VGGSS, ('segmentation', 'avs_s4', 'mIoU'), ('segmentation', 'avs_s4', 'F'),
         ('robustness', 'ext_vggss', 'AP'), ('robustness', 'ext_vggss', 'max_F1')]
OF_TABLE_14 = [*VGGSS, ('single', 'flickr', 'cIoU'), ('single', 'flickr', 'AUC'),
               ('robustness', 'ext_flickr', 'AP'), ('robustness', 'ext_flickr', 'max_F1')]
SCORED = ['vggss', 'flickr', 'avs_s4', 'ext_vggss', 'ext_flickr']       # for all of the tables
# options of train.py that evaluate.py needs too: a checkpoint does not hold CLIPSeg and BEATs
FOR_BOTH = ('--preset', '--data-root', '--clipseg', '--beats', '--device')


# ============ One run: train.py, then evaluate.py ============

running = set()                 # processes that run() has started
stopping = threading.Event()    # after Ctrl-C or SIGTERM: start no other


def folder_of(out, preset, options, seed):
    """The folder of a run, named after its options: runs/ablations/miniature/av-lambda-f-0-seed0"""
    _, variant, *others = options
    others = quote(' '.join(others), safe=' <*>')       # a/b, a_b and a-b are three names
    name = re.sub('[ <*>-]+', '-', variant.replace('_', '-') + ' ' + others).strip('-')
    return Path(out, preset, f'{name}-seed{seed}')


def commands_left(folder, options):
    """The commands that a run still needs: train.py and evaluate.py, evaluate.py alone, or none."""
    last = folder / 'last.pt'
    scored = folder / 'scores.json'
    score = ['evaluate.py', '--checkpoint', str(last), '--benchmarks', *SCORED,
             '--json', str(scored)]
    for option, value in zip(options, options[1:]):
        if option in FOR_BOTH:
            score += [option, value]
    if not (folder / 'summary.json').exists():          # train.py writes it at its end
        train = ['train.py', *options, '--out', str(folder)]
        if last.exists() or (folder / 'previous.pt').exists():
            train.append('--resume')
        return [train, score]
    retrained = last.exists() and scored.exists() and scored.stat().st_mtime < last.stat().st_mtime
    return [score] if retrained or not read_scores(folder) else []


def read_scores(folder):
    """Scores of a run, {task: {benchmark: {metric: value}}}; {}: absent, damaged or unfinished"""
    try:
        scores = json.loads((folder / 'scores.json').read_text(encoding='utf-8'))
        scored = set().union(*scores.values())      # evaluate.py writes after each benchmark
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return scores if scored >= set(SCORED) else {}


def run(folder, options, environment, label):
    """Train and score one run, as far as it is not done yet; the output goes to <folder>.log.

    environment: variables added to this process's. label: begins the line that says what runs.
    RuntimeError where a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f'{folder.name}.log')
    with acquire(folder.with_name(f'{folder.name}.lock')):      # of another ablations.py
        with acquire(folder / 'lock'):          # of a train.py that outlived its ablations.py
            pass
        commands = commands_left(folder, options)
        if not commands:
            print(f'{label}: {folder} is finished', flush=True)
        for script, *rest in commands:
            if stopping.is_set():
                raise RuntimeError('interrupted')
            print(f'{label}: {script}, whose output is in {log}', flush=True)
            with open(log, 'a', encoding='utf-8') as file:
                process = subprocess.Popen(
                    [sys.executable, ROOT / script, *rest], stdout=file,
                    stderr=subprocess.STDOUT, env=os.environ | environment)
                running.add(process)
                code = process.wait()
                running.discard(process)
            if code:
                words = log.read_text(encoding='utf-8', errors='replace').split()
                raise RuntimeError(f'{script} ended with {code} ({log}): {" ".join(words[-40:])}')


def acquire(path):
    """Take a lock file, for a with statement; wait, and say so, while another process holds it."""
    lock = FileLock(path)
    waits = False
    while not stopping.is_set():
        try:
            return lock.acquire(timeout=1)
        except Timeout:
            if not waits:
                print(f'{path}: another process works on this run; waiting until it ends',
                      flush=True)
            waits = True
    raise RuntimeError('interrupted')


def run_all(runs, jobs):
    """Run {folder: options}, `jobs` at a time; GPUs share them. -> {folder: why it failed}"""
    count = torch.cuda.device_count()
    free = [{}] * jobs                  # environments of the jobs that do not run
    if count > 1:                       # a scheduler may have given this process GPUs 2 and 3
        gpus = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))
        gpus = gpus.split(',')[:count]
        free = [{'CUDA_VISIBLE_DEVICES': gpus[job % count]} for job in range(jobs)]
    labels = {folder: f'run {k} of {len(runs)}' for k, folder in enumerate(runs, 1)}
    failed = {}
    stopping.clear()

    def run_one(folder):
        environment = free.pop()
        try:
            run(folder, runs[folder], environment, labels[folder])
        except (OSError, RuntimeError) as error:
            failed[folder] = sentence_for(error) or str(error)
        free.append(environment)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(run_one, runs))
        except BaseException:           # Ctrl-C: the runs have it too, save and end
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


# ============ The table ============

def mean_text(values):
    """'59.8 ± 1.2': mean and standard deviation; of one value '59.8', of none None."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{spread}'


def ablation_table(number, folders):
    """A table of section 4.3, each of our columns beside the paper's. folders: {row: its runs}"""
    columns = OF_TABLE_14 if number == 14 else USUAL
    printed = paper_scores([number])
    rows = []
    for name, of_seeds in folders.items():
        scores = [read_scores(folder) for folder in of_seeds]
        row = [name, shlex.join(TABLES[number][name])]
        for task, benchmark, metric in columns:
            ours = [one.get(task, {}).get(benchmark, {}).get(metric) for one in scores]
            row += [mean_text(ours), printed[task, benchmark, name][metric]]
        rows.append(row)
    headings = ['row', 'train.py']
    for _, benchmark, metric in columns:
        headings += [f'{BENCHMARK_NAMES[benchmark]} {metric.replace("_", "-")}', 'paper']
    return table(rows, headings)


# ============ The command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--table', type=int, choices=list(TABLES), required=True, help='of section 4.3')
    add('--seeds', type=between(int, 0), nargs='+', default=[0], help='one run each (default: 0)')
    add('--out', type=some_path, default='runs/ablations', help='default: runs/ablations')
    add('--preset', choices=['miniature', 'paper'], default='miniature')
    add('--data-root', type=some_path, help="default: the preset's")
    add('--jobs', type=between(int, 1), default=1,
        help='runs at a time; several GPUs share them (default: 1)')
    add('--dry-run', action='store_true', help='print the commands that are left, run nothing')
    add('more', nargs='*', metavar='-- OPTIONS', help='for each train.py')
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error('--seeds must be different numbers')
    given = args.more
    args.more = []
    for text in given:                          # --beats=FILE becomes --beats FILE
        args.more += text.split('=', 1) if text.startswith('--') else [text]
    for option in ('--out', '--seed', '--preset', '--data-root'):
        if option in args.more:
            parser.error(f'{option} goes before --, as an option of ablations.py')
    return args


def main(argv=None):
    args = parse_args(argv)
    shared = args.more
    if args.data_root:
        shared = [*shared, '--data-root', args.data_root]
    runs = {}                   # {folder: options of train.py}
    folders = {}                # {row: the folders of its seeds}
    for name, options in TABLES[args.table].items():
        options = [*options, *shared]
        folders[name] = [folder_of(args.out, args.preset, options, seed) for seed in args.seeds]
        for folder, seed in zip(folders[name], args.seeds):
            runs[folder] = [*options, '--seed', str(seed), '--preset', args.preset]
    if args.dry_run:
        for folder, options in runs.items():
            commands = commands_left(folder, options)
            if not commands:
                print(f'# {folder} is finished')
            for command in commands:
                print('python', shlex.join(command))
        return 0
    check_outputs([], [args.out])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = run_all(runs, args.jobs)
    print(f'\nTable {args.table} ({ROWS[args.table]}), {args.preset}, seeds '
          f'{" ".join(map(str, args.seeds))}')
    print(ablation_table(args.table, folders))
    for folder, reason in failed.items():
        print(f'ablations.py: {folder}: {reason}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    run_script('ablations.py', main, 'interrupted; the same command goes on')

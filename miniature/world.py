"""The miniature's world: drawn scenes in which one object sounds, in the real datasets' layout.

    python -m miniature.world                       # writes data/miniature, under a minute
    python -m miniature.world --seed 1 --out DIR    # another world of the same kind, for tuning

A training pair is a scene (miniature/scenes.py) and two seconds of the sound (miniature/sounds.py)
of one of its objects. data.py reads what is written as if it were the real data (section 4.1):
benchmarks/__init__.py lists the files of each test set, and miniature/benchmarks.py says what is
hard about it. Beside them stand

    vggsound/frames/<id>.jpg, audio/<id>.wav, train.csv, val.csv    the training pairs, id,label
    vggss/gt_masks/<id>.png, vggss_test.csv                         exact masks; id,label
    scenes.jsonl, world.json                                        what was drawn; all sizes

Everything follows from the seed.
"""

import argparse
import contextlib
import glob
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import types
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from miniature.benchmarks import write_annotations, write_sample

VERSION = 2         # raise it when the same seed no longer gives the same files
# Scenes; is4 gives two samples each, avs clips of five frames, vgg_duet pairs of vggss
SPLITS = {'train': 2400, 'val': 240, 'vggss': 300, 'is4': 240, 'ext_vggss': 300, 'flickr': 120,
          'ext_flickr': 120, 'vpo_ss': 120, 'vpo_ms': 80, 'avs_s4': 24, 'avs_ms3': 20,
          'ade20k': 120, 'vgg_instruments': 120, 'vgg_duet': 120}


# ------------------------------------------------------------------------------------------------
# Is the world there?
# ------------------------------------------------------------------------------------------------

def read_manifest(root):
    """What world.json says of the folder. None without one."""
    try:
        found = json.loads((root / 'world.json').read_text(encoding='utf-8'))
        return {name: found[name] for name in ('version', 'seed', 'splits', 'files')}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def file_sizes(root):
    """{path below root: bytes} of every file but the manifest."""
    files = (path for path in root.rglob('*') if path.is_file() and path.name != 'world.json')
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def ready(root, seed=0, splits=None):
    """Whether root holds this very world: version, seed, splits, and every file at full size.

    Files beside the world's own (captions, say) do not matter.
    """
    manifest = read_manifest(Path(root))
    wanted = (VERSION, seed, splits or SPLITS)
    if not manifest or (manifest['version'], manifest['seed'], manifest['splits']) != wanted:
        return False
    try:
        return all(os.path.getsize(os.path.join(root, name)) == size
                   for name, size in manifest['files'].items())
    except OSError:
        return False


def refuse_to_lose(root, seed):
    """ValueError where root holds files of others, or the world of another seed."""
    manifest = read_manifest(root) or {'files': {}, 'seed': seed}
    foreign = file_sizes(root).keys() - manifest['files'].keys()
    if not foreign and manifest['seed'] == seed:
        return
    held = f'{min(foreign)}, which' if foreign else f'the world of seed {manifest["seed"]}, and it'
    raise ValueError(
        f'{root} is not the complete world of seed {seed} and holds {held} would be lost: name '
        'another folder, move it away, or draw anew with python -m miniature.world --force')


# ------------------------------------------------------------------------------------------------
# Drawing it
# ------------------------------------------------------------------------------------------------

def build(root, seed=0, splits=None, processes=None, force=False):
    """Write the world to root unless it is there; a split that is not named is left out. -> Path

    A damaged world is drawn again. ValueError where root holds something that would be lost (force
    deletes it) and where a split has no such name; OSError where the world cannot be written.
    """
    root = Path(root)
    splits = splits or SPLITS
    if unknown := splits.keys() - SPLITS.keys():
        raise ValueError(f'the world has no split {min(unknown)!r}: choose from '
                         f'{", ".join(SPLITS)}')
    if root.is_file():
        raise ValueError(f'{root} is a file: name a folder')
    if not force and ready(root, seed, splits):
        return root
    place = Path(os.path.realpath(root))            # where a link leads
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place):
            if force or not ready(root, seed, splits):      # another process may have drawn it
                if root.exists() and not force:
                    refuse_to_lose(root, seed)
                draw(place, seed, splits, processes or usable_cores())
    except OSError as error:
        if not error.strerror:
            raise
        raise OSError(f'cannot draw the world in {root} ({error.strerror}): free some space or '
                      'name another folder') from None
    return root


@contextlib.contextmanager
def locked(place):
    """One process draws at a time; a second one waits, and finds the world that it wanted."""
    lock = FileLock(place.with_name(f'{place.name}.lock'))
    open(lock.lock_file, 'ab').close()      # an error where nothing can be written: FileLock waits
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f'another process is drawing {place.name}: waiting for it', file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def draw(place, seed, splits, processes):
    """The files are made in a folder beside `place`, which is renamed when it is complete."""
    for left in place.parent.glob(f'{glob.escape(place.name)}.partial-*'):
        shutil.rmtree(left, ignore_errors=True)                 # by a drawing that was killed
    partial = place.with_name(f'{place.name}.partial-{os.getpid()}')
    jobs = [(partial, split, index, seed) for split, count in splits.items()
            for index in range(count) if split != 'vgg_duet']
    try:
        written = in_parallel(write_sample, jobs, f'drawing {place.name}', processes)
        records = [r for records in written for r in records]
        write_annotations(partial, splits, seed, records)
        manifest = {'version': VERSION, 'seed': seed, 'splits': splits,
                    'files': file_sizes(partial)}
        (partial / 'world.json').write_text(json.dumps(manifest), encoding='utf-8')
        if place.exists():
            shutil.rmtree(place)
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def in_parallel(function, jobs, label, processes):
    """[function(job) for job in jobs], in several processes; OSError where one of them ends."""
    if processes == 1:
        return list(tqdm(map(function, jobs), label, len(jobs)))
    spawn = multiprocessing.get_context('spawn')        # the one way that every system has
    pool = ProcessPoolExecutor(processes, spawn, begin_process)
    try:
        with without_main_script():
            results = pool.map(function, jobs, chunksize=8)
        return list(tqdm(results, label, len(jobs)))
    except BrokenProcessPool:
        raise OSError(f'a process that was {label} has ended: free memory and start '
                      'again') from None
    finally:
        pool.shutdown(cancel_futures=True)


def begin_process():
    """The start of a drawing process: Ctrl-C is for its parent, and it ends when its parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):      # train.py blocks SIGTERM, by which the pool ends it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def without_main_script():
    """Processes that are started in it do not import the script that draws, and with it torch."""
    script = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = script


def usable_cores():
    """Cores that this process may use, eight at most: each costs a Python of its own."""
    if hasattr(os, 'sched_getaffinity'):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def main():
    from launch import between, some_path    # here, not above: the drawing processes need no torch
    parser = argparse.ArgumentParser('python -m miniature.world', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=some_path, default='data/miniature',
                        help='folder to write (default: data/miniature)')
    parser.add_argument('--seed', type=between(int, 0), default=0,
                        help='another seed is another world (default: 0)')
    parser.add_argument('--force', action='store_true',
                        help='draw it again even if it is there and complete')
    args = parser.parse_args()
    print(build(args.out, args.seed, force=args.force))


if __name__ == '__main__':
    from launch import run_script
    # not this copy of the file: the drawing processes know miniature.world, and no __main__
    from miniature import world
    run_script('miniature.world', world.main, 'interrupted; the same command draws the world anew')

"""The folder of a run: checkpoints that survive a crash, resuming from them, and never writing over another run;
and what SIGTERM and Ctrl-C do to it.

    last.pt, previous.pt    {'audio_proj', 'masker_i'} as in the released checkpoint, and what resuming needs
    log.jsonl, loss.png, before_after.png, summary.json      see train.py; summary.json marks a finished run
    last.damaged.pt         a last.pt that --resume could not use; the run went on from previous.pt
    lock                    held by the process that trains

A file is written beside its place, flushed, and renamed, so that whatever stops the program leaves a whole one.
"""

import contextlib
import fcntl
import io
import json
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from model import load_trained, read_checkpoint, trained_state
from processes import exit_now, gather_lists, rank_and_processes
from resumable import write_whole

LOG_EVERY = 10              # steps
RUN_FILES = ('last.pt', 'previous.pt', 'log.jsonl', 'summary.json', 'loss.png', 'before_after.png')

ADDED_LATER = {'negatives': 'local', 'accumulate': 1, 'lr_schedule': 'constant'}     # what runs did whose checkpoints do not say


# ------------------------------------------------------------------------------------------------
# Saving and resuming
# ------------------------------------------------------------------------------------------------

def random_states():
    """Where the random numbers of every process stand, by rank: its CPU's and, where there is one, its GPU's.

    A collective call: one process that does not make it leaves the others waiting.
    """
    return gather_lists([[torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]])


def save_checkpoint(folder, model, optimiser, scaler, args, state, random):
    """last.pt, written whole or not at all; the one before it stays as previous.pt. OSError names the good one left."""
    last, previous = folder / 'last.pt', folder / 'previous.pt'
    content = {**trained_state(model), 'prompt': args.prompt, 'audio_tokens': args.audio_tokens, 'preset': args.preset,
               'variant': args.variant, 'trainer': {**state, 'optimiser': optimiser.state_dict(),
                                                    'scaler': scaler.state_dict(), 'settings': settings(args),
                                                    'random': random}}
    memory = io.BytesIO()
    torch.save(content, memory)
    kept = f'{last} is the last good checkpoint' if last.exists() else 'there is no earlier checkpoint'
    mend = f'free some space and --resume; {kept}'
    if last.is_file():
        write_whole(previous, last.read_bytes(), mend)
    write_whole(last, memory.getvalue(), mend)
    forget_old(folder)


def settings(args):
    """What must be the same for a run to be continued."""
    names = ('preset variant seed batch_size lr weight_decay tau lambda_i lambda_f lambda_reg lambda_c answers '
             'captions_from same_answers p_pos p_neg area acl_f image_mask feature_mask audio_tokens prompt precision '
             'clipseg beats negatives accumulate lr_schedule').split()
    return {name: getattr(args, name) for name in names}


def resume(folder, model, optimiser, scaler, args):
    """Load last.pt, or previous.pt where last.pt is damaged. -> the trainer's state, None without.

    A last.pt that cannot be read now may be intact: OSError. A damaged one is kept under another
    name. Each process goes on with its own random numbers; a process that the run did not have
    before seeds its own.
    """
    last, previous, rank = folder / 'last.pt', folder / 'previous.pt', rank_and_processes()[0]
    if not last.exists() and not previous.exists():
        return None
    path = last
    try:
        saved = read_checkpoint(path)
    except (FileNotFoundError, ValueError):
        if rank == 0:
            print(f'{path} is missing or damaged; trying the one before it')
        try:
            saved = read_checkpoint(previous)
        except (FileNotFoundError, ValueError):
            raise ValueError(f'{path} is damaged and there is no good {previous}: put a copy of one in its place, or '
                             '--overwrite the run') from None
        path = previous
    trainer = saved.get('trainer')
    if not isinstance(trainer, dict) or not isinstance(trainer.get('settings'), dict):
        raise ValueError(f'{path} holds weights but no state of a training: it can be evaluated, not resumed')
    for name, now in settings(args).items():
        before = trainer['settings'].get(name, ADDED_LATER.get(name))
        if before != now and name == 'answers':
            raise ValueError(f'{path} was trained with other answers of the language model: give it the same --captions, or '
                             'choose another --out')
        if before != now:
            raise ValueError(f'{path} was trained with --{name.replace("_", "-")} {before}, not {now}: '
                             'resume with the same settings or choose another --out')
    load_trained(model, saved, path)
    try:
        optimiser.load_state_dict(trainer['optimiser'])
        scaler.load_state_dict(trainer['scaler'])
        random = trainer['random']
        random = [random] if isinstance(random[0], torch.Tensor) else random    # earlier runs kept the first process's alone
        counts = [trainer[name] for name in ('step', 'seconds', 'skipped')]
        if min(counts) < 0 or trainer['step'] % 1 or 'untrained' not in trainer:
            raise ValueError('not what save_checkpoint writes')
        torch.manual_seed(hash((args.seed, rank, trainer['step'])) % 2**63)
        if rank < len(random):
            cpu, *gpu = random[rank]
            torch.set_rng_state(cpu)
            if torch.cuda.is_available() and gpu:
                torch.cuda.set_rng_state(gpu[0])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError):
        raise ValueError(f'{path} holds no usable state of a training: rename it to fall back on '
                         'previous.pt') from None
    if path == previous and rank == 0:
        keep_damaged(last)
    return {k: v for k, v in trainer.items() if k not in ('optimiser', 'scaler', 'random', 'settings')}


def keep_damaged(last):
    """Rename a damaged last.pt, which the next save would copy over the good previous.pt."""
    number = 1
    kept = last.with_name('last.damaged.pt')
    while kept.exists():
        number += 1
        kept = last.with_name(f'last.damaged{number}.pt')
    if last.exists():
        os.replace(last, kept)
        print(f'the damaged {last.name} is kept as {kept}')


class Alarm:
    """Stops a training whose loss or gradients are not finite, by a ValueError.

    A step is looked at when the next one is on its way, so that nobody has to wait for a GPU; and before anything is
    saved or logged. The weights in memory are spoilt by then, those on the disk are not.
    """

    def __init__(self, args):
        self.last, self.pending = args.out / 'last.pt', None

    def set(self, values, ids, step):
        """values (n,): the loss and whatever else must be finite after this step; ids: the pairs it was taken on."""
        self.check()
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to('cpu', non_blocking=True)        # a copy that the host does not wait for
        if copied:
            copied.record()
        self.pending = values, ids, step, copied

    def check(self):
        """Look at the last step now. ValueError names it, its pairs and the last good checkpoint."""
        if self.pending:
            values, ids, step, copied = self.pending
            self.pending = None
            if copied:
                copied.synchronize()
            if not values.isfinite().all():
                raise ValueError(f'the loss is {values[0].item()} or a gradient is not finite at step {step} on the pairs '
                                 f'{", ".join(ids)}: lower --lr or look at these files; last good checkpoint: '
                                 f'{self.last if self.last.exists() else "none yet"}')


# ------------------------------------------------------------------------------------------------
# SIGTERM and Ctrl-C
# ------------------------------------------------------------------------------------------------

NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}


@contextlib.contextmanager
def asked_to_stop():
    """A list that SIGTERM and Ctrl-C fill with their numbers while the steps run. A second Ctrl-C breaks off, unsaved.

    The first must not: Python raises KeyboardInterrupt wherever it is, and in a destructor it goes unheard.
    """
    asked = []

    def note(number, frame):
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if rank_and_processes()[0] == 0:                # print may be in the middle of a line
                os.write(2, b'\ntrain.py: stopping after this step; Ctrl-C once more breaks it off\n')

    # a script's & starts programs deaf to Ctrl-C, and so they stay; in another thread than the main
    # one Python sets no handlers
    heard = NAMES if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in heard
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(args, step, number):
    """End the process after signal `number`, with what a shell reports of a program that it ended: 128 + number."""
    if rank_and_processes()[0] == 0:
        tqdm.write(f'train.py: stopped by {NAMES[number]}; step {step} is saved in {args.out / "last.pt"}, and the same command '
                   'with --resume goes on from there', file=sys.stderr)
    if dist.is_initialized():
        dist.barrier()                                      # the first one has saved by then
    exit_now(128 + number)


# ------------------------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------------------------

def claim_folder(args):
    """Make the run's folder, or refuse to write over what is in it. FileExistsError says how to go on.

    Returns an open file: while it is open, no other process may claim the folder. The lock goes with this process,
    however it ends, and unlike flock's is not inherited by its loading processes, which outlive a kill by seconds.
    """
    finished = (args.out / 'summary.json').exists()
    begun = any((args.out / name).exists() for name in ('last.pt', 'previous.pt'))
    if finished and not args.overwrite:
        raise FileExistsError(f'{args.out} holds a finished run: choose another --out, --overwrite it, or train it '
                              'longer by --resume --overwrite and more --epochs or --steps')
    if begun and not (args.resume or args.overwrite):
        raise FileExistsError(f'{args.out} holds an unfinished run: go on with --resume, or --overwrite it')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f'cannot make the folder {args.out} ({error.strerror}): choose another --out') from None
    try:
        lock = open(args.out / 'lock', 'w')
    except OSError as error:
        raise OSError(f'cannot write {args.out / "lock"} ({error.strerror}): choose another --out') from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise OSError(f'{args.out} is being written by another process: wait for it, or choose another --out') from None
    return lock


def set_aside(args):
    """--overwrite: rename the old run's files to *.old; they go when the new run has saved something of its own."""
    saved = any((args.out / name).exists() for name in ('last.pt', 'previous.pt'))
    for name in RUN_FILES if args.overwrite and not args.resume else ():
        # The older run's files stay where the run in this folder failed before it saved anything.
        if (args.out / name).exists() and (saved or not (args.out / f'{name}.old').exists()):
            os.replace(args.out / name, args.out / f'{name}.old')


def forget_old(folder):
    for name in RUN_FILES:
        (folder / f'{name}.old').unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# The log
# ------------------------------------------------------------------------------------------------

class Log:
    """log.jsonl: one object every LOG_EVERY steps. A resumed run first drops what lies beyond its checkpoint: step, and
    whether a validation there is still to come."""

    def __init__(self, path, step, unvalidated, alarm, enabled):
        self.path, self.alarm, self.enabled, self.since, self.steps = path, alarm, enabled, time.time(), 0
        if enabled and path.exists():
            kept = [line for line in path.read_text(errors='replace').splitlines()
                    if self.is_before(line, step, unvalidated)]
            write_whole(path, ''.join(line + '\n' for line in kept))

    @staticmethod
    def is_before(line, step, unvalidated):
        """Whether a line was written before `step` was saved. The torn last line of a killed run was not."""
        try:
            entry = json.loads(line)
            return entry['step'] < step or (entry['step'] == step and 'val_loss' in entry and not unvalidated)
        except (ValueError, TypeError, KeyError):
            return False

    def write(self, entry):
        if self.enabled:
            try:
                with open(self.path, 'a') as file:
                    file.write(json.dumps(entry) + '\n')
            except OSError as error:
                raise OSError(f'cannot write {self.path} ({error.strerror}): free some space; --resume goes on from the last '
                              'checkpoint') from None

    def step(self, step, epoch, loss, terms, out, model, args, bar, lr):
        self.steps += 1
        if not self.enabled or step % LOG_EVERY:
            return
        self.alarm.check()                                  # only numbers are logged
        B, pairs = len(out.areas), out.areas.numel()        # of this process's images
        positive = out.areas.diagonal(out.first).mean().item()
        negative = (out.areas.sum().item() - positive * B) / (pairs - B)
        entry = {'loss': loss.item(), **{k: v.item() for k, v in terms.items()}, 'area_pos': positive,
                 'area_neg': negative, 'w': model.masker_i.w.item(), 'b': model.masker_i.b.item()}
        now = time.time()
        speed = self.steps * args.batch_size * args.accumulate / (now - self.since)
        self.since, self.steps = now, 0
        self.write({'step': step, 'epoch': epoch, **entry, 'lr': lr, 'pairs_per_second': speed})
        bar.set_postfix({k: f'{entry[k]:.2f}' for k in entry if k not in ('w', 'b')})

"""A run: its folder, its checkpoints and the signals that stop it. Nothing of the method is here.

    run = Run(folder, resume, overwrite)            # the folder, locked; never another run's
    state = run.resume(model, optimiser, scaler, settings)
    with run.steps_from(step, seconds, pairs_per_step):         # signals wait for a step's end
        run.log(step, epoch, values)                            # a line of log.jsonl
        stop = run.save_if_due_or_asked(due, content)           # a signal's number, or 0

A folder holds last.pt and previous.pt, the checkpoint before it: {'audio_proj', 'masker_i'} as the
authors' checkpoint, and what resuming needs. No random state is saved, as every step seeds itself.
The other files are explained in train.py. `lock` is held by the process that trains.

train.py blocks SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 before any thread starts; one thread waits for
them, and the loop asks for them between two steps. So no handler ever interrupts a computation: on
x86, oneDNN below 3.11.2 computes with the stack pointer in the heap, which a handler would
overwrite.
"""

import _thread
import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from launch import agree, largest, rank_and_processes, read_weights, wait_for_all, write_file

LOG_EVERY = 10          # steps
LOCK_SECONDS = 10       # the worker processes of a killed run hold its lock for up to 5
# What last.pt holds of a training besides its settings, the optimiser and the scaler
STATE = {'step': int, 'last_step': int, 'seconds': float, 'skipped': int, 'untrained': dict | None}
RUN_FILES = ('last.pt', 'previous.pt', 'log.jsonl', 'summary.json', 'loss.png', 'before_after.png')


# ============ Signals ============

BLOCKED = {getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
           if hasattr(signal, name)}
asked = []                      # the signals that came during the steps
taking_steps = threading.Event()


def watch_signals():
    """Wait in a thread for the signals that train.py has blocked.

    During the steps they are noted for stop_asked, but Ctrl-C after any of them ends the process at
    once. Before and after the steps each ends it, Ctrl-C by KeyboardInterrupt.
    """
    if hasattr(signal, 'pthread_sigmask'):
        # Else it starts with the first pool of processes, and unblocks SIGINT and SIGTERM then
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        threading.Thread(target=wait_for_signals, daemon=True).start()


def wait_for_signals():
    while True:
        number = signal.sigwait(BLOCKED)
        if taking_steps.is_set() and not (asked and number == signal.SIGINT):
            asked.append(number)
            if rank_and_processes()[0] == 0:
                print('\ntrain.py: stopping after this step', file=sys.stderr, flush=True)
        elif number == signal.SIGINT and not taking_steps.is_set():
            _thread.interrupt_main()
        else:
            os._exit(128 + number)


def stop_asked():
    """The number of a signal that came during the steps to any process, or 0. A collective call."""
    return largest(max(asked, default=0))


def end_only_with_parent(worker):
    """worker_init_fn: only the parent, the process that trains, may end this worker process.

    Clusters send SIGTERM to all processes of a training at once, as a terminal sends Ctrl-C. But
    the parent needs its workers until the end of the step, after which it saves a checkpoint. So
    both signals stay blocked here, as in train.py; a thread waits for a SIGTERM from the parent.
    """
    if hasattr(signal, 'sigwaitinfo'):
        threading.Thread(target=wait_for_parent, daemon=True).start()
    elif hasattr(os, 'setsid'):         # macOS does not report the sender of a signal
        os.setsid()                     # out of the group that Ctrl-C and clusters send signals to
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def wait_for_parent():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


# ============ The folder of a run ============

class Run:
    """The folder of a run, locked until the process ends. Only the first process writes into it.

    FileExistsError where it holds another run, OSError where another process trains in it.
    """

    def __init__(self, folder, resume=False, overwrite=False, save_seconds=0.0):
        self.folder = Path(folder)
        self.last_pt = self.folder / 'last.pt'
        self.previous_pt = self.folder / 'previous.pt'
        self.log_file = self.folder / 'log.jsonl'
        self.starts_over = overwrite and not resume
        self.save_seconds = save_seconds        # least time between two checkpoints
        self.is_main = rank_and_processes()[0] == 0
        self.began = time.time()
        if not self.is_main:
            return
        if (self.folder / 'summary.json').exists() and not overwrite:
            raise FileExistsError(
                f'{self.folder} holds a finished run: choose another --out, --overwrite it, or '
                'train it longer by --resume --overwrite and more --epochs or --steps')
        # A lock without checkpoints: a run that failed before its first one, not worth keeping
        names = ('last.pt', 'previous.pt') if (self.folder / 'lock').exists() else RUN_FILES
        if any((self.folder / name).exists() for name in names) and not (resume or overwrite):
            raise FileExistsError(f'{self.folder} holds an unfinished run: go on with --resume, or '
                                  '--overwrite it')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / 'lock')
            self.lock.acquire(timeout=LOCK_SECONDS)
            for path in self.folder.glob('*.pt.partial*'):      # of processes killed in write_file
                path.unlink()
        except Timeout:
            raise OSError(f'{self.folder} is being written by another process: wait for it, or '
                          'choose another --out') from None
        except OSError as error:
            raise OSError(f'cannot write into the folder {self.folder} ({error.strerror}): choose '
                          'another --out') from None

    def say(self, sentence):
        if self.is_main:
            print(sentence)

    def seconds(self):
        """How long this run has taken, earlier starts included."""
        return time.time() - self.began

    # --- resuming

    def resume(self, model, optimiser, scaler, settings):
        """Load last.pt, or previous.pt where last.pt is damaged. -> the trainer's state, or None

        settings {name: value}: what must be as it was, or a ValueError names the option. A last.pt
        that cannot be read now may be intact: OSError. One that holds no training: ValueError. A
        damaged one is kept under another name.
        """
        state = None
        if self.last_pt.exists() or self.previous_pt.exists():
            state = self._load(model, optimiser, scaler, settings)
        step = state['step'] if state else 0
        found = f'step {step}' if state else 'no checkpoint'
        agree(step, f'process {rank_and_processes()[0]} finds {found} in {self.folder}, and not '
                    'all processes find the same: on several machines --out must lie on a disk '
                    'that they share')
        self.say(f'resuming at step {step}' if state else
                 f'nothing to resume in {self.folder}: starting afresh')
        return state

    def _load(self, model, optimiser, scaler, settings):
        """Load a folder's newest checkpoint that can be read. -> the trainer's state"""
        path = self.last_pt
        remedy = 'put a good copy in its place, or --overwrite the run'
        try:
            saved = read_weights(path, remedy)
        except (FileNotFoundError, ValueError):
            self.say(f'{path} is missing or damaged; trying the one before it')
            path = self.previous_pt
            saved = read_weights(path, remedy)
        try:
            trainer = saved['trainer']
            state = {name: trainer[name] for name in STATE}
            if not all(isinstance(state[name], kind) for name, kind in STATE.items()):
                raise TypeError
            check_settings(trainer['settings'], settings, path)
            model.audio_proj.load_state_dict(saved['audio_proj'])
            model.masker_i.load_state_dict(saved['masker_i'])
            own = optimiser.state_dict()['param_groups']    # `fused`: of this device
            moments = trainer['optimiser']['state']
            optimiser.load_state_dict({'state': moments, 'param_groups': own})
            scaler.load_state_dict(trainer['scaler'])
        except (KeyError, TypeError, AttributeError, RuntimeError):
            raise ValueError(f'{path} holds no usable state of a training: rename it to go on from '
                             'an earlier checkpoint, or --overwrite the run') from None
        if path == self.previous_pt and self.last_pt.exists() and self.is_main:
            kept = self.folder / 'last.damaged.pt'      # the next save would copy it to `previous`
            os.replace(self.last_pt, kept)
            self.say(f'the damaged last.pt is kept as {kept}')
        return state

    # --- the steps

    @contextlib.contextmanager
    def steps_from(self, step, seconds_before, pairs_per_step):
        """Around the loop: signals wait for the end of a step.

        step: the first to take. seconds_before: the time that earlier starts of the run took.
        Lines of the log after the checkpoint are deleted: those steps are taken again. --overwrite
        renames the old run's files to *.old until this run's first checkpoint.
        """
        self.began -= seconds_before
        self.saved_at = self.logged_at = time.time()
        self.logged_step = step
        self.pairs_per_step = pairs_per_step
        if self.is_main:
            self._set_aside()
            if self.log_file.exists():
                lines = self.log_file.read_text(encoding='utf-8', errors='replace').splitlines()
                kept = [line + '\n' for line in lines if is_before(line, step)]
                write_file(self.log_file, ''.join(kept))
        taking_steps.set()
        try:
            yield
        finally:
            taking_steps.clear()

    def _set_aside(self):
        """Rename to *.old what this run will replace: its summary, with --overwrite all files."""
        saved = self.last_pt.exists() or self.previous_pt.exists()
        for name in RUN_FILES if self.starts_over else ['summary.json']:
            path = self.folder / name
            old = self.folder / f'{name}.old'
            # After an --overwrite that ended before its first checkpoint, *.old are the old run's
            if path.exists() and (saved or not old.exists()):
                os.replace(path, old)

    def log(self, step, epoch, values, **more):
        """Append the means of `values`, a list of {name: scalar}, and `more`. -> the means"""
        now = time.time()
        pairs = (step + 1 - self.logged_step) * self.pairs_per_step
        speed = pairs / max(1e-9, now - self.logged_at)
        self.logged_at = now
        self.logged_step = step + 1
        means = {name: sum(part[name].item() for part in values) / len(values)
                 for name in values[0]}
        self.write({'step': step, 'epoch': epoch, **means, **more, 'pairs_per_second': speed})
        return means

    def write(self, entry):
        """Append a line to log.jsonl, in the first process. OSError names it."""
        if self.is_main:
            try:
                with open(self.log_file, 'a', encoding='utf-8') as file:
                    file.write(json.dumps(entry) + '\n')
            except OSError as error:
                raise OSError(f'cannot write {self.log_file} ({error.strerror}): free some space; '
                              '--resume goes on from the last checkpoint') from None

    def save_if_due_or_asked(self, due, content):
        """Save when `due`, after save_seconds, or when a signal asks to stop. content() -> a dict.

        -> the signal's number, or 0; the same in every process, as this is a collective call.
        """
        stop = stop_asked()
        if self.is_main and (due or stop or time.time() - self.saved_at > self.save_seconds):
            self.save(content())
            self.saved_at = time.time()
        return stop

    def save(self, content):
        """Write last.pt; the one before it stays as previous.pt. OSError names the one left."""
        memory = io.BytesIO()
        torch.save(content, memory)
        there = self.last_pt.is_file()
        kept = f'{self.last_pt} is the last good' if there else 'there is no earlier'
        remedy = f'free some space and --resume; {kept} checkpoint'
        if there:
            write_file(self.previous_pt, self.last_pt.read_bytes(), remedy)
        write_file(self.last_pt, memory.getvalue(), remedy)
        for name in RUN_FILES:
            (self.folder / f'{name}.old').unlink(missing_ok=True)

    def leave(self, stop, step):
        """Say which signal has stopped the run. -> the exit code that shells give to it"""
        if self.is_main:
            name = 'Ctrl-C' if stop == signal.SIGINT else signal.Signals(stop).name
            print(f'train.py: stopped by {name}; step {step} is saved in {self.last_pt}, and the '
                  'same command with --resume goes on from there', file=sys.stderr)
        wait_for_all()
        return 128 + stop


# Settings that are no options: the answers and the pairs, by a checksum of their contents
OF_DATA = {
    'answers': 'other answers of the language model: give it the same --captions',
    'pairs': 'other pairs: give it the same --data-root, with all of its files'}


def check_settings(before, settings, path):
    """ValueError where a setting is not what the run began with."""
    for name, now in settings.items():
        if before.get(name) != now:
            option = f'--{name.replace("_", "-")} {before.get(name)}, not {now}: resume with that'
            raise ValueError(f'{path} was trained with {OF_DATA.get(name, option)}, or choose '
                             'another --out')


def is_before(line, step):
    """Whether a line of the log is of the steps before `step`, or of the validation after them."""
    try:
        entry = json.loads(line)
        return entry['step'] < step or (entry['step'] == step and 'val_loss' in entry)
    except (ValueError, TypeError, KeyError):
        return False

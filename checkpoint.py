"""What keeps a script and a run alive. Nothing of the method is here.

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
import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path

os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')   # torch reads it when it is imported

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

LOG_EVERY = 10          # steps
LOCK_SECONDS = 10       # the worker processes of a killed run hold its lock for up to 5
RUN_FILES = ('last.pt', 'previous.pt', 'log.jsonl', 'summary.json', 'loss.png', 'before_after.png')


# ============ The command line ============

def some_path(text):
    """argparse's type of a path. An empty one, as an unset shell variable gives, is an error."""
    if not text.strip():
        raise argparse.ArgumentTypeError('the path is empty: name one, or leave the option out')
    return text


def given_options(parser, argv):
    """The options on the command line, not the defaults. -> {'batch_size': '--batch-size', ...}"""
    # argparse gives no default to a name that the namespace already has
    without_defaults = dict.fromkeys(vars(parser.parse_args(argv)))
    parsed = parser.parse_args(argv, argparse.Namespace(**without_defaults))
    given = [name for name, value in vars(parsed).items() if value is not None]
    return {name: '--' + name.replace('_', '-') for name in given}


def overwritten(outputs, inputs):
    """A sentence where an output is an input, lies in an input folder, or is another output.

    outputs, inputs: [(option, path or None)]; links are followed. -> None where nothing is lost
    """
    taken = [(what, os.path.realpath(path)) for what, path in inputs if path]
    for option, path in [(what, os.path.realpath(path)) for what, path in outputs if path]:
        for other, place in taken:
            both = os.path.exists(path) and os.path.exists(place)
            same = os.path.samefile(path, place) if both else path == place   # by a hard link too
            if same or path.startswith(os.path.join(place, '')):
                return f'{option} would overwrite {other}, {place}: name another file'
        taken.append((option, path))
    return None


def run_script(name, main, interrupted):
    """Run main() and end the process with the exit code that it returns (None: 0).

    What is wrong with files, options or memory becomes one sentence on stderr and exit code 1;
    ACL_DEBUG=1 shows where it happened. interrupted: what Ctrl-C says (exit code 130).
    """
    try:
        code = main() or 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        print(f'{name}: {interrupted}', file=sys.stderr)
    except Exception as problem:
        code = 1
        sentence = sentence_for(problem)
        if sentence and not os.environ.get('ACL_DEBUG'):
            print(f'{name}: {sentence}', file=sys.stderr)
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        # A thread of gloo may still hold a tensor of its last all-reduce. To free it while Python
        # shuts down aborts the process, or deadlocks with DistributedDataParallel's destructor.
        os._exit(code)
    sys.exit(code)


def sentence_for(problem):
    """One sentence for an error that a user can do something about, None for any other."""
    text = str(problem)
    full = "can't allocate memory" in text or 'MPS backend out of memory' in text
    if full or isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return 'the device has too little memory: lower --batch-size'
    if isinstance(problem, RuntimeError) and 'DataLoader worker' in text:
        reason = text.splitlines()[0].rstrip('. ')
        return (f'a loading process died ({reason}): free memory or lower --workers; --resume goes '
                'on')
    if isinstance(problem, RuntimeError) and 'gloo/transport' in text:
        return 'another process of this torchrun has ended: what it printed says why'
    if isinstance(problem, OSError) and problem.filename:
        return f'cannot use {problem.filename} ({problem.strerror}): name another place'
    return text if isinstance(problem, OSError | ValueError) else None


# ============ Devices, and the processes of one torchrun ============

def pick_device(name=None):
    """--device; by default CUDA where it is there, else the CPU. -> torch.device

    mps has to be asked for: no run has been compared with the CPU's there, and attention has had
    wrong results on mps in torch 2.11. ValueError where the device is not there.
    """
    there = {'cuda': torch.cuda.is_available(), 'cpu': True,
             'mps': torch.backends.mps.is_available()}
    if name and not there[name]:
        raise ValueError(f'--device {name} is not there: leave it out; this machine has '
                         f'{" and ".join(kind for kind in there if there[kind])}')
    return torch.device(name or ('cuda' if there['cuda'] else 'cpu'))


def start_processes(name=None):
    """Join torchrun's process group where there is one. -> the device of this process

    ValueError where there are fewer GPUs than processes, or several processes on mps.
    """
    device = pick_device(name)
    if device.type == 'cuda':
        local = int(os.environ.get('LOCAL_RANK', 0))
        count = torch.cuda.device_count()
        if local >= count:
            raise ValueError(f'this machine has {count} GPU(s), and each process needs its own: '
                             f'torchrun --nproc_per_node={count}, or --device cpu')
        device = torch.device('cuda', local)
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False     # convolutions in float32, not in TF32
    if device.type == 'mps' and 'RANK' in os.environ:
        raise ValueError('torch.distributed has no backend for mps: --device cpu')
    if 'RANK' in os.environ and not dist.is_initialized():
        backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
        # 12 hours: the others wait while the first process evaluates
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    return device


def rank_and_processes():
    """(rank, number of processes); (0, 1) before torch.distributed is started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all():
    """A barrier, where there is more than one process."""
    if dist.is_initialized():
        dist.barrier()


def gather_lists(mine):
    """The lists of all processes, joined in the order of ranks."""
    if not dist.is_initialized():
        return mine
    lists = [None] * dist.get_world_size()
    dist.all_gather_object(lists, mine)
    return [item for part in lists for item in part]


def largest(number):
    """The largest of the processes' numbers, for all of them. Over gloo, on GPUs too."""
    if not dist.is_initialized():
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def agree(number, sentence):
    """ValueError with this sentence, in every process, unless all have the same number.

    Otherwise processes that take different numbers of steps would deadlock.
    """
    if largest(number) != -largest(-number):
        raise ValueError(sentence)


# ============ Files and signals ============

def write_file(path, content, remedy='free some space or name another place'):
    """Write text or bytes atomically: the file is complete, or unchanged. OSError names it."""
    target = Path(os.path.realpath(path))           # renaming would replace a link, not its file
    if target.exists() and not target.is_file():
        raise OSError(f'cannot write {path}: it is no file; name another place')
    partial = target.with_name(f'{target.name}.partial{os.getpid()}')       # renamed when complete
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(content.encode('utf-8') if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f'cannot write {path} ({error.strerror or error}): {remedy}') from None


HELD = {getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
        if hasattr(signal, name)}
asked = []                      # the signals that came during the steps
taking_steps = threading.Event()


def watch_signals():
    """Wait in a thread for the signals HELD, which train.py has blocked.

    During the steps they are noted for stop_asked, but a second Ctrl-C ends the process at once.
    Before and after the steps they end it too, Ctrl-C by KeyboardInterrupt.
    """
    if hasattr(signal, 'pthread_sigmask'):
        # It starts with the first pool of processes, and then unblocks SIGINT and SIGTERM.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        threading.Thread(target=_watch, daemon=True).start()


def _watch():
    while True:
        number = signal.sigwait(HELD)
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


# ============ The folder of a run ============

class Run:
    """The folder of a run, locked until the process ends. Only the first process writes into it.

    FileExistsError where it holds another run, OSError where another process trains in it.
    """

    def __init__(self, folder, resume=False, overwrite=False, save_seconds=0.0):
        self.folder = Path(folder)
        self.last = self.folder / 'last.pt'
        self.previous = self.folder / 'previous.pt'
        self.log_file = self.folder / 'log.jsonl'
        self.starts_over = overwrite and not resume
        self.save_seconds = save_seconds        # least time between two checkpoints
        self.first = rank_and_processes()[0] == 0
        self.began = time.time()
        if not self.first:
            return
        if (self.folder / 'summary.json').exists() and not overwrite:
            raise FileExistsError(
                f'{self.folder} holds a finished run: choose another --out, --overwrite it, or '
                'train it longer by --resume --overwrite and more --epochs or --steps')
        # Other files beside a lock are of a run that failed before its first checkpoint
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
        if self.first:
            print(sentence)

    def seconds(self):
        """How long this run has taken, earlier starts included."""
        return time.time() - self.began

    # --- resuming

    def resume(self, model, optimiser, scaler, settings):
        """Load last.pt, or previous.pt where last.pt is damaged. -> the trainer's state, or None

        settings {name: value}: what must be as it was, or a ValueError names the option. A last.pt
        that cannot be read now may be intact: OSError. A damaged one is kept under another name.
        """
        state = None
        if self.last.exists() or self.previous.exists():
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
        path = self.last
        saved = read_or_none(path)
        if saved is None:
            self.say(f'{path} is missing or damaged; trying the one before it')
            path = self.previous
            saved = read_or_none(path)
        if saved is None:
            raise ValueError(f'{self.last} is damaged and there is no good {path}: put a copy of '
                             'one in its place, or --overwrite the run')
        trainer = saved.get('trainer')
        if not isinstance(trainer, dict) or not isinstance(trainer.get('settings'), dict):
            raise ValueError(f'{path} holds weights but no state of a training: it can be '
                             'evaluated, not resumed')
        check_settings(trainer['settings'], settings, path)
        try:
            model.audio_proj.load_state_dict(saved['audio_proj'])
            model.masker_i.load_state_dict(saved['masker_i'])
            fused = optimiser.param_groups[0]['fused']      # of this device, not the file's
            optimiser.load_state_dict(trainer['optimiser'])
            optimiser.param_groups[0]['fused'] = fused
            scaler.load_state_dict(trainer['scaler'])
            names = ('step', 'last_step', 'seconds', 'skipped', 'untrained')
            state = {name: trainer[name] for name in names}
            good = state['step'] >= 0 and state['step'] % 1 == 0 and state['seconds'] >= 0
            for parameter, moments in optimiser.state.items():
                good &= moments['exp_avg'].shape == moments['exp_avg_sq'].shape == parameter.shape
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            good = False
        if not good:
            raise ValueError(f'{path} holds no usable state of a training: rename it to fall back '
                             'on previous.pt')
        if path == self.previous and self.last.exists() and self.first:
            kept = self.folder / 'last.damaged.pt'      # the next save would copy it to `previous`
            os.replace(self.last, kept)
            print(f'the damaged last.pt is kept as {kept}')
        return state

    # --- the steps

    @contextlib.contextmanager
    def steps_from(self, step, seconds_before, pairs_per_step):
        """Around the loop: signals wait for the end of a step.

        Lines of the log after the checkpoint are deleted: those steps are taken again. --overwrite
        renames the old run's files to *.old until this run's first checkpoint.
        """
        self.began -= seconds_before
        self.saved_at = self.logged_at = time.time()
        self.logged_step = step
        self.pairs_per_step = pairs_per_step
        if self.first:
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
        """Rename the old run's files to *.old; of a resumed run, its summary."""
        saved = self.last.exists() or self.previous.exists()
        # A resumed run is no longer finished: its summary will not be that of last.pt
        for name in RUN_FILES if self.starts_over else ['summary.json']:
            path = self.folder / name
            old = self.folder / f'{name}.old'
            # Where a first attempt to start over saved nothing, *.old are still the old run's
            if path.exists() and (saved or not old.exists()):
                os.replace(path, old)

    def log(self, step, epoch, values, **more):
        """Append the means of `values`, a list of {name: scalar}, and `more`. -> the means"""
        now = time.time()
        pairs = (step + 1 - self.logged_step) * self.pairs_per_step
        speed = pairs / max(1e-9, now - self.logged_at)
        self.logged_at, self.logged_step = now, step + 1
        means = {name: sum(part[name].item() for part in values) / len(values)
                 for name in values[0]}
        self.write({'step': step, 'epoch': epoch, **means, **more, 'pairs_per_second': speed})
        return means

    def write(self, entry):
        """Append a line to log.jsonl, in the first process. OSError names it."""
        if self.first:
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
        if self.first and (due or stop or time.time() - self.saved_at > self.save_seconds):
            self.save(content())
            self.saved_at = time.time()
        return stop

    def save(self, content):
        """Write last.pt; the one before it stays as previous.pt. OSError names the one left."""
        memory = io.BytesIO()
        torch.save(content, memory)
        there = self.last.is_file()
        kept = f'{self.last} is the last good' if there else 'there is no earlier'
        remedy = f'free some space and --resume; {kept} checkpoint'
        if there:
            write_file(self.previous, self.last.read_bytes(), remedy)
        write_file(self.last, memory.getvalue(), remedy)
        for name in RUN_FILES:
            (self.folder / f'{name}.old').unlink(missing_ok=True)

    def leave(self, stop, step):
        """Say which signal has stopped the run. -> the exit code that shells give to it"""
        if self.first:
            name = 'Ctrl-C' if stop == signal.SIGINT else signal.Signals(stop).name
            print(f'train.py: stopped by {name}; step {step} is saved in {self.last}, and the same '
                  'command with --resume goes on from there', file=sys.stderr)
        wait_for_all()
        return 128 + stop


def read_or_none(path):
    """A checkpoint file as a dict; None where it is absent or damaged. OSError: unreadable now."""
    path = Path(path)
    if not path.is_file():                              # reading a pipe would wait for a writer
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f'cannot read {path} ({error.strerror}): it may be intact, so make it '
                      'readable and try again') from None
    try:
        saved = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    except Exception:           # a truncated zip, a foreign pickle, another program's file
        return None
    return saved if isinstance(saved, dict) and 'audio_proj' in saved else None


OF_DATA = {     # settings that are no options
    'answers': 'other answers of the language model: give it the same --captions',
    'pairs': 'other pairs: give it the same --data-root, with all of its files'}


def check_settings(before, settings, path):
    """ValueError where a setting is not what the run began with."""
    for name, now in settings.items():
        if before.get(name) != now and name in OF_DATA:
            raise ValueError(f'{path} was trained with {OF_DATA[name]}, or choose another --out')
        if before.get(name) != now:
            raise ValueError(
                f'{path} was trained with --{name.replace("_", "-")} {before.get(name)}, not '
                f'{now}: resume with the same settings or choose another --out')


def is_before(line, step):
    """Whether a line of the log is of the steps before `step`, or of the validation after them."""
    try:
        entry = json.loads(line)
        return entry['step'] < step or (entry['step'] == step and 'val_loss' in entry)
    except (ValueError, TypeError, KeyError):
        return False

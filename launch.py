"""What every script shares: options, one-sentence errors, devices, torchrun's processes, files.

    python train.py --variant av                                # (rank, processes) = (0, 1)
    torchrun --nproc_per_node=2 train.py --preset paper         # (0, 2) and (1, 2)

    run_script('x.py', main, interrupted)       # what goes wrong becomes one sentence
    device = start_processes()                  # CUDA or the CPU; joins torchrun's group
    check_outputs(files, folders)               # OSError before the work, not after it
    write_file(path, content)                   # complete, or unchanged
    saved = read_weights(path, remedy)          # a file of torch.save, without running code

Nothing of the method is here.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
import zipfile
from datetime import timedelta
from pathlib import Path

os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')   # torch reads it when it is imported

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

# ============ The command line ============

def some_path(text):
    """argparse's type of a path. An empty one, as an unset shell variable gives, is an error."""
    if not text.strip():
        raise argparse.ArgumentTypeError('the path is empty: name one, or leave the option out')
    return text


LARGEST = 2**63 - 1     # torch, and Python where it counts, take no larger int


def between(kind, least, most=LARGEST):
    """argparse's type of an int or float (kind) within these limits, both included."""
    def number(text):
        value = kind(text)
        if not least <= value <= most:                  # nan too
            both = most < LARGEST or value > most
            limits = f'{least:g} to {most:g}' if both else f'at least {least:g}'
            raise argparse.ArgumentTypeError(f'must be {limits}, not {text}')
        return value

    number.__name__ = kind.__name__                     # "invalid int value"
    return number


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
        print(end='', flush=True)   # raises if stdout is a full disk; nothing if it is closed
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
    with contextlib.suppress(OSError):          # the same error again
        print(end='', flush=True)               # os._exit would lose what is buffered
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
    if 'Too many open files' in text:       # an OSError, or torch's RuntimeError
        return ('too many open files: lower --workers, down to 0, or raise the limit by ulimit -n; '
                '--resume goes on')
    if isinstance(problem, RuntimeError) and 'shared memory' in text:
        return ('the loading processes find too little shared memory: enlarge /dev/shm (docker run '
                '--shm-size 8g) or lower --workers, down to 0; --resume goes on')
    if isinstance(problem, RuntimeError) and 'DataLoader worker' in text:
        reason = text.splitlines()[0].rstrip('. ')
        return (f'a loading process died ({reason}): free memory or lower --workers; --resume goes '
                'on')
    if isinstance(problem, RuntimeError) and 'gloo/transport' in text:
        return ('another process of this torchrun has ended, as what it printed says, or its '
                'machine is out of reach')
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


# ============ Files ============

def check_outputs(files, folders):
    """OSError for a place that cannot be written, before the work rather than after it."""
    places = [Path(folder) for folder in folders if folder]
    for path in [Path(file) for file in files if file]:
        if path.exists() and not path.is_file():
            raise OSError(f'cannot write {path}: it is no file; name another place')
        places.append(path.parent)
    for folder in places:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(f'cannot write into {folder} ({error.strerror}): name another '
                          'place') from None


def write_file(path, content, remedy='free some space or name another place', stamp=None):
    """Write text or bytes atomically: the file is complete, or unchanged. OSError names it.

    stamp: the time stamp it gets, that of the file it is made of (is_made).
    """
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
        if stamp is not None:
            os.utime(partial, ns=(stamp, stamp))
        os.replace(partial, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f'cannot write {path} ({error.strerror or error}): {remedy}') from None


def time_stamp(path):
    """When a file was last written, in ns; None where it is absent."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def is_made(path, stamp):
    """Whether write_file made this file of a source that had this time stamp, not None.

    Take the source's stamp before you read it: it may be replaced meanwhile. A newer file is not
    enough, as a source may be replaced by a file with an older time stamp.
    """
    if stamp is None:
        return False
    steps = (1, 100, 1000, 10**7, 10**9)        # in ns: disks may keep no finer times than these
    return time_stamp(path) in [stamp - stamp % step for step in steps]


def read_weights(path, remedy, mapped=False):
    """The dict in a file of torch.save: tensors and plain values. No code in it is ever run.

    The checksums cost one pass over the file. Torch's old format, which is no zip, has none.
    mapped: of a large file, take only those entries into memory that are used.
    FileNotFoundError: absent. OSError: unreadable now. ValueError: damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():                              # reading a pipe would wait for a writer
        problem = f'{path} is a folder, not a file' if path.is_dir() else f'there is no file {path}'
        raise FileNotFoundError(f'{problem}: {remedy}')
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(4) == b'PK\3\4'          # as torch.load tells
        mapped = mapped and is_zip
        content = path if mapped else io.BytesIO(path.read_bytes())
    except OSError as error:
        raise OSError(f'cannot read {path} ({error.strerror}): it may be intact, so make it '
                      'readable and try again') from None
    try:
        # torch.load compares no checksums: a hole of zeros would be weights
        if is_zip and zipfile.ZipFile(content).testzip():
            raise ValueError
        if not mapped:
            content.seek(0)
        saved = torch.load(content, map_location='cpu', weights_only=True, mmap=mapped)
    except Exception as error:      # torch.load has no exception of its own for damaged files
        if isinstance(error, MemoryError) or 'allocate memory' in str(error):
            raise
        reason = 'it is damaged or of another format'
        if 'global' in str(error).lower():          # a function or class that the pickle names
            reason = 'it holds Python objects that could run code, where only tensors are allowed'
        raise ValueError(f'{path} is no checkpoint ({reason}): {remedy}') from None
    if not isinstance(saved, dict):
        raise ValueError(f'{path} is no checkpoint (a {type(saved).__name__} where a dict of '
                         f'tensors is expected): {remedy}')
    return saved

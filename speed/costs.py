"""Measure code: seconds, passes of the vision encoder, bytes; a training step term by term."""

import contextlib
import ctypes
import platform
import re
import sys
import time
from pathlib import Path
from unittest import mock

import torch

import losses
import model as model_file


def now(device='cpu'):
    """A clock, in seconds. A GPU first finishes what it has been given."""
    if torch.device(device).type != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter()


def seconds_of(run, device='cpu'):
    """-> how long run() takes, what it returns"""
    began = now(device)
    result = run()
    return now(device) - began, result


def by_terms(step, read):
    """Take one bench.Step. -> {term: how much read() grows in it}

    read: a clock, or a counter of operations. The functions of the step are wrapped meanwhile. A
    term within another one counts for itself alone, so 'masks' is what else the forward pass does.
    """
    spent = {}

    @contextlib.contextmanager
    def term(name):
        others = sum(spent.values())
        before = read()
        yield
        inner = sum(spent.values()) - others
        spent[name] = spent.get(name, 0) + read() - before - inner

    model = step.model
    parts = ((step, 'forward', 'masks'), (model.beats, 'forward', 'BEATs'),
             (model, 'embed_audio', 'projection, text'), (model_file, 'encode_image', 'vision'),
             (model, 'ground', 'decoder'), (model_file, 'embed_image', 'masked vision'),
             (losses, 'loss_terms', 'losses'), (torch.Tensor, 'backward', 'backward'),
             (step.optimiser, 'step', 'optimiser'))
    with contextlib.ExitStack() as patches:
        for owner, attribute, name in parts:
            wrapped = term(name)(getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, wrapped))
        step()
    return spent


def count_vision(model, run):
    """How often the vision encoder runs in run(): each pass begins with its patch embedding."""
    calls = []
    embeddings = model.clipseg.clip.vision_model.embeddings
    with embeddings.register_forward_hook(lambda *_: calls.append(1)):
        run()
    return len(calls)


def matrix_product_rate(device, precision):
    """Operations a second of one large matrix product, the best of five: the machine's limit."""
    n = 8192 if torch.device(device).type == 'cuda' else 2048
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    x = torch.randn(n, n, device=device, dtype=dtype)
    x @ x                                                           # warms up
    return 2 * n**3 / min(seconds_of(lambda: x @ x, device)[0] for _ in range(5))


def keep_freed_memory():
    """Make glibc keep the memory of freed tensors, instead of returning it to the system."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)             # M_MMAP_MAX: large blocks from the heap too
        libc.mallopt(-1, -1)            # M_TRIM_THRESHOLD: the heap never shrinks


def peak_bytes(device):
    """The most memory this process has held (CUDA: its tensors); None on Windows and for mps."""
    kind = torch.device(device).type
    if kind == 'cuda':
        return torch.cuda.max_memory_allocated()
    if kind == 'cpu' and sys.platform == 'linux':       # where ru_maxrss begins at the parent's
        status = Path('/proc/self/status').read_text(encoding='utf-8')
        return 1024 * int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])
    if kind == 'cpu' and sys.platform == 'darwin':
        import resource                                 # here, not above: Windows has none
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def name_of(device):
    """The model name of the GPU or the processor."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    listed = Path('/proc/cpuinfo')                      # of Linux
    text = listed.read_text(encoding='utf-8') if listed.exists() else ''
    found = re.search('model name.*: (.*)', text)
    return found[1] if found else platform.processor() or platform.machine()

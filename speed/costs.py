"""What a piece of code costs: seconds, operations, passes of the vision encoder, bytes. bench.py asks.

A stage is a context manager under a name, stage('decoder'), so that one way of writing a step can be timed and counted.
Operations are multiplications and additions of matrix products and convolutions, read off the shapes by
torch.utils.flop_counter; what is elementwise, the filterbank, norms and softmax do not count.
"""

import contextlib
import ctypes
import platform
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

try:
    import resource
except ImportError:         # Windows
    resource = None

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4       # malloc.h


def settle(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def clock(device):
    """-> a stage(name) that measures seconds, and the dict {name: seconds} that it fills"""
    seconds = {}

    @contextlib.contextmanager
    def stage(name):
        settle(device)
        began = time.perf_counter()
        yield
        settle(device)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    return stage, seconds


def counter():
    """-> a stage(name) that counts operations, and the dict {name: operations} that it fills"""
    counts = {}

    @contextlib.contextmanager
    def stage(name):
        with FlopCounterMode(display=False) as mode:
            yield
        counts[name] = counts.get(name, 0) + mode.get_total_flops()
    return stage, counts


def count_vision(model, step):
    """How often the vision encoder runs in step(): every pass begins with its patch embedding."""
    calls = []
    hook = model.clipseg.clip.vision_model.embeddings.register_forward_hook(lambda *_: calls.append(1))
    step()
    hook.remove()
    return len(calls)


def matrix_product_rate(device, precision):
    """Operations a second of one large matrix product, the best of five: the limit that a step is held against."""
    n = 8192 if torch.device(device).type == 'cuda' else 2048
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == 'bf16' else torch.float32)
    best = float('inf')
    for _ in range(6):                                              # the first one warms up
        stage, seconds = clock(device)
        with stage('product'):
            x @ x
        best = min(best, seconds['product'])
    return 2 * n**3 / best


def keep_freed_memory():
    """Ask glibc not to hand freed tensors back to the system, so that no step pays for getting them again, page by page:
    at full size on a CPU that can be a third of it. The price: a process stays as large as it has ever been."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)                                 # large blocks come from the heap too
        libc.mallopt(M_TRIM_THRESHOLD, -1)                          # and the heap never shrinks


def peak_bytes(device):
    """The most memory this process has held (GPU: its tensors); None on Windows, where Python cannot ask."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated()
    status = Path('/proc/self/status')      # Linux lets ru_maxrss begin at the parent's peak: useless in a subprocess
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith('VmHWM'))
    # macOS counts it in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else None


def name_of(device):
    """What the device calls itself."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    listed = Path('/proc/cpuinfo')
    names = [line.split(':', 1)[1].strip() for line in listed.read_text().splitlines()
             if line.startswith('model name')] if listed.exists() else []
    return names[0] if names else platform.processor() or platform.machine()

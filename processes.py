"""The processes of one torchrun (section 4.1): who is who, what they ask one another, how one bears a signal, ends and is missed.

Sums and gathered tensors of the loss are negatives.py's and DistributedDataParallel's. What is asked here lies in main memory
and goes over gloo, on GPUs too, so that no answer has to be waited for on a GPU.
"""

import ctypes
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

PR_SET_PDEATHSIG = 1    # prctl.h
HANDLERS_STACK = ctypes.create_string_buffer(2**18)     # bytes; one handler takes up to 11,000, as the registers lie there too
GONE = 'Connection closed by peer', 'Connection reset', 'Broken pipe', 'remote process exited'   # gloo's words and NCCL's


def start_processes():
    """Join torchrun's process group where there is one. -> the device of this process"""
    survive_signals()
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get('LOCAL_RANK', 0))
    if cuda:
        torch.cuda.set_device(local_rank)
    if 'RANK' in os.environ:
        # the others wait while the first one evaluates, which takes longer than the default of ten minutes
        dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo', timeout=timedelta(hours=12))
        sys.excepthook = show_and_exit
        if sys.platform == 'linux' and 'TORCHELASTIC_RUN_ID' in os.environ:
            # torchrun ends its processes, but not when it is itself killed: then Linux sends the SIGTERM
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    return torch.device('cuda', local_rank) if cuda else torch.device('cpu')


class SignalStack(ctypes.Structure):
    """stack_t of signal.h on Linux: where signal handlers run."""
    _fields_ = [('start', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]


def survive_signals():
    """Keep SIGTERM, Ctrl-C and the SIGCHLD of a loading process from spoiling memory. Call it in the main thread, before
    anything is computed.

    A handler runs on the stack of the thread that it interrupts. While oneDNN computes BEATs's position convolution on an x86
    processor, that thread's stack pointer points into the heap, and the handler overwrites what lies there (oneDNN's issue
    4845, mended in its 3.11.2; PyTorch 2.11 has 3.10.2). So Python's handlers get a stack of their own in the main thread,
    and the OpenMP threads that compute beside it never take these signals.
    """
    if sys.platform == 'linux':
        stack = SignalStack(ctypes.addressof(HANDLERS_STACK), 0, len(HANDLERS_STACK))
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    torch.ones(2**20).sum()                                 # starts those threads, and they inherit what is blocked
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def rank_and_processes():
    """(rank, number of processes); (0, 1) before torch.distributed is started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard(dataset, batch_size):
    """This process's part of a benchmark, in order: consecutive whole batches, as one process would make them."""
    rank, processes = rank_and_processes()
    per_process = -(-len(dataset) // (batch_size * processes)) * batch_size
    return dataset.part(range(rank * per_process, min((rank + 1) * per_process, len(dataset))))


def gather_lists(mine):
    """The lists of all processes, joined in the order of ranks."""
    if not dist.is_initialized():
        return mine
    lists = [None] * dist.get_world_size()
    dist.all_gather_object(lists, mine)
    return [item for part in lists for item in part]


def largest(number):
    """The largest of the processes' numbers, for all of them."""
    if not dist.is_initialized():
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def smallest(number):
    """The smallest of the processes' numbers, for all of them."""
    return -largest(-number)


def agree(number, sentence):
    """ValueError with this sentence, in every process, unless all have one number: they might wait for one another for ever."""
    if largest(number) != smallest(number):
        raise ValueError(sentence)


def end(sentence, code=1):
    """Say it on stderr and end this process."""
    print(sentence, file=sys.stderr, flush=True)
    exit_now(code)


def exit_now(code):
    """End this process; one of several at once, without taking Python down.

    A thread of gloo may yet hold a tensor of its last sum or barrier, and gives it back to Python. While that is being taken
    down it aborts the process (told in PyTorch's pull request 179291); while the main thread takes DistributedDataParallel
    down, and so waits for that thread, neither gets any further, and the other processes wait with them.
    """
    if dist.is_initialized():
        sys.stdout.flush()                                  # which os._exit does not
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def show_and_exit(kind, problem, trace):
    """What becomes of an exception that nothing caught, in one of several processes."""
    sys.__excepthook__(kind, problem, trace)
    exit_now(1)


def lost_process(problem):
    """The sentence for a RuntimeError which says that another process has gone, or None for any other.

    gloo notices a process that has ended at once, at the latest when it is asked after a step. One that waits for NCCL
    itself is ended by torchrun, half a minute later.
    """
    (rank, processes), reason = rank_and_processes(), str(problem)
    if processes > 1 and any(word in reason for word in GONE):
        return (f'another of the {processes} processes has ended, so process {rank} stops too '
                f'({reason.splitlines()[0]}); what it said stands above')

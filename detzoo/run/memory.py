"""What the C library does with the memory that a program frees."""

import ctypes
import os
import pathlib
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = -1  # a threshold
ACCELERATORS = 'nvidia[0-9]*', 'kfd', 'accel*', 'vfio'  # in /dev: GPUs of NVIDIA and AMD, TPUs


def keep_memory() -> None:
    """Makes the process keep the memory that it frees, on a Linux machine that computes on its CPU.

    XLA takes the memory of a program's intermediate results anew for each call. glibc asks the kernel for so large a block, and
    gives it back afterwards, so that in the next call each page of 4 KB is a page fault again: 20 to 35 % of a detector's CPU
    time (docs/performance.md). Here one heap serves all threads, keeps what is freed, and is never left for blocks from mmap.

    Call it before JAX starts its threads: they stay with the heap that they begin with. Settings of malloc in the environment
    (MALLOC_..., GLIBC_TUNABLES) are left as they are.
    """
    chosen = any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ)
    if sys.platform != 'linux' or chosen or any(any(pathlib.Path('/dev').glob(name)) for name in ACCELERATORS):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, 'mallopt'):  # glibc, and no other C library
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_ARENA_MAX, 1)):
            library.mallopt(parameter, value)

"""What the C library does with memory. Other libraries than glibc are left as they are."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of malloc.h


def keep_freed_memory(keep: bool) -> None:
    """
    Sets whether glibc keeps freed memory for reuse, or returns blocks of 6 MB and more to the system at once. By
    default, glibc adapts this limit and keeps most blocks below 32 MiB.

    Measured with a base model on a CPU: keeping all freed memory makes a training step 1.2 times as fast, because no
    page has to be mapped again, and takes 4% more memory. With gradient checkpointing, returning memory saves 0.9 of
    3.2 GiB and takes a fifth more time.
    """
    if keep:
        _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})
    else:
        _set({_MMAP_THRESHOLD: 6_000_000})


def share_one_heap() -> None:
    """
    Has all threads allocate from one heap, for processes that read many clips. By default, glibc gives threads up to
    eight heaps for each core, and clips are decoded in threads of their own: each heap grows to what the largest clip
    took in it. Measured over 10,000 small clips: 0.4 instead of 4% more memory, in the same time.
    """
    _set({_ARENA_MAX: 1})


def _set(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in options.items():
            mallopt(option, value)

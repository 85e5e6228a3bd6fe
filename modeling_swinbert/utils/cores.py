"""The processor cores that this process may use."""

import os


def available_cores() -> list[int]:
    """Numbers of the cores that this process may run on; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))

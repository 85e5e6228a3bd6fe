"""Ray itself: connecting to a cluster, starting it on this machine, and what its machines have room for."""

import contextlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swinbert.utils.text import one_line

# Of Ray on this machine: rows of text pass through its object store, never frames.
_OBJECT_STORE_BYTES = 256 << 20
# Environment of Ray. C++ code reports to stderr what Ray mends by itself.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# They wait for the end of this process, or of Ray.
_reapers: list[subprocess.Popen] = []


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what of a machine each has."""

    number: int
    cores: int
    gpus: float = 0.0
    # Of Ray's accounts: less than a core where there are more workers than cores.
    cpus: float = 1.0


def import_ray() -> Any:
    """Imports Ray so that it is quiet. Raises `ModuleNotFoundError` where it is not installed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    return ray


def start_ray(address: str | None = None) -> bool:
    """
    Connects to a cluster or starts Ray on this machine, where it ends with this process; nothing, if Ray runs in this
    process already.

    Args:
        address: `auto` or `ray://HOST:PORT`; `None` for this machine.

    Returns:
        Whether it was started.

    Raises:
        ValueError: the cluster cannot be reached, or is of other versions.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address or "local", "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {
            # What this process may use; Ray would count all of the machine.
            "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            # In a container, the address of the machine may not lead back to it.
            "_node_ip_address": "127.0.0.1",
        }
    try:
        with _stderr_closed():
            ray.init(**options)
    except Exception as error:  # of many kinds
        where = "on this machine" if address is None else f"at {address}"
        raise ValueError(f"Ray {where} cannot be used: {one_line(error)}") from error
    if address is None:
        _start_reaper()
    return True


def _start_reaper() -> None:
    """Starts the process that waits for the end of this one."""
    import psutil  # comes with Ray

    raylets = [each for each in psutil.Process().children() if each.name() == "raylet"]
    for raylet in raylets[-1:]:
        reaper = subprocess.Popen(
            [sys.executable, "-m", "swinbert.captioning.bulk.reaper"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert reaper.stdin is not None
        reaper.stdin.write(f"{raylet.pid}\n".encode())
        reaper.stdin.flush()
        _reapers.append(reaper)


@contextlib.contextmanager
def ray_started(address: str | None = None) -> Iterator[None]:
    """`start_ray`, and its end with the block."""
    import ray

    is_ours = start_ray(address)
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()
            while _reapers:
                _reapers.pop().communicate()


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Ray announces on stderr, from C++, that it has been told to be quiet."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def choose_workers(number: int | None = None, gpus_per_worker: float | None = None) -> Workers:
    """
    The workers of a cluster as it is now: one for each GPU, or each core, and the cores of a machine shared among them.

    Args:
        number: of workers; more than there is room for wait until machines join.
        gpus_per_worker: 0 for the CPU; a fraction lets several share a GPU.

    Raises:
        ValueError: there is no room for any, and there will not be.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpus = (1.0 if num_gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if gpus and not num_gpus and len(nodes) == 1:
        raise ValueError(f"Expected GPUs for {gpus:g} a worker, found none: leave --gpus-per-worker out.")
    places = [math.floor(node.get("GPU", 0.0) / gpus + 1e-6) if gpus else node.get("CPU", 0.0) for node in nodes]
    if number is None:
        number = max(1, int(sum(places)))
    if not gpus:
        share = min(sum(places) / number, max(places))
        return Workers(number, max(1, int(share)), cpus=int(share) or share)
    cores = [node.get("CPU", 0.0) / place for node, place in zip(nodes, places, strict=True) if place]
    share = min(cores, default=1.0)
    return Workers(number, max(1, int(share)), gpus, int(share) or share)


__all__ = ["Workers", "choose_workers", "import_ray", "ray_started", "start_ray"]

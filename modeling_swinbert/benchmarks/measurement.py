"""Measurement of time, memory and floating point operations, and a description of the machine."""

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from swinbert.cpu_swinbert import has_faster_onednn, onednn_product
from swinbert.processing.clip_reading_swinbert import available_cores

# Instruction sets that decide which kernels run on a CPU.
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_LIBRARIES = ("torch", "torchvision", "transformers", "av", "decord", "torchcodec")


@dataclass
class Row:
    """
    One row of a table: a call and its measurements.

    Args:
        name: name of the call.
        seconds: wall time of one call in each round.
        cpu_seconds: CPU time of all threads of the process in these rounds, which other processes do not influence.
        items: number of clips, or words, that one call processes.
        flop: floating point operations of the matrix products of a call; a multiply-add counts two.
        peak_bytes: peak memory of a call, beyond what was allocated before it (weights, inputs).
        note: remark for the reader.
        target: how many times as fast as the table's baseline this row is meant to be.
        limit: what keeps it from the target and what was tried, for readers of a row that misses it.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    items: int = 1
    flop: int | None = None
    peak_bytes: int | None = None
    note: str = ""
    target: float | None = None
    limit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def measure(self, call: Callable[[], object], device: torch.device) -> None:
        """Adds one round."""
        cpu = time.process_time()
        self.seconds.append(seconds_of(call, device))
        self.cpu_seconds.append(time.process_time() - cpu)


@dataclass
class Table:
    """Rows that were measured in alternation; `baseline` names the row that the others are compared with."""

    title: str
    rows: list[Row]
    baseline: str | None = None

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Table":
        """The table of a dictionary by `asdict`."""
        return cls(saved["title"], [Row(**row) for row in saved["rows"]], saved["baseline"])


class _Operations(TorchDispatchMode):
    """Counts operations by torch's formulas. Unlike torch's own counter it sets no hooks on modules."""

    flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **kwargs, out_val=result)
        elif func._overloadpacket == torch.ops.mkldnn._linear_pointwise:
            states, weight = args[:2]
            self.flop += 2 * states.numel() * weight.shape[0]
        return result


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], None],
    items: int = 1,
) -> tuple[list[Row], list[Any]]:
    """
    Measures memory and operations of each call once, then the time of each call in every round. The calls alternate, so
    that other load of the machine affects all of them alike.

    Returns:
        A row and the result of each call.
    """
    rows, results = [], []
    for name, call in calls.items():
        progress(f"{name}, memory and operations")
        with _Operations() as operations:
            peak_bytes, result = peak_memory(call, device)
        rows.append(Row(name, items=items, flop=operations.flop or None, peak_bytes=peak_bytes))
        results.append(result)
    take_turns(rows, calls.values(), rounds, device, progress)
    return rows, results


def take_turns(
    rows: Sequence[Row],
    calls: Iterable[Callable[[], object]],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> None:
    """Measures the time of each row's call once in every round."""
    calls = list(calls)
    for number in range(rounds):
        for row, call in zip(rows, calls, strict=True):
            progress(f"{row.name}, round {number + 1} of {rounds}")
            row.measure(call, device)


def agreement(first: torch.Tensor, second: torch.Tensor) -> str:
    """Whether two captions are equal: a comparison is fair only then. In 16 bits, rounding may choose another word."""
    return "the same caption" if torch.equal(first, second) else "ANOTHER CAPTION"


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def peak_memory(call: Callable[[], object], device: torch.device) -> tuple[int | None, Any]:
    """
    Bytes by which the memory of the process, or of the GPU, grew during a call, or `None` if the system does not tell;
    and the result of the call.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or the call would reuse freed memory unnoticed
    can_measure = _reset_peak()
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    return after - before if can_measure and before is not None and after is not None else None, result


def _reset_peak() -> bool:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _status(name: str) -> int | None:
    """A field of /proc/self/status in bytes; `None` where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def fastest_product(device: torch.device, dtype: torch.dtype, side: int) -> tuple[Callable[[], object], float]:
    """A product of square matrices by the fastest library, and the seconds of the fastest of several runs."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if has_faster_onednn() and device.type == "cpu" and dtype == torch.float32:
        products.append(lambda: onednn_product(a, b))
    seconds = [min(seconds_of(product, device) for _ in range(6)) for product in products]
    fastest = min(range(len(products)), key=seconds.__getitem__)
    return products[fastest], seconds[fastest]


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of the machine in a square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    return 2 * side**3 / fastest_product(device, dtype, side)[1]


def machine(device: torch.device) -> dict[str, Any]:
    """Properties of the machine that speed depends on; none that identifies it or its owner."""
    about: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(available_cores()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        about["cpu"] = facts.get("model name", "unknown")
        about["cpu_flags"] = [flag for flag in _CPU_FLAGS if flag in facts.get("flags", "").split()]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        about["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
        about["cuda"] = torch.version.cuda
    for library in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            about[library] = version(library)
    return about


def write_clip(path: Path, width: int, height: int, num_frames: int, group: int) -> None:
    """Writes an H.264 clip at 30 frames per second with three B-frames: a panning grainy picture of changing colour."""
    grain = np.random.default_rng(0).integers(64, 192, (height // 8 + 16, width // 8 + 64), dtype=np.uint8)
    picture = grain.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": str(group), "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            down, right = number % 100, 3 * number % 400
            window = picture[down : down + height, right : right + width]
            frame = np.stack([window, window // 2 + number % 64, 255 - window], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())

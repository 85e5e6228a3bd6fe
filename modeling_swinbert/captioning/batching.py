"""How many clips go through the model at once, and on how many threads: as told, or chosen at the first clips."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import torch

from swinbert.processing.clip_reading_swinbert import check_threads

# Values of a batch of clips, of all pixels and channels: 17 clips of GIT, 3 of SwinBERT with 32 frames.
_VALUES_OF_A_BATCH_ON_CPU = 1 << 24
_VALUES_OF_A_BATCH_ON_GPU = 1 << 26
_LARGEST_BATCH = 32
# Larger clips than fit into such a batch fill all cores.
_TRIAL_BATCH = 4
# Several threads must be faster than one by this factor: one leaves the other cores to other programs and the decoder.
_WORTHWHILE_SPEEDUP = 1.1
# By this factor one thread is so much slower that another look is not worth its time.
_CLEAR_SPEEDUP = 2.0


def _is_busy() -> bool:
    """Whether other programs use most of the cores. Threads that wait for each other then are many times slower."""
    try:
        return os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1)
    except (OSError, AttributeError):  # Windows
        return False


class Batching:
    """
    Batches of one size.

    Args:
        batch_size: clips in one forward pass.
        threads: of PyTorch on the CPU; `None` leaves them as they are.
    """

    def __init__(self, batch_size: int, threads: int | None = None):
        self.batch_size, self.largest, self.threads = batch_size, batch_size, threads

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets the threads, and restores them."""
        before, process = torch.get_num_threads(), os.getpid()
        try:
            if self.threads is not None:
                check_threads(self.threads)
                torch.set_num_threads(self.threads)
            yield
        finally:
            if os.getpid() == process:  # a forked one has one thread
                torch.set_num_threads(before)

    @contextlib.contextmanager
    def measured(self, num_values: Sequence[int]) -> Iterator[None]:
        """
        Encloses the forward pass of one batch.

        Args:
            num_values: size of the model's input, for each readable clip.
        """
        yield


class MeasuredBatching(Batching):
    """
    Batches as large as their clips are small. On a CPU, one thread and all are tried on the first clips, whose captions
    are used, and the faster number is kept; on a busy machine it is one.

    Args:
        device: of the model.
        threads: of PyTorch on the CPU; `None` chooses.
    """

    def __init__(self, device: torch.device, threads: int | None = None):
        super().__init__(1, threads)
        # How far clips are read ahead, in memory that is known to suffice for one clip only.
        self.largest = 8
        self._available = torch.get_num_threads()
        self._values_of_a_batch = _VALUES_OF_A_BATCH_ON_CPU if device.type == "cpu" else _VALUES_OF_A_BATCH_ON_GPU
        chooses_threads = device.type == "cpu" and threads is None and self._available > 1
        if chooses_threads and _is_busy():
            self.threads = 1
            chooses_threads = False
        # Numbers of threads still to be tried; the first pass of a batch also prepares kernels, so each twice.
        self._trials = [1, self._available, 1, self._available] if chooses_threads else []
        self._seconds: dict[int, float] = {}
        self._is_first = True

    @contextlib.contextmanager
    def measured(self, num_values: Sequence[int]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if not num_values:
            return
        if not self._is_first and self._trials:
            self._note(self._trials.pop(0), (time.perf_counter() - start) / len(num_values))
        self._is_first = False
        size = max(1, min(_LARGEST_BATCH, self._values_of_a_batch // max(num_values)))
        if size < _TRIAL_BATCH:
            self._trials.clear()
        self.batch_size = _TRIAL_BATCH if self._trials else size
        if self._trials:
            torch.set_num_threads(self._trials[0])

    def _note(self, threads: int, seconds: float) -> None:
        """Keeps the seconds a clip of a trial, and ends the trials with the better number of threads."""
        self._seconds[threads] = min(seconds, self._seconds.get(threads, seconds))
        if len(self._seconds) < 2:
            return
        alone, together = self._seconds[1], self._seconds[self._available]
        # Where several threads wait for a core that is busy, another look would take as long as many clips.
        if together > alone or alone > _CLEAR_SPEEDUP * together:
            self._trials.clear()
        if not self._trials:
            torch.set_num_threads(self._available if together * _WORTHWHILE_SPEEDUP < alone else 1)


__all__ = ["Batching", "MeasuredBatching"]

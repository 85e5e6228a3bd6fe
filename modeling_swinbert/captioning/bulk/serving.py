"""Captioning what comes through a `Channel`: fetching ahead, batches that wait for nobody, answers for each clip."""

import contextlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from transformers.utils import logging

from swinbert.captioning.bulk.child import Channel
from swinbert.captioning.bulk.cores import own_cores
from swinbert.captioning.bulk.fetching import Fetched, Fetcher
from swinbert.captioning.bulk.supervision import Request
from swinbert.captioning.caption import Caption, CaptionStream, Clip, captions
from swinbert.captioning.isolation import IsolatedReader
from swinbert.captioning.journal import rounded
from swinbert.captioning.loading import LoadingError, choose_device, load_captioner
from swinbert.captioning.segments import Segmentation
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline

# Clips that are fetched, or being fetched, before the model needs them.
_FETCHED_AHEAD = 16
# Share of the time of a clip in which it is read, so that its reader is replaced before this process is.
_READING_SHARE = 0.8
# So many clips in a row that could not be fetched, and none that could, are the network's fault.
_UNFETCHED_WITHOUT_NETWORK = 8


class _Failure(Exception):
    """What every clip would share."""


class _Serving:
    def __init__(self, channel: Channel):
        self._channel, self._spec = channel, channel.spec
        self._captioning = dict(self._spec.captioning)
        if isinstance(cutting := self._captioning.get("segments"), Mapping):
            self._captioning["segments"] = Segmentation(**cutting)
        # Clips that are being fetched, and those that the stream has taken, in their order.
        self._ahead: deque[tuple[int, Request, Future[Fetched]]] = deque()
        self._taken: deque[tuple[int, Fetched]] = deque()
        self._fetcher = Fetcher()
        self._isolation = IsolatedReader(_READING_SHARE * self._spec.timeout) if self._spec.isolate else None
        self._largest_batch = sys.maxsize  # until memory is short
        self._num_fetched = self._num_unfetched = self._num_captioned = 0

    def run(self) -> None:
        try:
            with self._cores():
                if self._isolation is not None:
                    self._isolation.start()
                captioner = load_captioner(**self._spec.loading)
                self._channel.say("ready", json.dumps(self._stream((), captioner).settings))
                while True:
                    self._take()
                    self._caption_all(captioner)
        except (LoadingError, _Failure, ModuleNotFoundError) as error:
            self._channel.say("failure", str(error))
        except (MemoryError, RuntimeError, ValueError) as error:
            if self._num_captioned:
                raise  # ends the process, and the worker finds out which clip it is about
            self._channel.say("failure", f"{type(error).__name__}: {error}")

    def _cores(self) -> contextlib.AbstractContextManager[object]:
        """Cores of its own for a model on the CPU; the decoders of one on a GPU take what is free."""
        device = choose_device(self._spec.loading.get("device", "auto"))
        return own_cores(self._spec.cores) if device.type == "cpu" else contextlib.nullcontext()

    def _stream(self, clips: Any, captioner: VideoCaptioningPipeline) -> CaptionStream:
        cores, isolation = self._spec.cores, self._isolation
        stream = captions(clips, captioner, threads=cores, isolation=isolation, **self._captioning)
        stream.largest_batch = self._largest_batch
        return stream

    def _take(self) -> None:
        """Waits for a clip, and begins to fetch it."""
        number, request = self._channel.inbox.get()
        self._ahead.append((number, request, self._fetcher.submit(request)))

    def _caption_all(self, captioner: VideoCaptioningPipeline) -> None:
        """Captions until no clip waits, and then the rest of the batch: nobody may wait for clips that do not come."""
        if self._captioning.get("segments") is None:
            stream = self._stream(self._clips(), captioner)
            for caption in stream:
                self._answer([caption])
            self._largest_batch = stream.largest_batch
            return
        for clip in self._clips():
            stream = self._stream([clip], captioner)
            self._answer(list(stream))
            self._largest_batch = stream.largest_batch

    def _clips(self) -> Iterator[Clip]:
        while True:
            while len(self._ahead) < _FETCHED_AHEAD and not self._channel.inbox.empty():
                self._take()
            if not self._ahead:
                return
            number, request, fetching = self._ahead.popleft()
            self._channel.say("started", number)
            fetched = fetching.result()
            self._notice_network(fetched)
            self._taken.append((number, fetched))
            yield Clip(fetched.video, request.start, request.end, name=request.path, error=fetched.error)

    def _notice_network(self, fetched: Fetched) -> None:
        self._num_fetched += fetched.video is not None
        self._num_unfetched += fetched.error_kind == "download_failed"
        if not self._num_fetched and self._num_unfetched >= _UNFETCHED_WITHOUT_NETWORK:
            raise _Failure(
                f"None of the first {self._num_unfetched} clips of a worker could be fetched: {fetched.error}"
            )

    def _answer(self, results: list[Caption]) -> None:
        number, fetched = self._taken.popleft()
        fetched.discard()
        self._num_captioned += any(caption.text is not None for caption in results)
        for caption in results:
            if caption.error_kind == "out_of_memory" and not self._num_captioned:
                raise _Failure(f"There is not enough memory for one clip at a time: {caption.error}")
        self._channel.say("rows", (number, [_row(caption, fetched) for caption in results]))


def _row(caption: Caption, fetched: Fetched) -> dict[str, Any]:
    return {
        "start": caption.start,
        "end": caption.end,
        "caption": caption.text,
        "score": rounded(caption.score),
        "error": caption.error,
        "error_kind": fetched.error_kind or caption.error_kind,
        "duration": caption.duration,
    }


def serve(channel: Channel) -> None:
    """Captions until the process is ended from outside, or every clip would fail."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _Serving(channel).run()


__all__ = ["serve"]

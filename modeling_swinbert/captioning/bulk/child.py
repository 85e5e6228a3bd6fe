"""
The process that captions for a worker: `python -m swinbert.captioning.bulk.child`, started by `supervision`.

On stdin it reads pickles: `("load", CaptionerSpec)`, then `("clip", number, Request)`. On
stdout it writes pickles: `("ready", settings)`, as JSON; for each clip `("started", number)` and `("rows", (number,
rows))`; `("failure", reason)` for what every clip would share.

torch and the rest are imported in `serving`, after the thread is running that ends this process with its worker.
"""

import os
import pickle
import queue
import sys
import threading
from typing import Any, BinaryIO


class Channel:
    """
    The pipes to the worker.

    Attributes:
        inbox: `(number, Request)` of clips that nobody has taken yet.
        spec: what came with `"load"`.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO):
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._answers, self._lock = answers, threading.Lock()
        _, self.spec = pickle.load(requests)
        threading.Thread(target=self._listen, args=(requests,), daemon=True).start()

    def _listen(self, requests: BinaryIO) -> None:
        """Ends the process as soon as the worker that it serves is gone, whatever it is doing."""
        try:
            while True:
                _, number, request = pickle.load(requests)
                self.inbox.put((number, request))
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)

    def say(self, what: str, value: Any) -> None:
        with self._lock:
            pickle.dump((what, value), self._answers)
            self._answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    channel = Channel(sys.stdin.buffer, answers)
    from swinbert.captioning.bulk.serving import serve

    serve(channel)


if __name__ == "__main__":
    main()

"""In the place of the process that captions: does at once what the name of each clip says, without a model.

python -m scripted_captioner
"""

import os
import signal
import sys
import time

from swinbert.captioning.bulk.child import Channel


def main() -> None:
    channel = Channel(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    if failure := channel.spec.loading.get("failure"):
        channel.say("failure", failure)
        time.sleep(60)
    if channel.spec.loading.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    channel.say("ready", f'{{"process": {os.getpid()}}}')
    batch = []
    while True:
        batch.append(channel.inbox.get())
        while not channel.inbox.empty():
            batch.append(channel.inbox.get())
        for number, _ in batch:
            channel.say("started", number)
        for _, request in batch:
            if "crash" in request.path:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in request.path:
                time.sleep(60)
        for number, request in batch:
            caption = {"caption": f"caption of {request.path}", "batch": len(batch)}
            channel.say("rows", (number, [{"start": request.start, "end": request.end, **caption}]))
        batch = []


if __name__ == "__main__":
    main()

"""In the place of the process that decodes: does with some files what their names say.

python -m scripted_reader SECONDS
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from swinbert.captioning import reading_process

DECODING = reading_process.import_decoding()
decode_video, read_frames, send = DECODING.decode_video, DECODING.VideoSegment.read_frames, reading_process.send
garbage: list[bytes] = []
read: list[str] = []


def misbehave(name: str) -> None:
    if name == "hang":
        time.sleep(600)
    read.append(name)
    if name == "crash" or name == "worn" and len(read) > 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "memory":
        bytearray(1 << 30)
    if name == "failure":
        raise KeyError("no such thing")
    if name == "garbage":
        garbage.append(b"no message at all")
    if name == "long":
        garbage.append(reading_process._LENGTHS.pack(1 << 31, 0))
    if name == "list":
        garbage.append(reading_process._LENGTHS.pack(2, 0) + b"[]")


def scripted_decode_video(source, **arguments):
    name = Path(source).stem if isinstance(source, str) else ""
    misbehave(name)
    frames, metadata = decode_video(source, **arguments)
    if name == "much":
        frames = np.concatenate([frames, frames])
    if name == "liar":
        metadata.height *= 100
    return frames, metadata


def scripted_read_frames(segment, **arguments):
    if segment.part.start:
        misbehave(Path(segment.name).stem)
    return read_frames(segment, **arguments)


def scripted_send(stream, *message):
    if garbage:
        stream.write(garbage.pop())
        stream.flush()
    else:
        send(stream, *message)


if __name__ == "__main__":
    if "dies" in os.environ.get("SCRIPTED_READER", ""):
        sys.exit(3)
    DECODING.decode_video, DECODING.VideoSegment.read_frames = scripted_decode_video, scripted_read_frames
    reading_process.send, reading_process.MEMORY_BYTES = scripted_send, 256 << 20
    reading_process.main()

"""
Frames that a damaged Matroska or WebM file (RFC 9559) has lost.

From the place of the damage, FFmpeg goes on at the next cluster, which can be seconds later, and says nothing: the
frames between are missing from its packets. They leave a gap in time. So do pauses and a variable frame rate, but there
the file is whole: each of its elements begins where the one before ends. In docstrings P is the number of packets, F of
frames, L of lost frames.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
_MASTERS = (_SEGMENT, _CLUSTER, _BLOCK_GROUP)  # they consist of the elements that follow
_BLOCKS = (0xA3, 0xA1)  # SimpleBlock, Block
# EBML header, SeekHead, Info, Tracks, Cues, Chapters, Tags, Attachments; Void, BlockAdditions, EncryptedBlock and
# CodecState. Any other element holds a number.
_SKIPPED = frozenset(
    (0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469)
    + (0xEC, 0x75A1, 0xAF, 0xA4)
)
_CLUSTER_TIME = 0xE7
_NUMBER_BYTES = 8
_SMALLEST_HEADER = 6  # bytes of an element that holds a block, before its frame
# Frames of which one follows the other at more than this many times the usual distance leave room for another.
_GAP = 1.5


# --- Elements of the file ---------------------------------------------------------------------------------------------


class _Walk(NamedTuple):
    """A way through a file, from element to element."""

    is_whole: bool  # whether one element follows the other, up to the end of the way
    position: int  # the byte up to which they do
    cluster_time: int = 0  # time stamp of the last cluster on the way, 0 without one
    is_cut: bool = False  # whether the end of the file cuts off the last one, which is no damage


def _read_integer(data: bytes, with_marker: bool) -> tuple[int | None, bytes]:
    """
    An EBML integer of variable size (RFC 8794, 4), `None` if there is none or it means "unknown"; and what follows it.
    """
    size = 9 - data[0].bit_length() if data else 9
    if size > min(8, len(data)):
        return None, b""
    number, ones = int.from_bytes(data[:size], "big"), (1 << 7 * size) - 1
    if with_marker:
        return number, data[size:]
    return (None if number & ones == ones else number & ones), data[size:]


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _walk(file: BinaryIO, begin: int, block: int | None) -> _Walk:
    """From the element at byte `begin` to the block whose content begins at byte `block`, or to the end of the file."""
    target = _size(file) if block is None else block
    position, cluster_time = begin, 0
    while position < target:
        file.seek(position)
        header = file.read(12)
        identity, rest = _read_integer(header, with_marker=True)
        size, rest = _read_integer(rest, with_marker=False)
        content = position + len(header) - len(rest)
        if identity in _BLOCKS and content == block:
            return _Walk(True, position, cluster_time)
        if identity in _MASTERS:
            position = content
            continue
        if size is None or (size > _NUMBER_BYTES and identity not in _BLOCKS and identity not in _SKIPPED):
            return _Walk(False, position, cluster_time)
        if content + size > target:
            return _Walk(block is None, position, cluster_time, is_cut=block is None)
        if identity == _CLUSTER_TIME:
            file.seek(content)
            cluster_time = int.from_bytes(file.read(size), "big")
        position = content + size
    return _Walk(block is None, position, cluster_time)


def _ends_of_block(file: BinaryIO, content: int) -> Iterator[int]:
    """
    Bytes at which the block may end whose content begins at byte `content`: its size stands before it. (The packet's
    size is another one, where packets are compressed or several of them make a block.)
    """
    file.seek(max(content - 9, 0))
    before = file.read(min(content, 9))
    for length in range(1, len(before)):
        size, rest = _read_integer(before[-length:], with_marker=False)
        if size is not None and not rest and before[-length - 1] in _BLOCKS:
            yield content + size


@contextlib.contextmanager
def _opened(media: str | BinaryIO) -> Iterator[BinaryIO]:
    """A file of one's own, or a stream that is afterwards where it was."""
    if isinstance(media, str):
        with open(media, "rb", buffering=0) as file:  # a few bytes here and there
            yield file  # type: ignore[misc]
    else:
        position = media.tell()
        try:
            yield media
        finally:
            media.seek(position)


# --- Frames that are lost ---------------------------------------------------------------------------------------------


def _header_end(container: Any, stream: Any) -> int | None:
    """The time stamp at which the stream ends according to the file's header, or its tags."""
    time_base = Fraction(stream.time_base)
    found = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if found:
        hours, minutes, seconds = map(float, found.groups())
        return round((hours * 3600 + minutes * 60 + seconds) / time_base)
    return round(container.duration / (1_000_000 * time_base)) if container.duration else None


class _Way:
    """
    What lies between the packets of a stream in their file: before packet k, at number k, and behind the last at P.

    Args:
        file: the file.
        packets (`np.ndarray`): (P,) with fields `pos`, the byte at which a packet's block begins, and `size`.
    """

    def __init__(self, file: BinaryIO, packets: np.ndarray):
        self._file, self._packets = file, packets
        self._size = _size(file)
        self.walk = cache(self._walk)

    def _walk(self, number: int) -> _Walk:
        begins = self._packets["pos"]
        block = int(begins[number]) if number < len(begins) else None
        if not number:
            return _walk(self._file, 0, block)
        before = int(begins[number - 1])
        if before == block:
            return _Walk(True, before)
        limit = self._size if block is None else block
        walks = [_walk(self._file, end, block) for end in _ends_of_block(self._file, before) if end <= limit]
        return max(walks, default=_Walk(block is None, before, is_cut=block is None))

    def lost_bytes(self, first: int, last: int) -> int:
        """Bytes between packets, from number `first` to `last`, that belong to no element."""
        lost = 0
        for number in range(max(first, 0), min(last, len(self._packets)) + 1):
            if not (walk := self.walk(number)).is_whole:
                end = int(self._packets["pos"][number]) if number < len(self._packets) else self._size
                lost += max(end - walk.position, 0)
        return lost


def find_lost_frames(
    media: str | BinaryIO, container: Any, stream: Any, packets: np.ndarray, packet_of_frame: np.ndarray
) -> tuple[np.ndarray, int | None]:
    """
    Args:
        media: path or seekable binary stream.
        container, stream: as PyAV opened them.
        packets (`np.ndarray`): (P,) with fields `pts`, `pos`, `size`, see `video_timeline_swinbert.py`.
        packet_of_frame (`np.ndarray`): (F,) number of the packet that holds each frame.

    Returns:
        (L,) ascending time stamps, at the usual distance between frames; and the time stamp at which the stream ends
        according to the header, if the file is cut off before.
    """
    pts = packets["pts"][packet_of_frame]
    steps = np.diff(pts)
    if len(steps) < 2 or (packets["pos"] < 0).any():
        return np.empty(0, np.int64), None
    distance = float(steps[steps <= _GAP * np.median(steps)].mean())  # more exact than the median of rounded times
    # By how many places the order in which frames are stored differs from that in which they are shown.
    disorder = int(np.abs(np.argsort(np.argsort(packet_of_frame)) - np.arange(len(pts))).max())
    smallest = int(packets["size"].min()) + _SMALLEST_HEADER
    gaps: list[tuple[float, float, int, int]] = []  # time stamps before and after; packets between which frames can be
    lost, cut_end = [np.empty(0, np.int64)], None
    with _opened(media) as file:
        way = _Way(file, packets)
        if pts[0] > _GAP * distance:
            gaps.append((way.walk(0).cluster_time - distance, pts[0], 0, disorder))
        for frame in np.flatnonzero(steps > _GAP * distance):
            first, last = sorted(packet_of_frame[frame : frame + 2].tolist())
            gaps.append((pts[frame], pts[frame + 1], first + 1 - disorder, last + disorder))
        end = _header_end(container, stream)
        if end is not None and end - pts[-1] > _GAP * distance:
            gaps.append((pts[-1], end, len(packets) - disorder, len(packets)))
            cut_end = end if way.walk(len(packets)).is_cut else None
        for before, after, first, last in gaps:
            room = way.lost_bytes(first, last) // smallest
            number = max(0, min(round((after - before) / distance) - 1, int(after - before) - 1, room))
            lost.append(np.rint(np.linspace(before, after, number + 2)[1:-1]).astype(np.int64))
    return np.concatenate(lost), cut_end


__all__ = ["find_lost_frames"]

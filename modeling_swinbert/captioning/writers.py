"""Captions -> text, JSON, CSV, subtitles, the metadata of a dataset, and files beside the clips."""

import csv
import html
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from swinbert.captioning.caption import Caption
from swinbert.processing.video_sources_swinbert import is_url
from swinbert.utils.files import inner_path, write_atomically


@dataclass(frozen=True)
class Row:
    """
    A caption on its way into a file.

    Args:
        duplicate_of: an earlier clip of the same folder with the same caption.
        rejected: why the caption is not wanted, in a few words.
    """

    caption: Caption
    duplicate_of: str | None = None
    rejected: str | None = None

    @property
    def text(self) -> str | None:
        """The caption on one line, which may be empty; `None` if it is missing, a duplicate or rejected."""
        if self.caption.text is None or self.duplicate_of is not None or self.rejected is not None:
            return None
        return one_line_text(self.caption.text)

    @property
    def reason(self) -> str | None:
        """Why `text` is `None`."""
        if self.duplicate_of is not None:
            return f"duplicate of {self.duplicate_of}"
        return self.caption.error or self.rejected


def one_line_text(text: str) -> str:
    return " ".join(text.split())


class CaptionWriter(ABC):
    """Format of a file of captions, which consists of a header and of what `row` returns for each caption."""

    header = ""
    # Whether a file of this format belongs to one video.
    is_of_one_video = False
    # Whether the file consists of more than its rows, so that it is written once all captions are known.
    is_one_document = False

    @abstractmethod
    def row(self, row: Row) -> str:
        """What stands in the file for one caption, with its line end; empty if that is nothing."""

    def document(self, rows: Iterable[Row]) -> str:
        return self.header + "".join(map(self.row, rows))


class TextWriter(CaptionWriter):
    """
    CLIP, a tab and the caption, of a segment with its times.

    Args:
        only_caption: leave out CLIP.
        with_times: captions are of segments.
    """

    def __init__(self, only_caption: bool = False, with_times: bool = False):
        self._only_caption, self._with_times = only_caption, with_times

    def row(self, row: Row) -> str:
        if row.text is None:
            return ""
        text = f"{period(row.caption)}  {row.text}" if self._with_times else row.text
        return f"{text}\n" if self._only_caption else f"{escaped_name(row.caption.clip)}\t{text}\n"


def period(caption: Caption) -> str:
    """When a segment is shown: `00:01:05.20 - 00:01:12.44`."""
    begin, end = cue_range(caption)
    return f"{_time(begin, '.', 2)} - {_time(end, '.', 2)}"


def escaped_name(name: str) -> str:
    r"""A name that is one field of one line: `\t`, `\n`, `\r` and `\\` stand for tab, line ends and backslash."""
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class JsonLinesWriter(CaptionWriter):
    def row(self, row: Row) -> str:
        return json.dumps(json_row(row)) + "\n"


def json_row(row: Row) -> dict[str, Any]:
    caption = row.caption
    values: dict[str, Any] = {
        "path": caption.clip,
        "caption": caption.text,
        "score": caption.score,
        "error": caption.error,
        "start": caption.start,
        "end": caption.end,
        "duration": caption.duration,
    }
    if caption.alternatives:
        values["alternatives"] = [{"caption": text, "score": score} for text, score in caption.alternatives]
    if row.duplicate_of is not None:
        values["duplicate_of"] = row.duplicate_of
    if row.rejected is not None:
        values["rejected"] = row.rejected
    return values


class CsvWriter(CaptionWriter):
    """RFC 4180. The column `error` also says of what a caption is a duplicate, and why it is rejected."""

    header = "path,start,end,caption,score,error\r\n"

    def row(self, row: Row) -> str:
        caption = row.caption
        line = io.StringIO()
        values = (caption.clip, caption.start, caption.end, caption.text, caption.score, row.reason)
        csv.writer(line).writerow(values)
        return line.getvalue()


class SrtWriter(CaptionWriter):
    """SubRip subtitles: a cue for each caption."""

    is_of_one_video = True
    _decimal_mark = ","

    def __init__(self) -> None:
        self._num_cues = 0

    def document(self, rows: Iterable[Row]) -> str:
        self._num_cues = 0
        return super().document(rows)

    def row(self, row: Row) -> str:
        if not row.text:
            return ""
        self._num_cues += 1
        begin, end = (_time(seconds, self._decimal_mark) for seconds in cue_range(row.caption))
        return f"{self._number()}{begin} --> {end}\n{self.cue_text(row.text)}\n\n"

    def _number(self) -> str:
        return f"{self._num_cues}\n"

    def cue_text(self, text: str) -> str:
        return text.replace("-->", "->")


class VttWriter(SrtWriter):
    """WebVTT subtitles: a cue for each caption."""

    header = "WEBVTT\n\n"
    _decimal_mark = "."

    def _number(self) -> str:
        return ""

    def cue_text(self, text: str) -> str:
        return super().cue_text(text).replace("&", "&amp;").replace("<", "&lt;")


def cue_range(caption: Caption) -> tuple[float, float]:
    """
    Begin and end of a cue in seconds.

    Raises:
        ValueError: the end is not known.
    """
    begin = caption.start or 0.0
    ends = [end for end in (caption.end, caption.duration) if end is not None]
    if not ends:
        raise ValueError("the duration of the clip, and so the end of its subtitle, is unknown")
    # At least what the format can express: players skip empty cues.
    return begin, max(min(ends), begin + 0.001)


def _time(seconds: float, decimal_mark: str, digits: int = 3) -> str:
    """`HH:MM:SS,mmm`; more than two digits for 100 hours and more."""
    whole, fraction = divmod(round(seconds * 10**digits), 10**digits)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours:02d}:{minutes:02d}:{whole % 60:02d}{decimal_mark}{fraction:0{digits}d}"


class MetadataWriter(CaptionWriter):
    """
    `metadata.jsonl` of a VideoFolder, which `swinbert train` reads; clips without a caption are left out.

    Args:
        folder: where the file will be, which the clips' `file_name`s are relative to.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def row(self, row: Row) -> str:
        caption = row.caption
        if not row.text:
            return ""
        alternatives = [one_line_text(each.text) for each in caption.alternatives]
        values: dict[str, Any] = {
            "file_name": self.file_name(caption.clip),
            "captions": [row.text, *filter(None, alternatives)],
        }
        values |= {name: value for name in ("start", "end") if (value := getattr(caption, name)) is not None}
        return json.dumps(values) + "\n"

    def file_name(self, clip: str) -> str:
        """
        Raises:
            ValueError: the clip is not in the folder.
        """
        relative = None if is_url(clip) else inner_path(os.path.relpath(os.path.abspath(clip), self._folder.absolute()))
        if relative is None:
            raise ValueError(
                f"{clip} is not in {self._folder.absolute()}, where the metadata will be: --output FILE names one above"
                " all clips, such as videos/metadata.jsonl."
            )
        return relative


class ActivityNetWriter(CaptionWriter):
    """
    A file of results of dense captioning, as the evaluation of ActivityNet Captions reads it: `{"results": {video:
    [{"sentence", "timestamp"}]}}`. A video is called by its file's name without the suffix.
    """

    is_one_document = True

    def row(self, row: Row) -> str:
        return ""

    def document(self, rows: Iterable[Row]) -> str:
        results: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            sentences = results.setdefault(video_id(row.caption.clip), [])
            if row.text:
                sentences.append({"sentence": row.text, "timestamp": list(cue_range(row.caption))})
        values = {"version": "VERSION 1.0", "results": results, "external_data": {"used": False, "details": ""}}
        return json.dumps(values, indent=2) + "\n"


def video_id(clip: str) -> str:
    """The name of a clip's file without the suffix."""
    return Path(urlsplit(clip).path if is_url(clip) else clip).stem


def check_video_ids(clips: Iterable[str]) -> None:
    """
    Raises:
        ValueError: two clips have one name without the suffix.
    """
    owners: dict[str, str] = {}
    for clip in clips:
        owner = owners.setdefault(video_id(clip), clip)
        if owner != clip:
            raise ValueError(f"{owner} and {clip} would both be called {video_id(clip)}: caption them separately.")


def make_writer(
    output_format: str, output: Path | None = None, only_caption: bool = False, with_times: bool = False
) -> CaptionWriter:
    """
    Args:
        output_format: text, jsonl, csv, srt, vtt, metadata or activitynet.
        output: the file; `None` for stdout.
        only_caption: text is without the clip's name.
        with_times: text has the times of segments.
    """
    if output_format == "text":
        return TextWriter(only_caption, with_times)
    if output_format == "metadata":
        return MetadataWriter(Path() if output is None else output.parent)
    writers: dict[str, Callable[[], CaptionWriter]] = {
        "jsonl": JsonLinesWriter,
        "csv": CsvWriter,
        "srt": SrtWriter,
        "vtt": VttWriter,
        "activitynet": ActivityNetWriter,
    }
    return writers[output_format]()


def write_text(file: Path, text: str) -> None:
    """Writes a file atomically. File names in the text need not be valid Unicode."""
    write_atomically(file, text.encode(errors="surrogateescape"))


# --- Beside the clips -------------------------------------------------------------------------------------------------


def beside(clip: str, kind: str) -> Path:
    """
    The file beside a clip under the same stem.

    Raises:
        ValueError: the clip is a URL.
    """
    if is_url(clip):
        raise ValueError("nothing can be written beside a URL: use --output")
    return Path(clip).with_suffix(f".{kind}")


def check_stems(clips: Iterable[str], kinds: Iterable[str]) -> None:
    """
    Raises:
        ValueError: two clips of a folder have one stem.
    """
    clips, kinds = list(clips), list(kinds)
    for kind in kinds[:1]:
        owners: dict[str, str] = {}
        for clip in clips:
            if is_url(clip):
                continue
            file = beside(clip, kind)
            owner = owners.setdefault(os.path.abspath(file), clip)
            if os.path.abspath(owner) != os.path.abspath(clip):
                raise ValueError(
                    f"{owner} and {clip} would both have {file} beside them: rename one, or caption them separately."
                )


def beside_document(kind: str, rows: Sequence[Row], with_times: bool = False) -> str:
    """
    Content of the file beside a clip.

    Args:
        kind: txt, json, srt or vtt.
        rows: those of the clip that have a caption.
        with_times: text has the times of segments.
    """
    if kind == "txt":
        return TextWriter(True, with_times).document(rows)
    if kind == "json":
        values = [json_row(row) for row in rows]
        return json.dumps(values[0] if len(values) == 1 else values, indent=2) + "\n"
    return make_writer(kind).document(rows)


def read_beside(file: Path) -> str | None:
    """The caption in a file that [`beside_document`] made for one row; `None` if it is something else."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return json.loads(text)["caption"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    lines = text.splitlines()
    if file.suffix in (".srt", ".vtt"):
        lines = [html.unescape(lines[number + 1]) for number, line in enumerate(lines[:-1]) if " --> " in line]
    return lines[0] if len(lines) == 1 else None


__all__ = [
    "ActivityNetWriter",
    "CaptionWriter",
    "Row",
    "SrtWriter",
    "VttWriter",
    "beside",
    "beside_document",
    "check_stems",
    "check_video_ids",
    "cue_range",
    "make_writer",
    "period",
    "read_beside",
]

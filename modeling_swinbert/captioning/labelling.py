"""Captioning a collection of clips into files: what is done already, duplicates, failures, and a summary."""

import contextlib
import dataclasses
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinbert.captioning.burning import burn, check_burned
from swinbert.captioning.caption import Alternative, Caption, Clip, captions
from swinbert.captioning.journal import CaptionJournal, rounded
from swinbert.captioning.segments import Segmentation, merge_segments
from swinbert.captioning.writers import (
    ActivityNetWriter,
    MetadataWriter,
    Row,
    beside,
    beside_document,
    check_stems,
    check_video_ids,
    make_writer,
    one_line_text,
    period,
    read_beside,
    write_text,
)
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import is_url
from swinbert.utils.text import first_names, one_line


@dataclass(frozen=True)
class Destination:
    """
    Where captions go, and which.

    Args:
        output_format: see `make_writer`.
        output: file for all captions; `None` for stdout. Its journal is the hidden folder `.NAME.journal` beside it.
        write_beside: kinds of files that are written beside each clip: txt, json, srt, vtt.
        overwrite: caption clips again that are done, and replace files.
        min_score: captions with a lower score are rejected.
        skip_duplicates: mark captions that another clip of the same folder has already.
        burned: a copy of the one clip, with the captions as subtitles: see `burn`. It is left alone if it exists.
    """

    output_format: str = "text"
    output: Path | None = None
    write_beside: tuple[str, ...] = ()
    overwrite: bool = False
    min_score: float | None = None
    skip_duplicates: bool = False
    burned: Path | None = None

    @property
    def journal(self) -> Path | None:
        return None if self.output is None else self.output.with_name(f".{self.output.name}.journal")

    def check(self, clips: Sequence[Clip]) -> None:
        """
        Raises:
            ValueError: captions of these clips cannot be written there.
            IsADirectoryError, FileExistsError: `output` is a folder, or a file of something else.
        """
        readable = [clip.name for clip in clips if clip.error is None]
        writer = make_writer(self.output_format, self.output)
        if writer.is_of_one_video and len(clips) > 1:
            raise ValueError(
                f"A file of {self.output_format} is of one video, and here are {len(clips)}: --write-beside"
                f" {self.output_format} writes one beside each."
            )
        if isinstance(writer, MetadataWriter):
            for name in readable:
                writer.file_name(name)
        if isinstance(writer, ActivityNetWriter):
            check_video_ids(readable)
        if self.burned is not None:
            check_burned(self.burned)
            if len(clips) > 1:
                raise ValueError(f"--burn {self.burned} is a copy of one video, and here are {len(clips)}.")
            if any(os.path.abspath(self.burned) == _absolute(name) for name in readable):
                raise ValueError(f"--burn {self.burned} is the clip: name another file.")
        if self.write_beside:
            check_stems(readable, self.write_beside)
        if self.output is not None:
            self._check_output(self.output, readable)

    def _check_output(self, output: Path, clips: Sequence[str]) -> None:
        for name in clips:
            if os.path.abspath(output) == _absolute(name):
                raise ValueError(f"--output {output} is a clip: name another file.")
            if not is_url(name) and os.path.abspath(output) in {
                os.path.abspath(beside(name, kind)) for kind in self.write_beside
            }:
                raise ValueError(f"--output {output} is also beside {name}: name another file.")
        if output.is_dir():
            raise IsADirectoryError(f"Expected a file for --output, found the folder {output}.")
        is_recorded = self.journal is not None and (self.journal / "settings.json").exists()
        if output.exists() and not is_recorded and not self.overwrite:
            raise FileExistsError(
                f"{output} exists, and there is no record of how it was made: name another --output, or replace it with"
                " --overwrite."
            )


@dataclass
class Summary:
    """
    Counts of a run, for the line at its end.

    Args:
        unit: what is captioned: `"clip"`, or `"segment"` of a film.
    """

    unit: str = "clip"
    num_clips: int = 0
    num_before: int = 0
    seconds: float = 0.0
    num_captioned: int = 0
    num_duplicates: int = 0
    num_rejected: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def count(self, caption: Caption, name: str) -> None:
        """Counts what the model, or an earlier run, returned for a clip or segment, which `name` tells from others."""
        self.num_clips += 1
        if caption.text is None:
            self.fail(name, caption.error_kind or "unknown")
        else:
            self.num_captioned += 1
            self.texts.add(caption.text)

    def count_row(self, row: Row) -> None:
        self.num_duplicates += row.duplicate_of is not None
        self.num_rejected += row.rejected is not None

    def fail(self, name: str, kind: str) -> None:
        self.failures[kind] += 1
        self.failed.add(name)

    def __str__(self) -> str:
        parts = [f"{self.num_clips} {self.unit}s", f"{self.num_captioned} captioned"]
        if self.num_before:
            parts.append(f"{self.num_before} of them in an earlier run")
        kinds = ", ".join(f"{kind} {number}" for kind, number in self.failures.most_common())
        parts.append(f"{len(self.failed)} failed" + (f" ({kinds})" if kinds else ""))
        parts.append(f"{len(self.texts)} distinct captions")
        if self.num_duplicates:
            parts.append(f"{self.num_duplicates} duplicates")
        if self.num_rejected:
            parts.append(f"{self.num_rejected} with a low score")
        if num_now := self.num_clips - self.num_before:
            parts.append(f"{self.seconds / num_now:.3g} s a {self.unit}")
        return ", ".join(parts) + "."


class Labelling:
    """
    Captions clips into a [`Destination`].

    ```python
    labelling = Labelling(list(find_clips(["videos"])), Destination("csv", Path("captions.csv"), ("txt",)))
    summary = labelling.run(load_captioner("moving-shapes"), batch_size="auto")
    ```

    With `output`, each caption is in a journal as soon as it is made, and a later run captions only what is missing or
    failed. With `write_beside` alone, clips that have all their files are skipped.

    Args:
        clips: a clip that is named twice is captioned once if anything is written to files.
        report: called with messages for the user.
        segments: take clips for films, and caption their segments.
        merge: join neighbouring segments of the same caption; what they were is kept in the journal.
        similarity: see `merge_segments`.

    Raises:
        ValueError, OSError: see `Destination.check`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        destination: Destination,
        report: Callable[[str], None] = print,
        *,
        segments: Segmentation | None = None,
        merge: bool = True,
        similarity: float | None = None,
    ):
        self.destination, self.report = destination, report
        self.segments, self.merge, self.similarity = segments, merge, similarity
        if destination.output is not None or destination.write_beside:
            unique: dict[Any, Clip] = {}
            for clip in clips:
                unique.setdefault((_absolute(clip.name), clip.start, clip.end), clip)
            clips = list(unique.values())
        destination.check(clips)
        self._first_with: dict[tuple[str, str], str] = {}
        # Names of clips whose files beside them may be replaced.
        self._outdated: set[str] = set()
        self.num_clips = len(clips)
        self.clips = [clip for clip in clips if not self._is_skipped(clip)]
        if num_skipped := self.num_clips - len(self.clips):
            report(
                f"{num_skipped} of {self.num_clips} clips are skipped, since their captions are beside them:"
                " --overwrite replaces those."
            )

    @property
    def needs_captioner(self) -> bool:
        return any(clip.error is None for clip in self.clips)

    def run(
        self,
        captioner: VideoCaptioningPipeline | None,
        show: Callable[[str | None], None] = lambda line: None,
        only_caption: bool = False,
        **captioning: Any,
    ) -> Summary:
        """
        Args:
            captioner: `None` if no clip is readable.
            show: called for each clip with its lines for stdout, or `None`.
            only_caption: text is without the clip's name.
            captioning: arguments of `captions`.

        Raises:
            ValueError: `output` holds captions made with other settings; files beside clips would be replaced.
            OSError: a file cannot be written, or another process writes it.
        """
        is_film = self.segments is not None
        summary, output = Summary("segment" if is_film else "clip"), self.destination.output
        writer = make_writer(self.destination.output_format, output, only_caption, with_times=is_film)
        header, rows = writer.header, []
        start = time.perf_counter()
        with self._resumable(), contextlib.ExitStack() as stack:
            made = self._captions(captioner, {**captioning, "segments": self.segments}, summary, stack)
            for row in self._with_files_beside(map(self._judged, self._merged(made, summary)), summary):
                rows.append(row)
                summary.count_row(row)
                lines = "" if output is not None else writer.row(row)
                show((header + lines).removesuffix("\n") if lines else None)
                header = "" if lines else header
            summary.seconds = time.perf_counter() - start
            if output is not None and captioner is not None:
                with self._continuing():
                    write_text(output, writer.document(rows))
            elif output is None and writer.is_one_document:
                show(writer.document(rows).removesuffix("\n"))
            self._burn(rows)
        return summary

    def _burn(self, rows: list[Row]) -> None:
        burned = self.destination.burned
        if burned is None or not any(row.text for row in rows):
            return
        if burned.exists() and not self.destination.overwrite:
            self.report(f"{burned} exists and is kept: --overwrite replaces it.")
        else:
            burn(self.clips[0].video, rows, burned)

    def _merged(self, captions: Iterable[Caption], summary: Summary) -> Iterator[Caption]:
        """Counts and reports what the model returned, and joins neighbouring segments."""

        def counted() -> Iterator[Caption]:
            for caption in captions:
                is_segment = self.segments is not None and caption.end is not None
                name = f"{caption.clip}, {period(caption)}" if is_segment else caption.clip
                summary.count(caption, name)
                if caption.error is not None:
                    self.report(f"{name}: {caption.error}")
                yield caption

        if self.segments is None or not self.merge:
            return counted()
        merged = merge_segments(counted(), self.similarity)
        return (dataclasses.replace(caption, score=rounded(caption.score)) for caption in merged)

    @contextlib.contextmanager
    def _resumable(self) -> Iterator[None]:
        """Says after Ctrl-C that nothing is lost."""
        try:
            yield
        except KeyboardInterrupt:
            if (output := self.destination.output) is not None:
                self.report(f"Stopped. The captions so far are kept, and the same command continues with {output}.")
            elif self.destination.write_beside:
                self.report("Stopped. The files so far are complete, and the same command continues with other clips.")
            raise

    @contextlib.contextmanager
    def _continuing(self) -> Iterator[None]:
        """Adds to an error of writing that nothing is lost."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{one_line(error)}. The captions so far are kept: mend this, and the same command continues with"
                f" {self.destination.output}."
            ) from error

    # --- Captions, made now or before ---------------------------------------------------------------------------------

    def _captions(
        self,
        captioner: VideoCaptioningPipeline | None,
        captioning: dict[str, Any],
        summary: Summary,
        stack: contextlib.ExitStack,
    ) -> Iterator[Caption]:
        """The caption of each clip, in their order, and then those that are in the output from earlier runs."""
        if captioner is None:
            yield from (Caption.of_failure(clip, str(clip.error)) for clip in self.clips)
            return
        output, folder = self.destination.output, self.destination.journal
        if output is None or folder is None:
            yield from captions(self.clips, captioner, **captioning)
            return
        first = self.clips[0]
        settings = {
            **captions((), captioner, **captioning).settings,
            "range": {"start": first.start, "end": first.end},
        }
        journal = stack.enter_context(CaptionJournal(folder, settings, output, self.destination.overwrite))
        pending = self._pending(journal)
        others = self._others(journal)
        named = {self._relative(clip.name) for clip in self.clips}
        before = [line for line in journal.lines.values() if line["file"] in named and "segments" not in line]
        summary.num_before = len(before) + len(others)
        if summary.num_before:
            done = (
                f"{summary.num_before} segments"
                if self.segments
                else (f"{summary.num_before} of {len(self.clips) + len(others)} clips")
            )
            self.report(f"{done} have their captions for {output} already.")
        of_clips = self._of_clips if self.segments is None else self._of_films
        yield from of_clips(journal, pending, captioner, captioning)
        yield from map(_caption, others)

    def _of_clips(
        self,
        journal: CaptionJournal,
        pending: list[int],
        captioner: VideoCaptioningPipeline,
        captioning: dict[str, Any],
    ) -> Iterator[Caption]:
        """The caption of each clip: those that the journal lacks are made, and written there."""
        stream = iter(captions(self.clips, captioner, only=pending, **captioning))
        remaining = set(pending)
        for number, clip in enumerate(self.clips):
            name = self._id(clip)
            if number in remaining:
                caption = next(stream)
                with self._continuing():
                    journal.append([_line(name, self._relative(clip.name), caption)])
            yield _caption({**journal.lines[name], "path": clip.name})

    def _of_films(
        self,
        journal: CaptionJournal,
        pending: list[int],
        captioner: VideoCaptioningPipeline,
        captioning: dict[str, Any],
    ) -> Iterator[Caption]:
        """
        The captions of each film's segments, in the order of time. At the end of a film the journal gets a line with
        the number of its segments, so that a later run need not open it.
        """

        def is_done(segment: Clip) -> bool:
            return self._id(segment) in journal.lines

        done: dict[str, list[Caption]] = {}
        for line in journal.lines.values():
            if "segments" not in line:
                done.setdefault(line["file"], []).append(_caption(line))
        stream = iter(captions(self.clips, captioner, only=pending, is_done=is_done, **captioning))
        caption, remaining = next(stream, None), set(pending)
        for number, film in enumerate(self.clips):
            file, num_segments = self._relative(film.name), 0
            before = deque(sorted(done.pop(file, []), key=lambda each: each.start or 0.0))
            while before or (number in remaining and caption is not None and caption.clip == film.name):
                num_segments += 1
                if before and (
                    caption is None or caption.clip != film.name or (before[0].start or 0.0) < (caption.start or 0.0)
                ):
                    yield dataclasses.replace(before.popleft(), clip=film.name)
                    continue
                assert caption is not None
                name = self._id(Clip(None, caption.start, caption.end, film.name))
                with self._continuing():
                    journal.append([_line(name, file, caption)])
                yield _caption(journal.lines[name])
                caption = next(stream, None)
            if number in remaining and film.error is None and self._id(film) not in journal.lines:
                end = _line(self._id(film), file, Caption(film.name, film.start, film.end))
                with self._continuing():
                    journal.append([{**end, "segments": num_segments}])

    def _pending(self, journal: CaptionJournal) -> list[int]:
        """
        Numbers of the clips to caption: new ones, those that failed, of which not all segments are done, and whose file
        has changed.
        """
        lines = journal.lines.values()
        done = {line["file"] for line in lines if line["caption"] is not None}
        failed = {line["file"] for line in lines if line["caption"] is None and "segments" not in line}
        clips = {self._relative(clip.name): clip for clip in self.clips}

        def is_outdated(line: dict[str, Any]) -> bool:
            clip = clips.get(line["file"])
            if clip is not None and line["size"] != _file_size(clip.name):
                return True
            return line["caption"] is None and ("segments" not in line or line["file"] in failed)

        journal.remove(is_outdated)
        pending = [number for number, clip in enumerate(self.clips) if self._id(clip) not in journal.lines]
        names = [self.clips[number].name for number in pending]
        self._outdated = {name for name in names if self._relative(name) in done}
        strange = [
            str(file)
            for number in pending
            if (clip := self.clips[number]).error is None and clip.name not in self._outdated
            for file in self._files_beside(clip)
            if file.exists()
        ]
        if strange and not self.destination.overwrite:
            raise ValueError(
                f"{first_names(strange)} would be replaced, and there is no record of how that was made: --overwrite"
                " replaces such files; without --output, their clips are skipped."
            )
        return pending

    def _others(self, journal: CaptionJournal) -> list[dict[str, Any]]:
        """Lines of clips that were captioned into the same output before, are not named now, and still exist."""
        named = {self._relative(clip.name) for clip in self.clips}
        folder = journal.folder.parent
        others = [
            line
            for line in journal.lines.values()
            if line["file"] not in named
            and "segments" not in line
            and (is_url(line["file"]) or (folder / line["file"]).exists())
        ]
        writer = make_writer(self.destination.output_format, self.destination.output)
        if others and writer.is_of_one_video:
            raise ValueError(
                f"{self.destination.output} holds the captions of {others[0]['path']}: name another --output, or start"
                " over with --overwrite."
            )
        return others

    def _relative(self, name: str) -> str:
        """The path of a clip from the folder of the output, so that both can be moved; a URL as it is."""
        output = self.destination.output
        if is_url(name) or output is None:
            return name
        try:
            return os.path.relpath(name, output.parent)
        except ValueError:  # another drive
            return os.path.abspath(name)

    def _id(self, clip: Clip) -> str:
        """The relative path and, as in a media fragment URI, the range."""
        times = ["" if each is None else f"{round(each, 6):.15g}" for each in (clip.start, clip.end)]
        return self._relative(clip.name) + ("" if times == ["", ""] else f"#t={','.join(times)}")

    # --- What becomes of a caption ------------------------------------------------------------------------------------

    def _judged(self, caption: Caption) -> Row:
        minimum = self.destination.min_score
        if caption.text is None:
            return Row(caption)
        if minimum is not None and caption.score is not None and caption.score < minimum:
            return Row(caption, rejected=f"score {caption.score:.4g} is below {minimum:g}")
        if self.destination.skip_duplicates:
            first = self._first_with.setdefault(_key(caption.clip, caption.text), caption.clip)
            return Row(caption, duplicate_of=None if first == caption.clip else first)
        return Row(caption)

    def _with_files_beside(self, rows: Iterable[Row], summary: Summary) -> Iterator[Row]:
        """The rows, after whose clip, or after the last of whose film, the files beside it are written."""
        for _, rows_of_clip in itertools.groupby(rows, key=lambda row: row.caption.clip):
            of_film = []
            for row in rows_of_clip:
                if self.segments is None:
                    self._write_beside([row], summary)
                else:
                    of_film.append(row)
                yield row
            self._write_beside(of_film, summary)

    def _write_beside(self, rows: list[Row], summary: Summary) -> None:
        """Files beside the clip to which the rows belong."""
        rows = [row for row in rows if row.text]
        if not rows:
            return
        caption = rows[0].caption
        may_replace = self.destination.overwrite or caption.clip in self._outdated
        for kind in self.destination.write_beside:
            try:
                file = beside(caption.clip, kind)
                if may_replace or not file.exists():
                    write_text(file, beside_document(kind, rows, with_times=self.segments is not None))
            except (OSError, ValueError) as error:
                self.report(f"{caption.clip}: {one_line(error)}")
                summary.fail(caption.clip, "not_written")

    def _files_beside(self, clip: Clip) -> list[Path]:
        return [] if is_url(clip.name) else [beside(clip.name, kind) for kind in self.destination.write_beside]

    def _is_skipped(self, clip: Clip) -> bool:
        """Whether the files beside a clip are all that is wanted of it, and exist."""
        files = self._files_beside(clip)
        if self.destination.overwrite or self.destination.output is not None or clip.error is not None or not files:
            return False
        if not all(file.exists() for file in files):
            return False
        for text in filter(None, map(read_beside, files)):
            self._first_with.setdefault(_key(clip.name, text), clip.name)
        return True


def _absolute(name: str) -> str:
    return name if is_url(name) else os.path.abspath(name)


def _key(clip: str, text: str) -> tuple[str, str]:
    """Captions are duplicates if they have this in common: the folder of their clips, and the text."""
    return os.path.dirname(_absolute(clip)), one_line_text(text)


def _file_size(name: str) -> int | None:
    """Bytes of a clip's file, which reveal another file of the same name; `None` if unknown."""
    try:
        return None if is_url(name) else os.stat(name).st_size
    except OSError:
        return None


def _line(name: str, file: str, caption: Caption) -> dict[str, Any]:
    """A caption as a line of the journal."""
    return {
        "id": name,
        "file": file,
        "path": caption.clip,
        "start": caption.start,
        "end": caption.end,
        "caption": caption.text,
        "score": rounded(caption.score),
        "error": caption.error,
        "error_kind": caption.error_kind,
        "duration": caption.duration,
        "alternatives": [[text, rounded(score)] for text, score in caption.alternatives],
        "size": _file_size(caption.clip),
    }


def _caption(line: dict[str, Any]) -> Caption:
    """The caption that `_line` was made of."""
    return Caption(
        clip=line["path"],
        start=line["start"],
        end=line["end"],
        text=line["caption"],
        score=line["score"],
        error=line["error"],
        alternatives=tuple(Alternative(*each) for each in line["alternatives"]),
        duration=line["duration"],
        error_kind=line["error_kind"],
    )


__all__ = ["Destination", "Labelling", "Summary"]

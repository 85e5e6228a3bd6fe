"""Readers for the annotation files of six benchmarks."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swinbert.training.prepare.documents import INNER_PATH, AnnotationError, Node, read_lines
from swinbert.training.splits import SPLIT_WORDS, splits_in_name
from swinbert.utils.files import inner_path
from swinbert.utils.text import first_names, preview

SPLITS = ("train", "validation", "test", "private_test")
# The official splits by number (6,513, 497 and 2,990 videos): the first number after each.
_MSRVTT_ENDS = {"train": 6513, "validation": 7010, "test": 10000}
_CUT = re.compile(r"(?P<source>.+)_(?P<start>\d+(\.\d+)?)_(?P<end>\d+(\.\d+)?)")


@dataclass
class Clip:
    """
    A clip as annotated.

    Args:
        video_id: the id of the clip, unique in its split.
        split: one of `SPLITS`.
        captions: as annotated; empty in a test set whose captions are not published.
        clip_file: the name of a file that would hold exactly this clip.
        source: the name of the video that the clip is cut from.
        start, end: seconds in `source`.
        annotator: who described the video, where several did so on their own.
        frames: reads decoded frames as JPEG files, if there is no video.
    """

    video_id: str
    split: str
    captions: list[str]
    clip_file: str | None = None
    source: str | None = None
    start: float | None = None
    end: float | None = None
    annotator: str | None = None
    frames: Callable[[], list[bytes]] | None = None


@dataclass
class Annotations:
    """Clips in the order of the files, and remarks for the report."""

    clips: list[Clip]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file, with its split if that was given as an argument."""

    path: Path
    explicit_split: str | None = None

    @classmethod
    def parse(cls, argument: str | Path) -> "AnnotationFile":
        """Parses `FILE` or `SPLIT=FILE`; raises `FileNotFoundError` if there is no such file."""
        split, equals, path = str(argument).partition("=")
        has_split = bool(equals) and split in SPLITS
        file = cls(Path(path if has_split else argument).expanduser(), split if has_split else None)
        if not file.path.is_file():
            raise FileNotFoundError(f"There is no annotation file {file.path}.")
        return file

    @property
    def split(self) -> str:
        """The given split, else the one that the file name tells: `validation` for `tvc_val_release.jsonl`."""
        if self.explicit_split:
            return self.explicit_split
        splits = set(splits_in_name(self.path.name))
        if len(splits) != 1:
            raise ValueError(
                f"{self.path}: expected a file name that tells the split (train, val or test), found"
                f" {self.path.name!r}. Write SPLIT={self.path}, where SPLIT is one of {', '.join(SPLITS)}."
            )
        (split,) = splits
        is_private = "private" in re.split("[^a-z]+", self.path.name.lower())
        return "private_test" if split == "test" and is_private else split


def cut_name(name: str) -> tuple[str | None, float | None, float | None]:
    """Splits `<video>_<start>_<end>` into video, start and end in seconds; any other name gives three times `None`."""
    match = _CUT.fullmatch(name)
    return (match["source"], float(match["start"]), float(match["end"])) if match else (None, None, None)


def _read_split(word: Node) -> str:
    return SPLIT_WORDS.get(word.string().lower()) or word.fail(f"a split, {' or '.join(SPLIT_WORDS)}")


def read_msrvtt(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads MSRVTT: `{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}`, in one or several
    files. Without `split`, the number of a video gives it: video0 to video6512 are for training, video6513 to video7009
    for validation, video7010 to video9999 for testing.
    """
    documents = [Node.read(file.path) for file in files]
    clips: dict[str, Clip] = {}
    for document in documents:
        for video in document["videos"].list():
            name = video["video_id"].name()
            split = video.get("split")
            if name in clips:
                video["video_id"].fail("listed once")
            clips[name] = Clip(
                name, _read_split(split) if split else _msrvtt_split(video["video_id"]), [], clip_file=name
            )
    for document in documents:
        for sentence in document["sentences"].list():
            name = sentence["video_id"].name()
            if name not in clips:
                sentence["video_id"].fail("a `video_id` of `videos`")
            clips[name].captions.append(sentence["caption"].string())
    return Annotations(list(clips.values()))


def _msrvtt_split(video_id: Node) -> str:
    match = re.fullmatch(r"video(\d{1,4})", video_id.name())
    expected = "video0 to video9999, which gives the split (or add a field `split`)"
    number = int(match[1]) if match else video_id.fail(expected)
    return next(split for split, end in _MSRVTT_ENDS.items() if number < end)


def read_msvd(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads MSVD: lines `<youtube id>_<start>_<end> caption` and, for each split, a file that lists its clips, one name
    per line; or JSON, `{split: [{"video", "caption"}]}`.
    """
    clips: list[Clip] = []
    captions: dict[str, list[str]] = {}
    lists: list[tuple[AnnotationFile, list[tuple[int, str]]]] = []
    for file in files:
        if file.path.suffix.lower() == ".json":
            clips += _read_msvd_json(file.path)
            continue
        # The published file of captions begins with comments.
        lines = [(number, line) for number, line in read_lines(file.path) if not line.startswith("#")]
        if all(len(line.split()) == 1 for _, line in lines):
            lists.append((file, lines))
            continue
        for number, line in lines:
            name, _, caption = line.replace("\t", " ").partition(" ")
            if not _CUT.fullmatch(name):
                raise AnnotationError(file.path, number, "`<youtube id>_<start>_<end> caption`", preview(line))
            captions.setdefault(name, []).append(caption.strip())
    if captions and not lists:
        raise ValueError(
            "MSVD: expected the captions and, for each split, a file that lists its clips, one name per line;"
            f" found no such list among {', '.join(str(file.path) for file in files)}."
        )
    for file, lines in lists:
        for number, line in lines:
            inner = inner_path(line)
            if inner is None:
                raise AnnotationError(file.path, number, INNER_PATH, preview(line))
            clip = _msvd_clip(file.split, inner)
            clip.captions += captions.get(clip.video_id, ())
            clips.append(clip)
    listed = {clip.video_id for clip in clips}
    unlisted = [name for name in captions if name not in listed]
    notes = [f"{len(unlisted)} clips are in no split list: {first_names(unlisted)}"] if unlisted else []
    return Annotations(clips, notes)


def _read_msvd_json(file: Path) -> list[Clip]:
    clips: dict[tuple[str, str], Clip] = {}
    for split, entries in Node.read(file).items():
        if split not in SPLIT_WORDS:
            entries.fail(f"under the key of a split ({', '.join(SPLIT_WORDS)})")
        for entry in entries.list():
            clip = _msvd_clip(SPLIT_WORDS[split], entry["video"].name())
            caption = entry["caption"]
            captions = caption.list() if isinstance(caption.value, list) else [caption]
            clips.setdefault((clip.split, clip.video_id), clip).captions += [each.string() for each in captions]
    return list(clips.values())


def _msvd_clip(split: str, name: str) -> Clip:
    name = re.sub(r"\.(avi|mp4)$", "", name, flags=re.IGNORECASE)
    source, start, end = cut_name(name)
    return Clip(name, split, [], clip_file=name, source=source, start=start, end=end)


def read_vatex(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads VATEX: `[{"videoID", "enCap": [...], "chCap": [...]}]`, one file per split. Chinese captions are ignored; the
    private test set has no captions.
    """
    clips = []
    for file in files:
        for entry in Node.read(file.path).list():
            name, captions = entry["videoID"].name(), entry.get("enCap")
            english = [caption.string() for caption in captions.list()] if captions else []
            source, start, end = cut_name(name)
            clips.append(Clip(name, file.split, english, clip_file=name, source=source, start=start, end=end))
    return Annotations(clips)


def read_youcook2(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads YouCook2: `{"database": {video: {"subset", "annotations": [{"id", "segment": [start, end], "sentence"}]}}}`. A
    video file named `<video>_<id>` holds one segment, one named `<video>` holds all of them.
    """
    clips = []
    for file in files:
        for video, entry in Node.read(file.path)["database"].items():
            source = inner_path(video) or entry.fail(f"under {INNER_PATH}")
            split = _read_split(entry["subset"])
            for segment in entry["annotations"].list():
                name = f"{source}_{segment['id'].name()}"
                start, end = segment["segment"].span()
                sentence = segment.get("sentence")
                captions = [sentence.string()] if sentence else []
                clips.append(Clip(name, split, captions, clip_file=name, source=source, start=start, end=end))
    return Annotations(clips)


def read_tvc(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads TVC: lines `{"vid_name", "ts": [start, end], "clip_id", "descs": [{"desc"}]}`, one file per split; the test
    set has no `descs`.
    """
    clips = []
    for file in files:
        for number, line in read_lines(file.path):
            entry = Node.parse(file.path, line, number)
            source, descriptions = entry["vid_name"].name(), entry.get("descs")
            start, end = entry["ts"].span()
            captions = [each["desc"].string() for each in descriptions.list()] if descriptions else []
            name = f"{source}_{entry['clip_id'].name()}"
            clips.append(Clip(name, file.split, captions, clip_file=name, source=source, start=start, end=end))
    return Annotations(clips)


def read_activitynet(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Reads ActivityNet Captions: `{video: {"duration", "timestamps": [[start, end]], "sentences"}}`, a file for each
    split, and for each annotator of the validation videos: where a split has several files, the name of its file is the
    `annotator` of a clip. The id of a clip is `<video>_<number>`, counted through the files of a split.
    """
    annotators: dict[str, Counter[str]] = {}  # split -> name of a file -> its clips
    numbers: Counter[tuple[str, str]] = Counter()
    clips = []
    for file in files:
        counts = annotators.setdefault(file.split, Counter())
        if file.path.stem in counts:
            raise ValueError(f"{file.path}: expected one file for each annotator, found a second {file.path.stem}.")
        counts[file.path.stem] = 0
        for video, entry in Node.read(file.path).items():
            source = inner_path(video) or entry.fail(f"under {INNER_PATH}")
            for span, sentence in spans_and_sentences(entry):
                number = numbers[file.split, source]
                clip = Clip(f"{source}_{number}", file.split, [sentence], None, source, *span.span(), file.path.stem)
                clips.append(clip)
                numbers[file.split, source] += 1
                counts[file.path.stem] += 1
    notes = []
    for split, counts in annotators.items():
        if len(counts) > 1:
            listed = ", ".join(f"{name} ({number} clips)" for name, number in counts.items())
            notes.append(f"{split} has {len(counts)} annotators: {listed}.")
    for clip in clips:
        if len(annotators[clip.split]) == 1:
            clip.annotator = None
    return Annotations(clips, notes)


def spans_and_sentences(entry: Node) -> list[tuple[Node, str]]:
    """The events of a video of ActivityNet Captions: start and end as a list of two numbers, and what happens."""
    spans, sentences = entry["timestamps"].list(), entry["sentences"].list()
    if len(spans) != len(sentences):
        entry.fail(f"an object with as many `timestamps` as `sentences`, not {len(spans)} and {len(sentences)},")
    return [(span, sentence.string()) for span, sentence in zip(spans, sentences, strict=True)]

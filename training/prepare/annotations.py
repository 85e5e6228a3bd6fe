"""The annotation files of the five benchmarks: what they say of each clip, and which split it is in."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swinbert.training.prepare.documents import INNER_PATH, AnnotationError, Node, inner_path, read_lines
from swinbert.utils.text import first_names, preview

SPLITS = ("train", "validation", "test", "private_test")
# The words of file names, and of the fields `split` and `subset`, that stand for a split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Official: video0 to video6512, the next 497, the last 2990.
_MSRVTT_ENDS = {"train": 6513, "validation": 7010, "test": 10000}
_CUT = re.compile(r"(?P<whole>.+)_(?P<start>\d+(\.\d+)?)_(?P<end>\d+(\.\d+)?)")


@dataclass
class Clip:
    """
    One clip as its annotations describe it.

    Args:
        video_id: unique in its split.
        split: one of `SPLITS`.
        captions: as annotated; none in a test set whose captions are kept secret.
        cut: name of the file that holds this clip and no more, if there may be one.
        whole: name of the video that it is cut from, if there may be one.
        start, end: seconds in the whole video.
        frames: reads frames that were decoded beforehand, as JPEG files; then there is no video.
    """

    video_id: str
    split: str
    captions: list[str]
    cut: str | None = None
    whole: str | None = None
    start: float | None = None
    end: float | None = None
    frames: Callable[[], list[bytes]] | None = None


@dataclass
class Annotations:
    """Clips in the order of the files, and what a reader of the report should know besides."""

    clips: list[Clip]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AnnotationFile:
    """A file, and the split that it was said to be of."""

    path: Path
    given_split: str | None = None

    @classmethod
    def parse(cls, argument: str | Path) -> "AnnotationFile":
        """From `FILE` or `SPLIT=FILE`."""
        split, equals, path = str(argument).partition("=")
        named = bool(equals) and split in SPLITS
        file = cls(Path(path if named else argument).expanduser(), split if named else None)
        if not file.path.is_file():
            raise FileNotFoundError(f"There is no annotation file {file.path}.")
        return file

    @property
    def split(self) -> str:
        """As given, else as its name says: `tvc_val_release.jsonl` is of `validation`."""
        if self.given_split:
            return self.given_split
        words = re.split("[^a-z]+", self.path.name.lower())
        splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(splits) != 1:
            raise ValueError(
                f"{self.path}: expected the name of the file to tell its split (train, val or test), found"
                f" {self.path.name!r}. Write SPLIT={self.path}, with a split of {', '.join(SPLITS)}."
            )
        (split,) = splits
        return "private_test" if split == "test" and "private" in words else split


def cut_name(name: str) -> tuple[str | None, float | None, float | None]:
    """(whole video, start, end) of a name `<video>_<start>_<end>`, all `None` of any other."""
    match = _CUT.fullmatch(name)
    return (match["whole"], float(match["start"]), float(match["end"])) if match else (None, None, None)


def _split_word(word: Node) -> str:
    return _SPLIT_WORDS.get(word.string().lower()) or word.fail(f"a split, {' or '.join(_SPLIT_WORDS)}")


def read_msrvtt(files: Sequence[AnnotationFile]) -> Annotations:
    """
    `{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}`, of one or several files. Videos
    without `split` are split by their order: video0 to video6512, video6513 to video7009, video7010 to video9999.
    """
    documents = [Node.read(file.path) for file in files]
    clips: dict[str, Clip] = {}
    for document in documents:
        for video in document["videos"].list():
            name = video["video_id"].name()
            split = video.get("split")
            if name in clips:
                video["video_id"].fail("a video that was not listed before")
            clips[name] = Clip(name, _split_word(split) if split else _msrvtt_split(video["video_id"]), [], cut=name)
    for document in documents:
        for sentence in document["sentences"].list():
            name = sentence["video_id"].name()
            if name not in clips:
                sentence["video_id"].fail("a `video_id` of `videos`")
            clips[name].captions.append(sentence["caption"].string())
    return Annotations(list(clips.values()))


def _msrvtt_split(video_id: Node) -> str:
    match = re.fullmatch(r"video(\d{1,4})", video_id.name())
    expected = "video0 to video9999, whose order gives the split (or a field `split` beside it)"
    number = int(match[1]) if match else video_id.fail(expected)
    return next(split for split, end in _MSRVTT_ENDS.items() if number < end)


def read_msvd(files: Sequence[AnnotationFile]) -> Annotations:
    """
    Lines `<youtube id>_<start>_<end> caption` and, for each split, a file with the names of its clips, one on a line;
    or JSON, `{split: [{"video", "caption"}]}`.
    """
    clips: list[Clip] = []
    captions: dict[str, list[str]] = {}
    lists: list[tuple[AnnotationFile, list[tuple[int, str]]]] = []
    for file in files:
        if file.path.suffix.lower() == ".json":
            clips += _read_msvd_json(file.path)
            continue
        # The published file of captions begins with remarks.
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
            "MSVD: expected, besides the captions, for each split a file that lists its clips, one name on a line;"
            f" found none in {', '.join(str(file.path) for file in files)}."
        )
    for file, lines in lists:
        for number, line in lines:
            name = inner_path(line)
            if name is None:
                raise AnnotationError(file.path, number, INNER_PATH, preview(line))
            clip = _msvd_clip(file.split, name)
            clip.captions += captions.get(clip.video_id, ())
            clips.append(clip)
    listed = {clip.video_id for clip in clips}
    left = [name for name in captions if name not in listed]
    return Annotations(clips, [f"{len(left)} clips are in no split list: {first_names(left)}"] if left else [])


def _read_msvd_json(file: Path) -> list[Clip]:
    clips: dict[tuple[str, str], Clip] = {}
    for split, entries in Node.read(file).items():
        if split not in _SPLIT_WORDS:
            entries.fail(f"under the name of a split ({', '.join(_SPLIT_WORDS)})")
        for entry in entries.list():
            clip = _msvd_clip(_SPLIT_WORDS[split], entry["video"].name())
            caption = entry["caption"]
            many = caption.list() if isinstance(caption.value, list) else [caption]
            clips.setdefault((clip.split, clip.video_id), clip).captions += [each.string() for each in many]
    return list(clips.values())


def _msvd_clip(split: str, name: str) -> Clip:
    name = re.sub(r"\.(avi|mp4)$", "", name, flags=re.IGNORECASE)
    whole, start, end = cut_name(name)
    return Clip(name, split, [], cut=name, whole=whole, start=start, end=end)


def read_vatex(files: Sequence[AnnotationFile]) -> Annotations:
    """
    `[{"videoID", "enCap": [...], "chCap": [...]}]`, a file for each split. Chinese captions are not read; the private
    test set has no captions.
    """
    clips = []
    for file in files:
        for entry in Node.read(file.path).list():
            name, captions = entry["videoID"].name(), entry.get("enCap")
            english = [caption.string() for caption in captions.list()] if captions else []
            whole, start, end = cut_name(name)
            clips.append(Clip(name, file.split, english, cut=name, whole=whole, start=start, end=end))
    return Annotations(clips)


def read_youcook2(files: Sequence[AnnotationFile]) -> Annotations:
    """
    `{"database": {video: {"subset", "annotations": [{"id", "segment": [start, end], "sentence"}]}}}`. A file named
    `<video>_<id>` holds one segment, a file named `<video>` all of them.
    """
    clips = []
    for file in files:
        for video, entry in Node.read(file.path)["database"].items():
            whole = inner_path(video) or entry.fail(f"under {INNER_PATH}")
            split = _split_word(entry["subset"])
            for segment in entry["annotations"].list():
                name = f"{whole}_{segment['id'].name()}"
                start, end = segment["segment"].span()
                sentence = segment.get("sentence")
                captions = [sentence.string()] if sentence else []
                clips.append(Clip(name, split, captions, cut=name, whole=whole, start=start, end=end))
    return Annotations(clips)


def read_tvc(files: Sequence[AnnotationFile]) -> Annotations:
    """Lines `{"vid_name", "ts": [start, end], "clip_id", "descs": [{"desc"}]}`, a file for each split; no `descs` in
    the test set."""
    clips = []
    for file in files:
        for number, line in read_lines(file.path):
            entry = Node.parse(file.path, line, number)
            whole, descriptions = entry["vid_name"].name(), entry.get("descs")
            start, end = entry["ts"].span()
            captions = [each["desc"].string() for each in descriptions.list()] if descriptions else []
            name = f"{whole}_{entry['clip_id'].name()}"
            clips.append(Clip(name, file.split, captions, cut=name, whole=whole, start=start, end=end))
    return Annotations(clips)

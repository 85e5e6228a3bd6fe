"""Targets: damaged datasets, annotations of benchmarks and files of captions, through everything that reads them."""

import base64
import io
import json
import struct
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from swinbert.endurance.cases import READ, REFUSED, Case, Finding
from swinbert.endurance.mutation import draw_bytes, draw_text, mutate


@dataclass(frozen=True)
class _Layout:
    """
    Files that belong together, of which one is mutated.

    Args:
        files: name -> content.
        read: reads them from the folder in which they are.
        mutated: names of those that are mutated; by default all.
    """

    files: dict[str, bytes]
    read: Callable[[Path, Random], Any]
    mutated: tuple[str, ...] = field(default=())


def _document(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _lines(*values: Any) -> bytes:
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values).encode()


def check_reason(error: Exception) -> None:
    """
    A reader refuses with an error of its own, or of the system; those of the libraries below say nothing about the file
    to those who only see it.
    """
    module = type(error).__module__.partition(".")[0]
    if not (type(error) is ValueError or module == "swinbert" or isinstance(error, OSError)):
        raise error
    if len(str(error)) < 20:
        raise Finding("unclear message", type(error).__name__, str(error)) from error


class DocumentTarget:
    """
    Args:
        name: of the target.
        layouts: name -> layout.
        work: of the files that are written.
    """

    def __init__(self, name: str, layouts: Callable[[], dict[str, _Layout]], work: Path):
        self.name, self.known, self.is_of_videos = name, frozenset[str](), False
        self._layouts, self._work = cache(layouts), work

    def draw(self, random: Random) -> Case:
        layouts = self._layouts()
        name = random.choice(list(layouts))
        layout = layouts[name]
        file = random.choice(layout.mutated or tuple(layout.files))
        content = layout.files[file]
        is_text = Path(file).suffix not in (".tar", ".parquet", ".8b")
        draw = draw_text if is_text else draw_bytes
        return Case(self.name, f"{name}/{file}", draw(random, content), {"seed": random.getrandbits(32)})

    def content(self, case: Case) -> bytes:
        name, _, file = case.sample.partition("/")
        return mutate(self._layouts()[name].files[file], case.operations)

    def run(self, case: Case) -> str:
        name, _, mutated = case.sample.partition("/")
        layout = self._layouts()[name]
        with tempfile.TemporaryDirectory(dir=self._work) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for file, content in layout.files.items():
                path = Path(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.content(case) if file == mutated else content)
            try:
                layout.read(Path(folder), Random(case.settings["seed"]))
            except (ValueError, OSError) as error:
                check_reason(error)
                return REFUSED
        return READ


# --- Datasets ---------------------------------------------------------------------------------------------------------


def dataset_layouts(clip: bytes) -> dict[str, _Layout]:
    """Datasets of the clip, see `training/data/sources.py`."""
    rows = [
        {"file_name": "a.mp4", "captions": ["a man runs", "someone runs"], "split": "train", "video_id": "v1"},
        {"file_name": "b.mp4", "captions": ["a dog"], "start": 0.1, "end": 0.5, "split": "train", "video_id": 2},
        {"file_name": "b.mp4", "caption": "a cat", "start": 0.5, "split": "test"},
    ]
    table = 'file_name,captions,start,end,split\na.mp4,"a man, running",,,train\nb.mp4,"[""a"", ""b""]",0.1,0.5,test\n'
    videos = {"a.mp4": clip, "b.mp4": clip + struct.pack(">I4sI", 12, b"free", 1)}
    texts = {f"{split}/{name}.txt": b"a man runs\n" for split in ("train", "test") for name in ("a", "b")}
    beside = {f"{split}/{name}.mp4": clip for split in ("train", "test") for name in ("a", "b")}
    return {
        "lines": _Layout({"metadata.jsonl": _lines(*rows), **videos}, _read_dataset, ("metadata.jsonl",)),
        "table": _Layout({"metadata.csv": table.encode(), **videos}, _read_dataset, ("metadata.csv",)),
        "parquet": _Layout({"metadata.parquet": _parquet(), **videos}, _read_dataset, ("metadata.parquet",)),
        "beside": _Layout(texts | beside, _read_dataset, tuple(texts)),
        "tar": _Layout({"train-00000-of-00001.tar": _tar(clip)}, _read_dataset),
    }


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    columns = {"file_name": ["a.mp4", "b.mp4"], "captions": [["a man"], ["a dog", "a cat"]], "start": [None, 0.1]}
    pq.write_table(pa.table({**columns, "split": ["train", "test"]}), file)
    return file.getvalue()


def _tar(clip: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (
            ("a.mp4", clip),
            ("a.json", b'{"captions": ["a man"], "start": 0.1, "video_id": 7}'),
            ("b.mp4", clip),
            ("b.txt", b"a dog"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _read_dataset(folder: Path, random: Random) -> None:
    from swinbert.training.data.clip_datasets import refuse_missing
    from swinbert.training.data.doctor import examine
    from swinbert.training.data.sources import clip_name, clip_source, is_stream, load_clips, load_splits

    if random.random() < 0.3:
        str(examine(folder, num_frames=2, workers=0, output=folder / "doctor"))
        return
    for split in load_splits(folder):
        clips = load_clips(folder, split, need_captions=random.random() < 0.5, streaming=random.random() < 0.3)
        if not is_stream(clips):
            refuse_missing(clips)
        for clip in clips:
            clip_name(clip)
            clip_source(clip)


# --- Annotations of benchmarks ----------------------------------------------------------------------------------------


def _prepare(benchmark: str, *annotations: str) -> Callable[[Path, Random], None]:
    def read(folder: Path, random: Random) -> None:
        from swinbert.training.data.sources import load_splits
        from swinbert.training.prepare import prepare

        files = [
            f"{split}={folder / name}" if split else folder / name
            for split, _, name in (each.rpartition("=") for each in annotations)
        ]
        options = {"allow_missing": random.random() < 0.7, "check": random.random() < 0.2}
        report = prepare(benchmark, files, folder / "videos", folder / "made", **options)
        str(report)
        load_splits(folder / "made")  # what it wrote can be read

    return read


def annotation_layouts(clip: bytes) -> dict[str, _Layout]:
    """Annotation files of the benchmarks, see `training/prepare/`."""
    layouts = {
        name: _Layout({**files, **_videos(clip)}, _prepare(benchmark, *arguments), tuple(files))
        for name, benchmark, files, arguments in _benchmarks()
    }
    return layouts


def _videos(clip: bytes) -> dict[str, bytes]:
    return {f"videos/{name}.mp4": clip for name in ("video0", "video7010", "aa_bb_1_2", "v_a")}


def _benchmarks() -> Iterator[tuple[str, str, dict[str, bytes], tuple[str, ...]]]:
    """Layout, benchmark, annotation files, and what of them is named."""
    videos = [{"video_id": "video0", "split": "train"}, {"video_id": "video7010"}]
    sentences = [{"video_id": each["video_id"], "caption": "a man runs"} for each in videos]
    yield "msrvtt", "msrvtt", {"all.json": _document({"videos": videos, "sentences": sentences})}, ("all.json",)
    captions, names = _lines("# remarks", "aa_bb_1_2 a man runs", "aa_bb_1_2 he runs"), _lines("aa_bb_1_2")
    yield "msvd", "msvd", {"captions.txt": captions, "train.txt": names}, ("captions.txt", "train.txt")
    entries = {"train": [{"video": "aa_bb_1_2.avi", "caption": ["a man", "he"]}, {"video": "v_a", "caption": "x y"}]}
    yield "msvd json", "msvd", {"all.json": _document(entries)}, ("all.json",)
    vatex = [{"videoID": "aa_bb_1_2", "enCap": ["a man", "he runs"], "chCap": ["x"]}, {"videoID": "v_a"}]
    yield "vatex", "vatex", {"train.json": _document(vatex)}, ("train.json",)
    segments = [{"id": 0, "segment": [0, 1], "sentence": "cut"}, {"id": 1, "segment": [0.2, 0.6], "sentence": "stir"}]
    database = {"database": {"v_a": {"subset": "training", "annotations": segments}}}
    yield "youcook2", "youcook2", {"all.json": _document(database)}, ("all.json",)
    tvc = {"vid_name": "v_a", "ts": [0.1, 0.5], "clip_id": 7, "descs": [{"desc": "he runs"}]}
    yield "tvc", "tvc", {"train.jsonl": _lines(tvc, {**tvc, "clip_id": 8})}, ("train.jsonl",)
    events = {"v_a": {"duration": 0.9, "timestamps": [[0, 0.4], [0.2, 0.9]], "sentences": ["he runs", "he falls"]}}
    files = {"val_1.json": _document(events), "val_2.json": _document(events)}
    yield "activitynet", "activitynet", files, tuple(files)
    yield "tsv", "tsv", _tsv(), ("train=set.yaml",)
    yield "tsv of frames", "tsv", _tsv_of_frames(), ("train=set.yaml",)


def _rows(*rows: list[str]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _texts_of(key: str) -> list[str]:
    return [key, json.dumps([{"caption": "a man"}, {"caption": "he runs", "start": 0.1, "end": 0.5}])]


def _tsv() -> dict[str, bytes]:
    images, texts = _rows(["k1", "v_a.mp4"], ["k2", "video0.mp4"]), _rows(_texts_of("k1"), _texts_of("k2"))
    second = images.index(b"\n") + 1
    return {
        "set.yaml": b"img: img.tsv\ncaption: text.tsv\ncaption_linelist: lines.tsv\n",
        "img.tsv": images,
        "img.lineidx": f"0\n{second}\n".encode(),
        "text.tsv": texts,
        "text.lineidx.8b": struct.pack("<2Q", 0, texts.index(b"\n") + 1),
        "lines.tsv": b"0\t0\n0\t1\n1\t0\n",
    }


def _tsv_of_frames() -> dict[str, bytes]:
    picture = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 40, 90)).save(picture, "JPEG")
    frames = [base64.b64encode(picture.getvalue()).decode()] * 2
    return {
        "set.yaml": b"img: images.txt\ncaption: [text.tsv]\ncomposite: true\ncaption_linelist: lines.tsv\n",
        "images.txt": b"img.tsv\n",
        "img.tsv": _rows(["k1", "{}", *frames], ["k2", "{}", *frames]),
        "text.tsv": _rows(_texts_of("k1"), _texts_of("k2")),
        "lines.tsv": b"0\t0\t0\n0\t1\t1\n",
    }


# --- Files of captions ------------------------------------------------------------------------------------------------


def caption_layouts() -> dict[str, _Layout]:
    """Predictions and references, see `training/evaluation/`."""
    results = [{"image_id": 1, "caption": "a man runs"}, {"image_id": 2, "caption": "a dog"}]
    images = [{"id": number, "file_name": f"{number}.mp4"} for number in (1, 2)]
    coco = {"images": images, "annotations": [{"id": 9, **each} for each in results]}
    rows = [{"path": "a.mp4", "start": 0.0, "end": 2.0, "caption": "a man runs", "score": -0.5, "error": None}]
    rows += [{"path": "a.mp4", "start": 2.0, "end": 4.5, "caption": "he falls"}, {"path": "b.mp4", "caption": None}]
    lines = [{"file_name": "1", "captions": ["a man", "he"], "split": "test"}, {"file_name": "2", "captions": ["dog"]}]
    spans = [{"sentence": "a man runs", "timestamp": [0, 2]}, {"sentence": "he falls", "timestamp": [1.5, 4]}]
    events = {"v_a": {"duration": 5.0, "timestamps": [[0, 2], [2, 4]], "sentences": ["a man runs", "he falls"]}}
    predicted = _document({"version": "1", "results": {"v_a": spans}})
    films = [{"path": "v_a.mp4", "start": row["start"], "end": row["end"], "caption": "x"} for row in rows[:2]]
    return {
        "coco": _Layout({"predictions": _document(results), "references": _document(coco)}, _score),
        "lines": _Layout({"predictions": _lines(*results), "references": _lines(*lines)}, _score),
        "own": _Layout({"predictions": _lines(*rows), "references": _lines(*rows[:2])}, _score),
        "dense": _Layout({"predictions": predicted, "references": _document(events)}, _score_dense),
        "dense rows": _Layout({"predictions": _lines(*films), "references": _lines(*films)}, _score_dense),
    }


def _score(folder: Path, random: Random) -> None:
    from swinbert.training.evaluation.evaluate import evaluate_file

    options: dict[str, Any] = {"metrics": ["bleu", "rouge_l"], "allow_missing": random.random() < 0.7}
    evaluate_file(folder / "predictions", None, "test", folder / "references", folder / "out", **options)


def _score_dense(folder: Path, random: Random) -> None:
    from swinbert.training.evaluation.dense import evaluate_dense

    options: dict[str, Any] = {"drop_missing": random.random() < 0.5, "split": random.choice((None, "test"))}
    evaluate_dense(folder / "predictions", [folder / "references"], folder / "out", metrics=["bleu"], **options)


def document_targets(clip: Path, work: Path) -> list[DocumentTarget]:
    read = cache(clip.read_bytes)
    return [
        DocumentTarget("dataset", lambda: dataset_layouts(read()), work),
        DocumentTarget("annotations", lambda: annotation_layouts(read()), work),
        DocumentTarget("captions", caption_layouts, work),
    ]

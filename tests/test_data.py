"""Datasets: all sources give the same columns, malformed ones are an error; streams; the cache of frames."""

import csv
import io
import itertools
import json
import tarfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run
import torch
from encoded_clips import encode, read_numbers
from typer.testing import CliRunner

from swinbert import bundled_model
from swinbert.cli import app
from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError
from swinbert.training import train
from swinbert.training.data.clip_datasets import ClipDataset, ClipStream, captions_of, refuse_missing
from swinbert.training.data.frame_cache import FrameCache
from swinbert.training.data.sources import clip_name, clip_source, load_clips, load_splits

# `first` is the number that the first frame of a video shows.
CLIPS = [
    {"name": "a", "first": 100, "captions": ["a one", "the one"], "split": "train"},
    {"name": "b", "first": 200, "captions": "a two", "split": "train", "start": 0.5, "end": 0.9},
    {"name": "c", "first": 300, "captions": ["a three"], "split": "validation", "video_id": "id-c"},
]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """`datasets` caches in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        clip["name"]: encode(folder / f"{clip['name']}.mp4", range(clip["first"], clip["first"] + 20), 10).read_bytes()
        for clip in CLIPS
    }


@pytest.fixture
def processor():
    return SwinBertVideoProcessor(num_frames=4, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def about(clip: dict, **more) -> dict:
    return {**{name: value for name, value in clip.items() if name not in ("name", "first")}, **more}


def write_folder(folder: Path, videos: dict[str, bytes]) -> Path:
    (folder / "train").mkdir(parents=True)  # VideoFolder would take this folder for a split
    lines = []
    for clip in CLIPS:
        (folder / "train" / f"{clip['name']}.mp4").write_bytes(videos[clip["name"]])
        lines.append(about(clip, file_name=f"train/{clip['name']}.mp4"))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


def write_table(folder: Path, videos: dict[str, bytes], kind: str) -> Path:
    """A folder with `metadata.csv` or `metadata.parquet`; captions in the column `text`, lists where there are two."""
    folder.mkdir()
    rows = []
    for clip in CLIPS:
        (folder / f"{clip['name']}.mp4").write_bytes(videos[clip["name"]])
        row = {name: clip.get(name) for name in ("split", "start", "end", "video_id")}
        captions = [clip["captions"]] if isinstance(clip["captions"], str) else clip["captions"]
        rows.append({"file_name": f"{clip['name']}.mp4", **row, "text": captions})
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
        return folder
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        # As pandas writes lists.
        writer.writerows({**row, "text": str(row["text"]) if len(row["text"]) > 1 else row["text"][0]} for row in rows)
    return folder


def write_sidecars(folder: Path, videos: dict[str, bytes]) -> Path:
    """Videos with a text beside each. These say neither `start` nor `end` nor several captions: clip `a` and `b` differ
    from the other sources in that."""
    for clip in CLIPS:
        (folder / clip["split"]).mkdir(parents=True, exist_ok=True)
        (folder / clip["split"] / f"{clip['name']}.mp4").write_bytes(videos[clip["name"]])
        caption = clip["captions"] if isinstance(clip["captions"], str) else clip["captions"][0]
        (folder / clip["split"] / f"{clip['name']}.txt").write_text(caption + "\n")
    return folder


def write_parquet(folder: Path, videos: dict[str, bytes], as_bytes: bool = True) -> Path:
    folder.mkdir()
    rows = []
    for clip in CLIPS:
        content, path = (videos[clip["name"]], None) if as_bytes else (None, f"{clip['name']}.mp4")
        if path:
            (folder / path).write_bytes(videos[clip["name"]])
        captions = [clip["captions"]] if isinstance(clip["captions"], str) else clip["captions"]
        rows.append(about(clip, captions=captions, video={"bytes": content, "path": path}))
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(
        pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), folder / "x.parquet"
    )
    return folder


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def write_shards(folder: Path, videos: dict[str, bytes]) -> Path:
    folder.mkdir()
    for split in ("train", "validation"):
        members = {}
        for clip in (clip for clip in CLIPS if clip["split"] == split):
            members[f"{clip['name']}.mp4"] = videos[clip["name"]]
            if clip["name"] == "b":  # its caption is in a text file
                members["b.txt"] = clip["captions"].encode() + b"\n"
                clip = {name: value for name, value in clip.items() if name != "captions"}
            fields = {name: value for name, value in about(clip).items() if name != "split"}
            members[f"{clip['name']}.json"] = json.dumps(fields).encode()
        write_tar(folder / f"{split}-00000.tar", members)
    return folder


SOURCES = {
    "folder": write_folder,
    "metadata.csv": lambda folder, videos: write_table(folder, videos, "csv"),
    "metadata.parquet": lambda folder, videos: write_table(folder, videos, "parquet"),
    "parquet": write_parquet,
    "parquet of paths": lambda folder, videos: write_parquet(folder, videos, as_bytes=False),
    "tar": write_shards,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_clips(source, streaming, videos, processor, tmp_path):
    dataset = SOURCES[source](tmp_path / "dataset", videos)
    clips = load_clips(dataset, "train", streaming=streaming)
    found = [next(iter(clips))] if streaming else [clips[0]]
    assert found[0]["captions"] == ["a one", "the one"]
    clips = list(clips)
    assert [clip["captions"] for clip in clips] == [["a one", "the one"], ["a two"]]
    assert [(clip["start"], clip["end"]) for clip in clips] == [(None, None), (0.5, 0.9)]
    frames = [processor.load_frames(clip_source(each), start=each["start"], end=each["end"])[0] for each in clips]
    assert [read_numbers(each) for each in frames] == [[100, 106, 112, 119], [205, 206, 208, 210]]
    (third,) = load_clips(dataset, "validation", streaming=streaming)
    assert third["video_id"] == "id-c" and third["captions"] == ["a three"]
    if not streaming:
        assert {name: len(clips) for name, clips in load_splits(dataset).items()} == {"train": 2, "validation": 1}
        with pytest.raises(ValueError, match=r"no split 'test', only \{'train': 2, 'validation': 1\}"):
            load_clips(dataset, "test")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["videofolder", "webdataset", "parquet"])
def test_datasets_of_the_hub(kind, streaming, videos, tmp_path, monkeypatch):
    """A local folder replaces the repository that `datasets` would load."""
    clips = [{"file_name": f"{name}.mp4", "captions": [name, "more"], "split": "train"} for name in "ab"]
    clips += [{"file_name": "c.mp4", "captions": ["c"], "split": "test"}]
    if kind == "webdataset":
        members = {}
        for clip in clips:
            name = clip["file_name"]
            members |= {name: videos[name[0]], f"{name[0]}.json": json.dumps(clip).encode()}
        write_tar(tmp_path / "all.tar", members)
    elif kind == "videofolder":
        for clip in clips:
            (tmp_path / clip["file_name"]).write_bytes(videos[clip["file_name"][0]])
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, clips)))
        monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path)  # where downloaded files would be
    else:
        rows = [{**clip, "video": videos[clip.pop("file_name")[0]]} for clip in clips]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    load = datasets.load_dataset
    files = [str(file) for file in tmp_path.iterdir()]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, streaming: load(kind, data_files={"train": files}, streaming=streaming)
    )
    found = list(load_clips("someone/something", "train", streaming=streaming))
    assert sorted(clip["captions"] for clip in found) == [["a", "more"], ["b", "more"]]
    for clip in found:
        source = clip_source(clip)
        content = Path(source).read_bytes() if kind == "videofolder" else source["bytes"]
        assert content == videos[clip["captions"][0]]
    assert [clip["captions"] for clip in load_clips("someone/something", "test", streaming=streaming)] == [["c"]]


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/hostname", "clips/../../a.mp4", "..\\a.mp4", ".."])
def test_paths_that_leave_the_dataset_are_an_error(name, videos, tmp_path):
    folder = write_folder(tmp_path / "dataset", videos)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "captions": ["a"]}))
    with pytest.raises(ValueError, match="line 1: expected a file within .* leads out"):
        load_clips(folder, "train")
    (folder / "metadata.jsonl").unlink()
    table = pa.Table.from_pylist([{"video": {"bytes": None, "path": name}, "captions": ["a"]}])
    pq.write_table(table, folder / "x.parquet")
    with pytest.raises(ValueError, match="leads out"):
        load_clips(folder, "train")
    with pytest.raises(ValueError, match="leads out"):
        next(iter(load_clips(folder, "train", streaming=True)))


def test_sources_cannot_set_the_columns_of_tar_shards(videos, tmp_path):
    place = {"shard": "/etc/hostname", "offset": 0, "size": 5, "captions": ["a"]}
    folder = write_folder(tmp_path / "dataset", videos)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "train/a.mp4", **place}))
    table = pa.Table.from_pylist([{"video": {"bytes": None, "path": "train/a.mp4"}, **place}])
    (tmp_path / "parquet" / "train").mkdir(parents=True)
    pq.write_table(table, tmp_path / "parquet" / "x.parquet")
    for dataset, streaming in ((folder, False), (tmp_path / "parquet", False), (tmp_path / "parquet", True)):
        (clip,) = load_clips(dataset, "train", streaming=streaming)
        assert clip_source(clip) == f"{dataset}/train/a.mp4"
    members = {"a.mp4": videos["a"], "a.json": json.dumps(place).encode()}
    (clip,) = load_clips(write_tar(tmp_path / "x.tar", members), "train")
    assert clip_source(clip)["bytes"] == videos["a"]


def test_a_hub_dataset_cannot_name_local_files(tmp_path, monkeypatch):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([{"video": "/etc/hostname", "captions": ["a"]}]), file)
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming: load("parquet", data_files=str(file)))
    with pytest.raises(ValueError, match="expected the bytes of a video or a file of the dataset"):
        load_clips("someone/something", "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"captions": 5}, "list of captions, found 5"),
        ({"captions": ["a", None]}, "list of captions"),
        ({"start": "soon"}, "`start` in seconds, found 'soon'"),
        ({"file_name": 7}, "`file_name` to be a path"),
        ([], "an object with `file_name`"),
    ],
)
def test_all_malformed_lines_are_reported(line, message, tmp_path):
    good = {"file_name": "a.mp4", "captions": ["a"]}
    bad = {**good, **line} if isinstance(line, dict) else line
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, [bad, good, bad])))
    with pytest.raises(ValueError, match=f"line 1: .*{message}.*line 3: "):
        load_clips(tmp_path, "train")


@pytest.mark.parametrize("name", ["text", "caption", "sentence", "captions"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_names_of_the_captions(kind, name, videos, tmp_path):
    rows = [{"file_name": "a.mp4", name: 'a "red", blue\nball'}, {"file_name": "b.mp4", name: "a two"}]
    (tmp_path / "a.mp4").write_bytes(videos["a"])
    (tmp_path / "b.mp4").write_bytes(videos["b"])
    if kind == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    else:
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = load_clips(tmp_path, "train")
    assert clips["captions"] == [['a "red", blue\nball'], ["a two"]]
    assert [clip_source(clip) for clip in clips] == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


def test_captions_in_text_files_beside_videos(videos, processor, tmp_path):
    dataset = write_sidecars(tmp_path / "dataset", videos)
    (dataset / "train" / ".a.mp4").write_bytes(b"what a file manager leaves")
    (dataset / "train" / "test drive.MP4").write_bytes(videos["c"])  # folders name splits, files do not
    (dataset / "train" / "test drive.txt").write_text("\ufeffa car")
    clips = load_clips(dataset, "train")
    assert clips["captions"] == [["a one"], ["a two"], ["a car"]]
    frames = [processor.load_frames(clip_source(clip))[0] for clip in clips]
    assert [read_numbers(each)[0] for each in frames] == [100, 200, 300]
    assert load_clips(dataset, "validation")["captions"] == [["a three"]]

    (dataset / "train" / "a.txt").unlink()
    with pytest.raises(ValueError, match="train/a.mp4 of .*expected a list of captions"):
        load_clips(dataset, "train")
    (dataset / "train" / "b.webm").write_bytes(videos["b"])
    with pytest.raises(ValueError, match="b.mp4 and .*b.webm share b.txt"):
        load_clips(dataset, "train")


def test_a_folder_without_splits_is_for_training(videos, tmp_path):
    (tmp_path / "a.mp4").write_bytes(videos["a"])
    (tmp_path / "a.txt").write_text("a one")
    assert list(load_splits(tmp_path)) == ["train"]


def test_metadata_in_folders_of_splits(videos, tmp_path):
    for split, kind in (("train", "csv"), ("val", "parquet")):
        write_table(tmp_path / split, videos, kind)
    table = pq.read_table(tmp_path / "val" / "metadata.parquet").drop(["split"])
    pq.write_table(table, tmp_path / "val" / "metadata.parquet")
    splits = load_splits(tmp_path)
    assert splits["train"]["file_name"] == ["train/a.mp4", "train/b.mp4"]
    # Where rows do not say it, the folder does.
    assert splits["validation"]["file_name"] == ["train/c.mp4", "val/a.mp4", "val/b.mp4", "val/c.mp4"]
    assert clip_source(splits["validation"][1]) == str(tmp_path / "val" / "a.mp4")
    assert load_clips(tmp_path / "val" / "metadata.parquet", "train").num_rows == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name;text\na.mp4;a one", "comma-separated header with `file_name`, found .*file_name;text"),
        ("file_name,text\na.mp4,a one, two", "line 2: 2 fields expected, more found"),
        ("file_name,text,start\na.mp4,a,soon", "line 2: expected `start` in seconds, found 'soon'"),
        ("file_name,text,caption\na.mp4,a,b", "line 2: expected `captions`, found caption and text"),
        ("file_name,text\n../a.mp4,a", "line 2: expected a file within"),
        ('file_name,text\na.mp4,"a', "expected comma-separated values"),
        ("file_name,text\n,a", "line 2: expected an object with `file_name`"),
    ],
)
def test_malformed_csv_is_an_error(text, message, tmp_path):
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_clips(tmp_path, "train")


def test_metadata_in_two_formats_is_an_error(videos, tmp_path):
    write_table(tmp_path / "dataset", videos, "csv")
    (tmp_path / "dataset" / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv"):
        load_clips(tmp_path / "dataset", "train")


@pytest.mark.parametrize("source", ["metadata.csv", "metadata.parquet", "text files"])
def test_commands_read_what_trainers_write(source, videos, tmp_path):
    write = {**SOURCES, "text files": write_sidecars}[source]
    dataset = write(tmp_path / "dataset", videos)
    report = CliRunner().invoke(app, ["doctor", str(dataset)])
    assert "train: 2 clips, 2 decoded" in report.stdout, report.output
    evaluation = ["evaluate", "--model", bundled_model(), "--dataset", str(dataset), "--split", "validation"]
    options = ["--output", str(tmp_path / "evaluation"), "--metrics", "cider", "--num-workers", "0", "--device", "cpu"]
    scores = CliRunner().invoke(app, [*evaluation, *options])
    assert json.loads(scores.stdout.splitlines()[-1])["clips"] == 1, scores.output
    train.main(tiny_run.arguments(dataset, tmp_path / "model", max_steps=1, eval_strategy="no", keep_frames=False))
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_mistyped_folder_is_named_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.raises(FileNotFoundError, match="^There is no such folder: shaeps. Did you mean shapes.*Hub"):
        load_clips("shaeps", "train")


def test_malformed_shards_are_an_error(videos, tmp_path):
    (tmp_path / "text.tar").write_text("this is no tar" * 100)
    with pytest.raises(ValueError, match="text.tar: expected an uncompressed tar"):
        load_clips(tmp_path / "text.tar", "train")
    whole = write_tar(tmp_path / "train.tar", {"a.mp4": videos["a"], "a.txt": b"a one"}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(videos["a"]) // 2])
    with pytest.raises(ValueError, match="cut.tar"):
        load_clips(tmp_path / "cut.tar", "train")
    write_tar(tmp_path / "odd.tar", {"a.txt": b"a one"})
    with pytest.raises(ValueError, match="odd.tar, a: expected a video beside"):
        load_clips(tmp_path / "odd.tar", "train")
    assert load_clips(tmp_path / "train.tar", "train")[0]["captions"] == ["a one"]


def test_folders_without_a_dataset_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metadata.jsonl.*no .parquet.*or .tar.*no video with a .txt"):
        load_clips(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_clips(tmp_path / "nowhere", "train")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no clips"):
        load_clips(tmp_path, "train")


def test_splits_without_captions(tmp_path):
    lines = [{"file_name": "a.mp4", "split": "private"}, {"file_name": "a.mp4", "captions": []}]
    lines += [{"file_name": "b.mp4", "captions": ["b"]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "captions" not in load_clips(tmp_path, "private", need_captions=False).column_names
    with pytest.raises(ValueError, match="no `captions`"):
        load_clips(tmp_path, "private")
    for need in (True, False):  # a clip without captions is an error if others have some
        with pytest.raises(ValueError, match="a.mp4 of .*expected a list of captions"):
            load_clips(tmp_path, "train", need_captions=need)


# ------------------------------------------------------------------------------------------------ unreadable clips


@pytest.fixture
def folder(videos, tmp_path) -> Path:
    """Five clips to train on, of which 1 and 2 are unreadable."""
    names = ["a", "text", "missing", "b", "c"]
    for name in names:
        if name != "missing":
            (tmp_path / f"{name}.mp4").write_bytes(videos.get(name, b"this is no video"))
    lines = [{"file_name": f"{name}.mp4", "captions": [name]} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_an_unreadable_clip_is_an_error(folder, processor):
    dataset = ClipDataset(load_clips(folder, "train"), processor)
    with pytest.raises(VideoDecodeError, match="text.mp4.*expected a video"):
        dataset[1]


def test_unreadable_clips_are_replaced_with_skip_unreadable(folder, processor):
    dataset = ClipDataset(load_clips(folder, "train"), processor, skip_unreadable=True)
    with pytest.warns(UserWarning) as warned:
        example = dataset[1]
    assert example["captions"] == ["b"] and example["index"] == 3
    assert read_numbers(example["frames"])[0] == 200
    messages = [str(each.message) for each in warned]
    assert "text.mp4" in messages[0] and "not_video" in messages[0] and "number 1" in messages[0]
    assert "missing.mp4" in messages[1] and "not_found" in messages[1] and "number 2" in messages[1]
    with pytest.raises(ValueError, match="2 clips in a row are unreadable"):
        ClipDataset(load_clips(folder, "train").select([1, 2]), processor, skip_unreadable=True)[0]


def test_missing_files_are_found_before_training(folder, videos):
    with pytest.raises(FileNotFoundError, match="1 videos .*missing.mp4.*--skip_unreadable"):
        refuse_missing(load_clips(folder, "train"))
    (folder / "missing.mp4").write_bytes(videos["a"])
    refuse_missing(load_clips(folder, "train"))


# --------------------------------------------------------------------------------------------------------- streams


def test_workers_share_a_stream_and_each_pass_is_shuffled(videos, processor, tmp_path):
    names = [f"{number:02d}" for number in range(12)]
    for shard in range(3):
        members = {}
        for name in names[4 * shard : 4 * shard + 4]:
            members |= {f"{name}.mp4": videos["a"] if name != "05" else b"broken", f"{name}.txt": name.encode()}
        write_tar(tmp_path / f"{shard}.tar", members)
    clips = load_clips(tmp_path, "train", streaming=True)
    stream = ClipStream(clips, processor, seed=3, skip_unreadable=True)
    orders = []
    for workers in (1, 2, 2, 4):
        examples = list(itertools.islice(torch.utils.data.DataLoader(stream, None, num_workers=workers), 22))
        if workers == 1:  # the order of several workers is not that of the passes
            first, second = ([each["captions"][0] for each in part] for part in (examples[:11], examples[11:]))
            assert sorted(first) == sorted(second) == [name for name in names if name != "05"]
            assert first != second
        assert len({tuple(each["seed"]) for each in examples}) == len(examples)
        orders.append([each["captions"][0] for each in examples])
    assert orders[1] == orders[2]
    with pytest.raises(ValueError, match="--tokenizer"):
        next(captions_of(clips))


# ----------------------------------------------------------------------------------------------------- frame cache


@pytest.fixture
def clip(videos, tmp_path):
    file = tmp_path / "videos" / "a.mp4"
    file.parent.mkdir()
    encode(file, range(100, 120), 10, scales=(2,))  # 192 x 64, twice the processor's size
    return {"video": {"path": str(file), "bytes": None}, "start": None, "end": None, "captions": ["a"]}


def kept(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_raw_frames_give_the_same_pixels(clip, processor, tmp_path):
    cache = FrameCache(tmp_path / "cache", processor, "raw")
    direct = processor(clip["video"]["path"], return_tensors="pt")["pixel_values_videos"]
    for _ in range(2):  # written, then read
        frames = cache.frames(clip)
        assert frames.shape == (4, 32, 96, 3)
        again = processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        assert torch.equal(again, direct)
    assert len(kept(tmp_path / "cache")) == 1


def test_jpeg_frames_are_close_and_decoded_once(clip, processor, tmp_path, monkeypatch):
    raw = FrameCache(tmp_path / "raw", processor, "raw").frames(clip)
    first = FrameCache(tmp_path / "jpeg", processor).frames(clip)
    assert np.abs(first.astype(int) - raw).mean() < 2
    later = FrameCache(tmp_path / "jpeg", processor)  # another run
    monkeypatch.setattr(processor, "load_frames", None)
    np.testing.assert_array_equal(later.frames(clip), first)
    sizes = [kept(tmp_path / name)[0].stat().st_size for name in ("jpeg", "raw")]
    assert sizes[0] < sizes[1]


def test_everything_that_affects_the_frames_affects_the_name_of_the_file(clip, processor, tmp_path):
    def count(clip, **settings) -> int:
        changed = SwinBertVideoProcessor(**{**processor.to_dict(), **settings})
        FrameCache(tmp_path / "cache", changed).frames(clip)
        return len(kept(tmp_path / "cache"))

    assert count(clip) == count(clip, image_mean=[0, 0, 0]) == 1  # applied after the cache
    assert count({**clip, "start": 0.5}) == 2
    assert count({**clip, "end": 0.5}) == 3
    assert count(clip, num_frames=5) == 4
    assert count(clip, frame_sampling="round") == 5
    assert count(clip, size={"shortest_edge": 48}) == 6
    assert count(clip, video_backend="pyav") == 6  # "auto" is PyAV
    content = Path(clip["video"]["path"]).read_bytes()
    assert count({**clip, "video": {"path": None, "bytes": content}}) == 7
    encode(Path(clip["video"]["path"]), range(200, 230), 10, scales=(2,))
    assert count(clip) == 8
    assert read_numbers(FrameCache(tmp_path / "cache", processor).frames(clip))[0] == 200


@pytest.mark.parametrize("frame_format", ["jpeg", "raw"])
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_damaged_files_are_replaced(clip, processor, tmp_path, frame_format, damage):
    cache = FrameCache(tmp_path / "cache", processor, frame_format)
    wanted = cache.frames(clip)
    (file,) = kept(cache.folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-100], "changed": content, "emptied": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        np.testing.assert_array_equal(cache.frames(clip), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cache.frames(clip), wanted)


def test_training_continues_when_the_disk_is_full(clip, processor, tmp_path, monkeypatch):
    cache = FrameCache(tmp_path / "cache", processor)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="cannot be cached.*No space left"):
        assert len(cache.frames(clip)) == 4
    assert len(cache.frames(clip)) == 4  # without another warning
    assert not kept(tmp_path / "cache")


def test_incompatible_settings_are_an_error(clip, tmp_path, processor):
    with pytest.raises(ValueError, match="random"):
        FrameCache(tmp_path, SwinBertVideoProcessor(frame_sampling="random"))
    with pytest.raises(ValueError, match="jpeg or raw, found 'png'"):
        FrameCache(tmp_path, processor, "png")
    with pytest.raises(ValueError, match="choose one"):
        ClipDataset(
            datasets.Dataset.from_list([clip]), processor, keep_frames=True, frame_cache=FrameCache(tmp_path, processor)
        )


def test_names_of_clips():
    video = {"path": "clips/a.mp4", "bytes": None}
    assert clip_name({"video": video, "file_name": "a.mp4"}) == "a.mp4"
    assert clip_name({"video": video, "start": None, "end": 2.5}) == "clips/a.mp4 [0-2.5 s]"
    assert clip_name({"video": {"path": None, "bytes": b""}, "video_id": "x", "start": 1.0}) == "x [1-end s]"


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A small dataset of moving shapes as parquet files with the bytes of videos."""
    dataset = tiny_run.make_shapes(tmp_path_factory.mktemp("shapes"))
    folder = tmp_path_factory.mktemp("parquet")
    for split, clips in load_splits(dataset).items():
        rows = [{"video": Path(clip["video"]["path"]).read_bytes(), "captions": clip["captions"]} for clip in clips]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_training_on_a_stream_with_a_frame_cache(shapes, tmp_path):
    changes = {"streaming": True, "max_steps": 2, "eval_steps": 2, "save_steps": 2, "keep_frames": False}
    common = {**changes, "frame_cache": tmp_path / "cache", "tokenizer": bundled_model()}
    metrics = train.main(tiny_run.arguments(shapes, tmp_path / "out", **common))
    assert np.isfinite(metrics["train_loss"]) and np.isfinite(metrics["eval_loss"])
    assert len(kept(tmp_path / "cache")) >= 3 + 3  # three clips of evaluation, and at least those of two steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "--max_steps"),
        ({"save_strategy": "epoch"}, "--save_strategy steps"),
        ({"keep_frames": True}, "--keep_frames"),
        ({"objective": "scst"}, "--streaming"),
        ({}, "--tokenizer"),
    ],
)
def test_arguments_that_a_stream_does_not_allow(shapes, tmp_path, changes, message):
    changes = {"keep_frames": False, "streaming": True, **changes}
    with pytest.raises(ValueError, match=message):
        train.main(tiny_run.arguments(shapes, tmp_path / "out", **changes))


def test_training_does_not_start_with_missing_videos(folder, tmp_path):
    changes = {"eval_split": "none", "eval_strategy": "no"}
    with pytest.raises(FileNotFoundError, match="missing.mp4.*--skip_unreadable"):
        train.main(tiny_run.arguments(folder, tmp_path / "out", **changes))

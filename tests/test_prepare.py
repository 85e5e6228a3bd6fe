"""Preparing datasets from miniature annotation files of every format, and from broken ones."""

import base64
import io
import json
import re
import struct

import numpy as np
import pytest
from encoded_clips import encode, numbered_frame, read_numbers
from PIL import Image

from swinbert.processing import decode_video
from swinbert.training.data.clip_datasets import load_clips
from swinbert.training.prepare import AnnotationError, IncompleteDataset, prepare
from swinbert.training.prepare.annotations import AnnotationFile, read_msrvtt
from swinbert.training.prepare.tsv import Tsv
from swinbert.training.prepare.videos import VideoFolder


@pytest.fixture(scope="module")
def clip_bytes(tmp_path_factory):
    """Two seconds, with the frame numbers 0 to 19 drawn into the pictures."""
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", range(20), rate=10).read_bytes()


@pytest.fixture
def videos(tmp_path, clip_bytes):
    """Writes the clip to a folder of videos under all the given names."""

    def make(*names):
        for number, name in enumerate(names):
            file = tmp_path / "videos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            # A box that decoders skip makes every file different.
            file.write_bytes(clip_bytes + struct.pack(">I4sI", 12, b"free", number))
        return tmp_path / "videos"

    return make


def write(path, content):
    """Writes text as it is, other content as JSON, or as JSON lines in a `.jsonl` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def read(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def spans(lines):
    return {line["video_id"]: (line.get("start"), line.get("end")) for line in lines}


# --- The five benchmarks ----------------------------------------------------------------------------------------------


def msrvtt(*videos, split=None, caption="a man runs"):
    return {
        "videos": [{"video_id": name, **({"split": split} if split else {})} for name in videos],
        "sentences": [{"video_id": name, "caption": caption, "sen_id": number} for number, name in enumerate(videos)],
    }


def test_msrvtt_is_split_by_the_order_of_its_videos(tmp_path):
    ends = ("video9999", "video7010", "video7009", "video6513", "video6512", "video0")
    found = read_msrvtt([AnnotationFile(write(tmp_path / "all.json", msrvtt(*ends)))])
    assert {clip.video_id: clip.split for clip in found.clips} == {
        "video0": "train",
        "video6512": "train",
        "video6513": "validation",
        "video7009": "validation",
        "video7010": "test",
        "video9999": "test",
    }


def test_msrvtt_of_two_files_links_to_the_videos(tmp_path, videos, capsys):
    folder = videos("TrainValVideo/video0.mp4", "TrainValVideo/video6513.mp4", "TestVideo/VIDEO7010.MP4")
    training = msrvtt("video0", split="train")
    training["sentences"].append({"video_id": "video0", "caption": "someone runs", "sen_id": 9})
    training["videos"].append({"video_id": "video6513", "split": "validate"})
    training["sentences"].append({"video_id": "video6513", "caption": "a dog", "sen_id": 10})
    files = [write(tmp_path / "train_val.json", training), write(tmp_path / "test.json", msrvtt("video7010"))]
    report = prepare("msrvtt", files, folder, tmp_path / "made" / "msrvtt")
    lines = read(tmp_path / "made" / "msrvtt")
    assert lines[0] == {
        "file_name": "videos/TrainValVideo/video0.mp4",
        "video_id": "video0",
        "split": "train",
        "captions": ["a man runs", "someone runs"],
    }
    assert [line["split"] for line in lines] == ["train", "validation", "test"]
    assert {name: split.written for name, split in report.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    # Relative links: both folders can move together.
    (tmp_path / "moved").mkdir()
    for name in ("made", "videos"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    (clip,) = load_clips(str(tmp_path / "moved" / "made" / "msrvtt"), "test")
    assert read_numbers(decode_video(clip["video"]["path"], num_frames=2)[0]) == [0, 19]
    assert capsys.readouterr().err == ""


MSVD_CAPTIONS = """# remarks of the published file
aa_bb_1_2 a man runs
aa_bb_1_2 someone  runs
cc_0_1 a dog
dd_3_9 a cat
"""


def test_msvd_finds_clips_and_the_videos_they_are_cut_from(tmp_path, videos):
    folder = videos("aa_bb_1_2.avi", "cc.mp4")
    files = [
        write(tmp_path / "AllVideoDescriptions.txt", MSVD_CAPTIONS),
        write(tmp_path / "train_list.txt", "aa_bb_1_2\n"),
        write(tmp_path / "val_list.txt", "cc_0_1.avi\n"),
    ]
    report = prepare("msvd", files, folder)  # into the folder of the videos
    train, validation = read(folder)
    assert train["file_name"] == "aa_bb_1_2.avi" and train["captions"] == ["a man runs", "someone  runs"]
    assert "start" not in train and train["split"] == "train"
    assert validation["file_name"] == "cc.mp4" and validation["split"] == "validation"
    assert (validation["start"], validation["end"]) == (0, 1)
    assert "1 clips are in no split list: dd_3_9" in str(report)
    with pytest.raises(FileExistsError, match="metadata.jsonl"):
        prepare("msvd", files, folder)


def test_msvd_as_json_of_splits(tmp_path, videos):
    entries = [{"video": "aa_1_2.avi", "caption": "a man"}, {"video": "aa_1_2.avi", "caption": "a boy"}]
    file = write(tmp_path / "msvd.json", {"train": entries, "val": [{"video": "bb_1_2", "caption": ["x", "y"]}]})
    prepare("msvd", [file], videos("aa_1_2.avi", "bb_1_2.webm"), tmp_path / "out")
    assert [(line["split"], line["captions"]) for line in read(tmp_path / "out")] == [
        ("train", ["a man", "a boy"]),
        ("validation", ["x", "y"]),
    ]


def test_msvd_needs_split_lists(tmp_path, videos):
    with pytest.raises(ValueError, match="a file that lists its clips"):
        prepare("msvd", [write(tmp_path / "captions.txt", MSVD_CAPTIONS)], videos("cc.mp4"))


def test_vatex_has_english_captions_and_a_secret_test_set(tmp_path, videos):
    name = "-a_b_000001_000002"
    training = [{"videoID": name, "enCap": ["a man", "a boy"], "chCap": ["\u4e00\u4e2a\u7537\u4eba"]}]
    files = [
        write(tmp_path / "vatex_training_v1.0.json", training),
        write(tmp_path / "vatex_public_test_english_v1.1.json", [{"videoID": "c_000000_000010", "enCap": ["a cat"]}]),
        write(tmp_path / "vatex_private_test_without_annotations.json", [{"videoID": "d_000000_000010"}]),
    ]
    report = prepare("vatex", files, videos(f"{name}.mp4", "c_000000_000010.mp4", "d.mp4"), tmp_path / "out")
    lines = read(tmp_path / "out")
    assert [(line["split"], line["captions"]) for line in lines] == [
        ("train", ["a man", "a boy"]),
        ("test", ["a cat"]),
        ("private_test", []),
    ]
    assert spans(lines)["d_000000_000010"] == (0, 10)
    assert "private_test has no captions" in str(report)


def test_youcook2_cuts_segments_from_videos(tmp_path, videos):
    def entry(subset, *segments):
        return {
            "subset": subset,
            "annotations": [
                {"id": number, "segment": [number, number + 0.5], "sentence": f"step {number}"} for number in segments
            ],
        }

    database = {"vid_1": entry("training", 0, 1), "vid_2": entry("validation", 0)}
    file = write(tmp_path / "youcookii_annotations_trainval.json", {"database": database})
    prepare("youcook2", [file], videos("110/vid_1.webm", "113/vid_2_0.mp4"), tmp_path / "out")
    lines = read(tmp_path / "out")
    assert spans(lines) == {"vid_1_0": (0, 0.5), "vid_1_1": (1, 1.5), "vid_2_0": (None, None)}
    assert [line["file_name"] for line in lines] == [*["videos/110/vid_1.webm"] * 2, "videos/113/vid_2_0.mp4"]
    assert [line["split"] for line in lines] == ["train", "train", "validation"]


def test_tvc_has_moments_and_no_test_captions(tmp_path, videos):
    moment = {"vid_name": "castle_s01_clip_00", "duration": 2.0, "ts": [0.25, 1.5], "clip_id": 7}
    descriptions = [{"desc": "she talks", "type": "vt", "desc_id": 1}, {"desc": "she sits", "type": "v", "desc_id": 2}]
    files = [
        write(tmp_path / "tvc_train_release.jsonl", [{**moment, "descs": descriptions}]),
        write(tmp_path / "tvc_test_public_release.jsonl", [{**moment, "vid_name": "house_clip", "clip_id": 8}]),
    ]
    prepare("tvc", files, videos("castle/castle_s01_clip_00.mp4", "house_clip.mp4"), tmp_path / "out")
    train, test = read(tmp_path / "out")
    assert train["captions"] == ["she talks", "she sits"] and (train["start"], train["end"]) == (0.25, 1.5)
    assert train["video_id"] == "castle_s01_clip_00_7"
    assert test["captions"] == [] and test["split"] == "test"


# --- SwinBERT's TSV files ---------------------------------------------------------------------------------------------


def jpeg(number, scale=1):
    content = io.BytesIO()
    Image.fromarray(numbered_frame(number, scale)).save(content, "JPEG", quality=95)
    return content.getvalue()


def frames_row(key, frames):
    return [key, json.dumps({"class": -1}), *(base64.b64encode(frame).decode() for frame in frames)]


def captions_row(key, *captions):
    return [key, json.dumps([{"caption": each} if isinstance(each, str) else each for each in captions])]


def write_tsv(path, rows, index=None):
    """Writes a TSV file, with an index of the kind `text` or `8b` if asked for."""
    lines = ["\t".join(map(str, row)) + "\n" for row in rows]
    write(path, "".join(lines))
    starts = np.cumsum([0, *(len(line.encode()) for line in lines)])[:-1]
    if index == "text":
        path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))
    elif index == "8b":
        path.with_suffix(".lineidx.8b").write_bytes(starts.astype("<u8").tobytes())
    return path


@pytest.fixture
def tsv_set(tmp_path):
    """Writes a set with a single file of videos."""

    def make(rows, captions=None, line_list=None, index=None):
        folder = tmp_path / "annotations"
        write_tsv(folder / "frames" / "train.img.tsv", rows, index)
        text = "img: frames/train.img.tsv\nlabel: train.label.tsv\n"
        if captions is not None:
            write_tsv(folder / "train.caption.tsv", captions, index)
            text += "caption: train.caption.tsv\n"
        if line_list is not None:
            write_tsv(folder / "train.caption.linelist.tsv", line_list)
            text += "caption_linelist: train.caption.linelist.tsv\n"
        return write(folder / "train_32frames.yaml", text)

    return make


@pytest.mark.parametrize("index", [None, "text", "8b"])
def test_tsv_of_paths(tmp_path, videos, tsv_set, index):
    paths = ["datasets/MSVD/videos/aa_1_2.avi", "datasets/MSVD/videos/bb_1_2.avi"]
    captions = [captions_row(paths[0], "caf\u00e9", "a boy"), captions_row(paths[1], "a dog")]
    file = tsv_set([[path, path] for path in paths], captions, index=index)
    prepare("tsv", [file], videos("aa_1_2.avi", "bb_1_2.mp4"), tmp_path / "out")
    assert read(tmp_path / "out") == [
        {"file_name": "videos/aa_1_2.avi", "video_id": paths[0], "split": "train", "captions": ["caf\u00e9", "a boy"]},
        {"file_name": "videos/bb_1_2.mp4", "video_id": paths[1], "split": "train", "captions": ["a dog"]},
    ]


def test_tsv_line_list_chooses_captions(tmp_path, videos, tsv_set):
    rows = [["a", "a.mp4"], ["b", "b.mp4"], ["c", "c.mp4"]]
    captions = [captions_row(key, f"{key} zero", f"{key} one", f"{key} two") for key, _ in rows]
    file = tsv_set(rows, captions, [[2, 1], [0, 0], [0, 2]])
    report = prepare("tsv", [file], videos("a.mp4", "b.mp4", "c.mp4"), tmp_path / "out")
    assert {line["video_id"]: line["captions"] for line in read(tmp_path / "out")} == {
        "a": ["a zero", "a two"],
        "c": ["c one"],
    }
    assert re.search(f"{file} .*2 .*3 rows", str(report))


def test_tsv_captions_with_times_are_clips(tmp_path, videos, tsv_set):
    rows = [["y", "YouCook2/y.mp4"], ["t", "TVC/videos/show/t.mp4_0.5_1.5"]]
    captions = [
        captions_row(
            "y",
            {"caption": "cut", "start": 0, "end": 1, "asr": "so"},
            {"caption": "stir", "start": 1, "end": 1.5},
            {"caption": "chop", "start": 0, "end": 1},
        ),
        captions_row("t", "she talks"),
    ]
    prepare("tsv", [tsv_set(rows, captions)], videos("y.mp4", "show/t.mp4"), tmp_path / "out")
    lines = read(tmp_path / "out")
    assert spans(lines) == {"y_0_1": (0, 1), "y_1_1.5": (1, 1.5), "t": (0.5, 1.5)}
    assert [line["captions"] for line in lines] == [["cut", "chop"], ["stir"], ["she talks"]]


def test_tsv_of_decoded_frames(tmp_path, tsv_set):
    rows = [frames_row("videos/a.mp4", [jpeg(7), jpeg(300), jpeg(41)]), frames_row("b", [jpeg(5), jpeg(6), jpeg(8)])]
    captions = [captions_row("videos/a.mp4", {"caption": "a man", "start": 3, "end": 4}), captions_row("b", "a dog")]
    report = prepare("tsv", [tsv_set(rows, captions, index="8b")], output=tmp_path / "out")
    first, second = read(tmp_path / "out")
    assert first == {
        "file_name": "clips/train/000000.mkv",
        "video_id": "videos/a.mp4",
        "split": "train",
        "captions": ["a man"],
    }
    frames, _ = decode_video(tmp_path / "out" / first["file_name"])
    assert read_numbers(frames) == [7, 300, 41]
    # The JPEGs are not encoded again: decoders differ only in how they upsample chroma.
    expected = np.asarray(Image.open(io.BytesIO(jpeg(300))))
    assert np.abs(frames[1].astype(int) - expected).mean() < 3
    assert jpeg(300) in (tmp_path / "out" / first["file_name"]).read_bytes()
    assert report.splits["train"].problems["short"] == []
    assert read_numbers(decode_video(tmp_path / "out" / second["file_name"])[0]) == [5, 6, 8]


def test_broken_rows_of_decoded_frames(tmp_path, tsv_set):
    good = frames_row("good", [jpeg(1), jpeg(2)])
    png = io.BytesIO()
    Image.fromarray(numbered_frame(1)).save(png, "PNG")
    rows = [
        good,
        [*good[:3], "no base64!"],
        frames_row("cut", [jpeg(1), jpeg(2)[:-20]]),
        frames_row("png", [png.getvalue(), jpeg(1)]),
        frames_row("sizes", [jpeg(1), jpeg(1, scale=2)]),
        frames_row("also good", [jpeg(3), jpeg(4)]),
        frames_row("fewer", [jpeg(5)]),
    ]
    rows[1][0] = "text"
    file = tsv_set(rows, [captions_row(row[0], "a man") for row in rows])
    with pytest.raises(IncompleteDataset, match="unreadable videos, 4 of 7 clips: text ") as error:
        prepare("tsv", [file], output=tmp_path / "out")
    reasons = error.value.report.splits["train"].problems["unreadable"]
    assert reasons == [
        "text (column 4: expected a JPEG in base64, found something else)",
        "cut (column 4: expected a JPEG in base64, found a truncated one)",
        "png (column 3: expected a JPEG in base64, found PNG)",
        "sizes (expected frames of one size, found [(96, 32), (192, 64)])",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"]
    report = prepare("tsv", [file], output=tmp_path / "out", allow_missing=True)
    assert [line["video_id"] for line in read(tmp_path / "out")] == ["good", "also good", "fewer"]
    assert report.splits["train"].problems["short"] == ["fewer (1 of 2)"]


def test_composite_tsv(tmp_path, videos):
    folder = tmp_path / "annotations"
    for number in range(2):
        keys = [f"v{number}{row}" for row in range(2)]
        write_tsv(folder / f"part{number}.img.tsv", [[key, f"{key}.mp4"] for key in keys])
        write_tsv(folder / f"part{number}.caption.tsv", [captions_row(key, f"{key} x", f"{key} y") for key in keys])
    write(folder / "images.txt", "part0.img.tsv\npart1.img.tsv\n")
    write_tsv(folder / "lines.tsv", [[1, 0, 1], [0, 1, 0]])
    text = (
        "img: images.txt\ncaption: [part0.caption.tsv, part1.caption.tsv]\n"
        "caption_linelist: lines.tsv\ncomposite: true\n"
    )
    file = write(folder / "val.yaml", text)
    prepare("tsv", [file], videos("v01.mp4", "v10.mp4"), tmp_path / "out")
    found = {(line["split"], line["video_id"]): line["captions"] for line in read(tmp_path / "out")}
    assert found == {("validation", "v10"): ["v10 y"], ("validation", "v01"): ["v01 x"]}


def test_tsv_index_that_is_out_of_date(tmp_path):
    path = write_tsv(tmp_path / "a.img.tsv", [["a", "a.mp4"], ["b", "b.mp4"]], index="text")
    assert len(Tsv(path)) == 2
    with path.open("a") as file:
        file.write("c\tc.mp4\n")
    with pytest.raises(AnnotationError, match=r"a.img.lineidx, line 3: .* found the end of the index"):
        Tsv(path)
    path.with_suffix(".lineidx").write_text("")
    with pytest.raises(AnnotationError, match="line 1: .* found the end of the index"):
        Tsv(path)
    path.with_suffix(".lineidx").write_text(f"0\n{10**17}\n")
    with pytest.raises(AnnotationError, match=f"a.img.lineidx, line 2: .* found {10**17}"):
        Tsv(path)
    path.with_suffix(".lineidx").write_text("0\n16\n8\n")
    with pytest.raises(AnnotationError, match="a.img.lineidx, line 3: .* found 8"):
        Tsv(path)
    path.with_suffix(".lineidx").write_text("0\n5\n")
    with pytest.raises(AnnotationError, match=r"a.img.lineidx, line 2: .*delete a.img.lineidx"):
        Tsv(path)


# --- Annotations that are wrong ---------------------------------------------------------------------------------------

MALFORMED = {
    "no JSON": ("msrvtt", "train.json", '{"videos": [],\n "sentences": [}\n', 2, "JSON"),
    "no videos": ("msrvtt", "train.json", '{"sentences": []}', 1, "an object with 'videos', found"),
    "caption no text": (
        "msrvtt",
        "train.json",
        '{"videos": [{"video_id": "video1"}],\n"sentences": [\n{"video_id": "video1",\n "caption": 5}]}',
        4,
        r"sentences\[0\].caption to be text, found 5",
    ),
    "unknown video": (
        "msrvtt",
        "train.json",
        '{"videos": [{"video_id": "video1"}],\n"sentences": [\n{"video_id": "video2", "caption": "a"}]}',
        3,
        "found 'video2'",
    ),
    "no order": (
        "msrvtt",
        "train.json",
        '{"videos": [\n{"video_id": "v"}], "sentences": []}',
        2,
        "video0 to video9999",
    ),
    "key twice": ("youcook2", "a.json", '{"database": {"v": {},\n"w": {},\n"v": {}}}', 3, "found 'v' again"),
    "unknown split": ("youcook2", "a.json", '{"database": {"v":\n{"subset": "dessert"}}}', 2, "found 'dessert'"),
    "half a segment": (
        "youcook2",
        "a.json",
        '{"database": {"v": {"subset": "training", "annotations": [\n\n{"id": 0, "segment": [1], "sentence": "a"}]}}}',
        3,
        r"segment to be a list of start and end in seconds, found \[1\]",
    ),
    "truncated line": (
        "tvc",
        "train.jsonl",
        '\n{"vid_name": "v", "ts": [0, 1], "clip_id": 1}\n{"vid',
        3,
        "JSON",
    ),
    "endless time": ("tvc", "train.jsonl", '{"vid_name": "v", "ts": [0, Infinity], "clip_id": 1}', 1, r"ts\[1\]"),
    "half a character": (
        "vatex",
        "train.json",
        '[\n{"videoID": "v", "enCap": ["\\ud83d"]}]',
        2,
        r"enCap\[0\] to be text",
    ),
    "captions no list": ("vatex", "train.json", '[\n{"videoID": "v", "enCap": "a man"}]', 2, "enCap to be a list"),
    "path upwards": ("vatex", "train.json", '[\n{"videoID": "../v", "enCap": ["a"]}]', 2, "stays in its folder"),
    "path from the root": (
        "msvd",
        "train.json",
        '{"train": [\n\n{"video": "/etc/v", "caption": "a"}]}',
        3,
        "its folder",
    ),
    "path of another system": ("msvd", "train.txt", "a_1_2\n..\\v_1_2\n", 2, "stays in its folder"),
    "no clip name": ("msvd", "captions.txt", "aa_1_2 a man\na man runs\n", 2, "<youtube id>_<start>_<end> caption"),
    "no YAML": ("tsv", "train.yaml", "img: a.tsv\ncaption: [\n", 3, "YAML"),
    "no key img": ("tsv", "train.yaml", "caption: a.tsv\n", 1, "a key `img`"),
    "no such TSV file": ("tsv", "train.yaml", "label: x\nimg: a.tsv\n", 2, "no file"),
    "TSV file elsewhere": ("tsv", "train.yaml", "img: ../a.tsv\n", 1, "stays in its folder"),
}


@pytest.mark.parametrize("benchmark, name, text, line, message", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_annotations_are_named_by_line(tmp_path, benchmark, name, text, line, message):
    file = write(tmp_path / "annotations" / name, text)
    (tmp_path / "videos").mkdir()
    with pytest.raises(AnnotationError, match=message) as error:
        prepare(benchmark, [file], tmp_path / "videos", tmp_path / "out")
    assert str(error.value).startswith(f"{file}, line {line}: expected ")
    assert not (tmp_path / "out").exists()


MALFORMED_ROWS = {
    "another key": ([["a", "a.mp4"]], [captions_row("b", "x")], None, "train.caption.tsv, line 1: .*key 'a'"),
    "fewer rows": (
        [["a", "a.mp4"], ["b", "b"]],
        [captions_row("a", "x")],
        None,
        "caption.tsv, line 2: expected 2 rows",
    ),
    "no JSON": ([["a", "a.mp4"]], [["a", "a man"]], None, "train.caption.tsv, line 1: expected JSON"),
    "no list": ([["a", "a.mp4"]], [["a", '{"caption": "x"}']], None, "caption.tsv, line 1: expected a list"),
    "row too high": ([["a", "a.mp4"]], [captions_row("a", "x")], [[0, 0], [1, 0]], "linelist.tsv, line 2: .* 0 to 0"),
    "caption too high": ([["a", "a.mp4"]], [captions_row("a", "x")], [[0, 1]], "caption.tsv, line 1: .*caption 1"),
    "one column": ([["a", "a.mp4"]], [captions_row("a", "x")], [[0]], "linelist.tsv, line 1: .* row, caption"),
    "path upwards": ([["a", "a.mp4"], ["b", "../b.mp4"]], None, None, "train.img.tsv, line 2: .*stays in its folder"),
    "no key": ([["a", "a.mp4"], ["", "b.mp4"]], None, None, "train.img.tsv, line 2: .*begins with a key"),
}


@pytest.mark.parametrize("rows, captions, line_list, message", MALFORMED_ROWS.values(), ids=MALFORMED_ROWS.keys())
def test_malformed_rows_are_named_by_line(tmp_path, videos, tsv_set, rows, captions, line_list, message):
    with pytest.raises(AnnotationError, match=message):
        prepare("tsv", [tsv_set(rows, captions, line_list)], videos("a.mp4", "b.mp4"), tmp_path / "out")


def test_text_that_is_not_utf8(tmp_path, videos):
    file = tmp_path / "train_list.txt"
    file.write_bytes(b"a_1_2\nb\xe9_1_2\n")
    with pytest.raises(AnnotationError, match="line 2: expected text in UTF-8, found byte 0xe9"):
        prepare("msvd", [file], videos("a.mp4"))


def test_arguments_that_are_wrong(tmp_path, videos):
    folder = videos("a.mp4")
    vatex = write(tmp_path / "captions.json", [{"videoID": "a", "enCap": ["a man"]}])
    with pytest.raises(ValueError, match="Expected a benchmark of msvd, .* found 'msvd2'"):
        prepare("msvd2", [vatex], folder)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        prepare("vatex", [tmp_path / "none.json"], folder)
    with pytest.raises(NotADirectoryError, match="no folder of videos"):
        prepare("vatex", [vatex], tmp_path / "none")
    with pytest.raises(ValueError, match=f"{vatex.name}.* Write SPLIT={vatex}"):
        prepare("vatex", [vatex], folder)
    with pytest.raises(ValueError, match="such as a: name the folder"):
        prepare("vatex", [f"train={vatex}"], output=tmp_path / "out")
    with pytest.raises(FileExistsError, match=f"{tmp_path} exists and is not empty"):
        prepare("vatex", [f"train={vatex}"], folder, tmp_path)
    prepare("vatex", [f"validation={vatex}"], folder)
    assert read(folder)[0]["split"] == "validation"


# --- Incomplete datasets ----------------------------------------------------------------------------------------------


def vatex(**captions):
    return [{"videoID": name, "enCap": each} for name, each in captions.items()]


def test_incomplete_dataset_is_written_on_request_only(tmp_path, videos):
    folder = videos("good.mp4", "late.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    names = ["good", "late_000005_000009", "late_000001_000001", "empty", "text", "gone", "dangling"]
    file = write(tmp_path / "train.json", vatex(**{name: ["a man"] for name in names}, silent=["", " "]))
    with pytest.raises(IncompleteDataset) as error:
        prepare("vatex", [file], folder, tmp_path / "out")
    problems = error.value.report.splits["train"].left_out
    assert {kind: [clip.split(" ")[0] for clip in clips] for kind, clips in problems.items()} == {
        "missing": ["gone", "dangling"],
        "empty": ["empty"],
        "unreadable": ["text"],
        "bad range": ["late_000001_000001", "late_000005_000009"],
        "without captions": ["silent"],
    }
    assert "7 clips" in str(error.value) and "allow_missing" in str(error.value)
    assert "train: no such video, 2 of 8 clips: gone, dangling" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.json", "videos"]
    report = prepare("vatex", [file], folder, tmp_path / "out", allow_missing=True)
    assert [line["video_id"] for line in read(tmp_path / "out")] == ["good"]
    assert "train: 1 of 8 clips, 1 captions" in str(report)
    assert "left out, no such video, 2: gone, dangling" in str(report)


def test_no_clip_at_all(tmp_path, videos):
    file = write(tmp_path / "train.json", vatex(gone=["a man"]))
    with pytest.raises(ValueError, match="no clip to write"):
        prepare("vatex", [file], videos("other.mp4"), tmp_path / "out", allow_missing=True)
    with pytest.raises(ValueError, match="no clip to write"):
        prepare("vatex", [write(tmp_path / "train.json", [])], videos("other.mp4"), tmp_path / "out")


def test_captions_may_be_missing_in_test_splits_only(tmp_path, videos):
    with pytest.raises(IncompleteDataset, match="clips without a caption, 1 of 1"):
        prepare("vatex", [write(tmp_path / "train.json", [{"videoID": "a"}])], videos("a.mp4"))


def test_captions_and_repetitions_are_reported(tmp_path, videos):
    folder = videos("a.mp4", "b.mp4", "other/B.mkv", "c.mp4", "c.webm")
    file = write(tmp_path / "train.json", [*vatex(a=["x", "", "x"], b=["word " * 49], c=["z"]), *vatex(a=["x", "y"])])
    report = prepare("vatex", [file], folder, tmp_path / "out", check=False)
    problems = report.splits["train"].problems
    assert problems["annotated twice"] == ["a"]
    assert problems["empty captions"] == ["a (1)"]
    assert problems["repeated captions"] == ["a (1)"]
    assert problems["long captions"] == ["b (1)"]
    assert problems["several files"] == ["c (c.mp4, c.webm)"]
    assert [line["captions"] for line in read(tmp_path / "out")] == [["x", "x", "y"], ["word " * 48 + "word"], ["z"]]


def test_leaks_between_splits_are_reported(tmp_path, videos):
    folder = videos("same.mp4", "film.mp4", "copy.mp4", "one.mp4")
    (folder / "copy.mp4").write_bytes((folder / "one.mp4").read_bytes())
    files = [
        write(tmp_path / "train.json", vatex(same=["a"], film_000000_000001=["b"], one=["c"])),
        write(tmp_path / "test.json", vatex(same=["a"], film_000001_000002=["b"], copy=["c"])),
    ]
    report = prepare("vatex", files, folder, tmp_path / "out")
    train, test = report.splits["train"].problems, report.splits["test"].problems
    assert train["in two splits"] == ["same (same of test)", "one (copy of test)"]
    assert test["in two splits"] == ["same (same of train)", "copy (one of train)"]
    assert train["source in two splits"] == ["film_000000_000001 (film_000001_000002 of test)"]
    assert test["same content"] == ["copy (as one of train)"]


def test_videos_are_found_by_id(tmp_path, videos):
    folder = videos("a/x.mp4", "b/x.mp4", "AbC.mkv", "Upper.MP4", ".hidden.mp4", "v.1.mp4", "y.mp4_0_1.mp4")
    (folder / "notes.txt").touch()
    (folder / "again").symlink_to(folder)  # an endless loop of folders
    index = VideoFolder(folder, ["x", "abC", "AbC", "upper", "v.1"])

    def find(name):
        return [str(file) for file in index.find(name)]

    assert find("x") == ["a/x.mp4", "b/x.mp4"]
    assert find("datasets/b/x.avi") == ["b/x.mp4"]
    assert find("AbC") == ["AbC.mkv"] and find("abC") == []  # another id, for which there is no video
    assert find("upper") == ["Upper.MP4"]
    assert find("v.1") == ["v.1.mp4"] and find("v") == []
    assert find("y.mp4_0_1") == ["y.mp4_0_1.mp4"]
    assert find("notes") == find("hidden") == []

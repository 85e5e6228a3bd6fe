"""
What the endurance suite has found: reproducers, small enough to be made anew.

Where another release of FFmpeg encodes the clips in other bytes, these are other mutants, for which the rule holds too.
"""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("the suite needs processes that can be limited", allow_module_level=True)
from swinbert.endurance.cases import IN_PART, READ, REFUSED, Case
from swinbert.endurance.targets import all_targets, write_samples

VIDEO = {"num_frames": 8, "source": "path"}
MODEL = {"pickle": False, "deleted": False}
FOUND = {
    "dummy frame after a key frame that cannot be decoded": Case("video", "mpeg4.avi", [["put", 5742, "e5"]], VIDEO),
    "frames before the first key frame, in avi": Case(
        "video", "mpeg4.avi", [["remove", 2705, 2048]], {"num_frames": None, "source": "path object"}
    ),
    "frames before the first key frame, in mpg": Case(
        "video", "mpeg2.mpg", [["put", 75, "08"]], {"num_frames": 8, "source": "file object"}
    ),
    "frames predicted from a grey one, in flv": Case(
        "video", "h264.flv", [["remove", 1100, 1024]], {"num_frames": None, "source": "record"}
    ),
    "frames predicted from a grey one, in ts": Case("video", "h264.ts", [["remove", 1508, 8]], VIDEO),
    "frames predicted from a grey one, in mp4": Case(
        "video", "sample.mp4", [["flip", 6908]], {"num_frames": 1, "source": "path object"}
    ),
    "key frame that the container names and that is none": Case(
        "video", "mpeg4.mov", [["put", 1526, "23"]], {"num_frames": 8, "source": "path"}
    ),
    "key frame that is lost": Case("video", "mpeg4.avi", [["repeat", 8766, 256]], {"num_frames": 4, "source": "path"}),
    "too many brackets in YAML": Case(
        "annotations", "tsv of frames/set.yaml", [["insert", 25, "5b" * 3000]], {"seed": 2853391941}
    ),
    "start after all time": Case(
        "dataset", "lines/metadata.jsonl", [["json", [2, "start"], "set", 1e308]], {"seed": 3885796005}
    ),
    "NUL in the name of the captions": Case(
        "dataset", "table/metadata.csv", [["insert", 18, "00"]], {"seed": 986161753}
    ),
    "name of a parquet column that is no text": Case(
        "dataset", "parquet/metadata.parquet", [["put", 439, "14f7"]], {"seed": 339818599}
    ),
    "parquet that has no file names any more": Case(
        "dataset", "parquet/metadata.parquet", [["zero", 384, 1]], {"seed": 4226509046}
    ),
    "no token in a list": Case(
        "model",
        "generation_config.json",
        [["json", ["bos_token_id"], "set", [None]]],
        {"through": "load_captioner", **MODEL},
    ),
    "crop without a height": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "crop_size", "height"], "set", None]],
        {"through": "load_captioner", **MODEL},
    ),
    "side of more pixels than there are": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "size", "shortest_edge"], "set", 10**30]],
        {"through": "load_captioner", **MODEL},
    ),
    "more layers than can be built": Case(
        "model",
        "config.json",
        [["json", ["num_hidden_layers"], "set", 1 << 31]],
        {"through": "from_pretrained", **MODEL},
    ),
    "padding that is no token": Case(
        "model", "config.json", [["json", ["pad_token_id"], "set", 1 << 63]], {"through": "info", **MODEL}
    ),
    "hidden layer of less than nothing": Case(
        "model",
        "config.json",
        [["json", ["vision_config", "mlp_ratio"], "set", -0.5]],
        {"through": "from_pretrained", **MODEL},
    ),
    "picture in place of a folder": Case("command", "info", [["--picture", "."]], {}),
    "name that is no text": Case("command", "make-shapes", [["\udce4"]], {}),
    "rows of JSON in a file without a suffix": Case("captions", "dense rows/predictions", [], {"seed": 156614956}),
    "rows of too many brackets": Case(
        "captions", "dense rows/references", [["insert", 76, b"[".hex() * 3000]], {"seed": 1524270551}
    ),
    "column with a NUL in its name": Case(
        "dataset", "table/metadata.csv", [["insert", 23, "00"]], {"seed": 2379527461}
    ),
    "parquet with a wrong length": Case("dataset", "parquet/metadata.parquet", [["flip", 388]], {"seed": 1345515595}),
    "tokenizer that its library refuses": Case(
        "model",
        "tokenizer.json",
        [["json", ["post_processor", "pair", 3, "Sequence", "type_id"], "rename", "{'': 0}"]],
        {"through": "load_captioner", **MODEL},
    ),
    "header of weights without an offset": Case(
        "model",
        "model.safetensors",
        [["header", ["model.video_encoder.layers.1.blocks.0.norm2.bias", "data_offsets", 0], "delete", None]],
        {"through": "from_pretrained", **MODEL},
    ),
    "length of the header that lies": Case(
        "model", "model.safetensors", [["put", 0, "ffffff0000000000"]], {"through": "load_captioner", **MODEL}
    ),
    "number for a name": Case(
        "model", "config.json", [["json", ["hidden_act"], "set", 1e308]], {"through": "info", **MODEL}
    ),
    "list for a data type": Case(
        "model", "config.json", [["json", ["dtype"], "set", [-1, -1]]], {"through": "from_pretrained", **MODEL}
    ),
    "fractions of a pixel": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "crop_size"], "set", [1e9, 1e10]]],
        {"through": "load_captioner", **MODEL},
    ),
    "two channels": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "image_std", 1], "delete", None]],
        {"through": "load_captioner", **MODEL},
    ),
    "list for the settings of captions": Case(
        "model", "generation_config.json", [["json", [], "set", [None]]], {"through": "from_pretrained", **MODEL}
    ),
    "weights of another shape": Case(
        "model",
        "config.json",
        [["json", ["max_position_embeddings"], "rename", "{}"]],
        {"through": "from_pretrained", **MODEL},
    ),
    "text for a token": Case(
        "model",
        "generation_config.json",
        [["json", ["eos_token_id"], "set", " "]],
        {"through": "load_captioner", **MODEL},
    ),
    "token that there is not": Case(
        "model",
        "generation_config.json",
        [["json", ["bos_token_id"], "set", -1]],
        {"through": "load_captioner", **MODEL},
    ),
    "text for a standard deviation": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "image_std"], "set", "\u00e9"]],
        {"through": "load_captioner", **MODEL},
    ),
    "text for a factor": Case(
        "model",
        "processor_config.json",
        [["json", ["video_processor", "rescale_factor"], "set", "a"]],
        {"through": "load_captioner", **MODEL},
    ),
    "half of a character": Case(
        "dataset", "lines/metadata.jsonl", [["json", [0, "captions"], "rename", "\ud800"]], {"seed": 338028393}
    ),
    "control character in a caption": Case(
        "dataset", "beside/train/b.txt", [["insert", 4, "c285"]], {"seed": 2196875674}
    ),
    "parquet page that is damaged": Case("dataset", "parquet/metadata.parquet", [["flip", 344]], {"seed": 2353577393}),
    "pickle beside damaged weights": Case(
        "model",
        "model.safetensors",
        [["cut", 4]],
        {"through": "load_captioner", "pickle": True, "deleted": True},
    ),
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endurance")
    write_samples(folder, None)
    return {target.name: target for target in all_targets(folder)}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND)
def test_found_mutants_keep_to_the_rule(targets, case):
    assert targets[case.target].run(case) in (READ, IN_PART, REFUSED)

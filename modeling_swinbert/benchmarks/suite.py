"""The parts of the benchmark, in the order of the data: decode, preprocess, encode, words; then scaling."""

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

from swinbert import SparseVideoMask, SwinBertConfig, SwinBertForVideoCaptioning, bundled_model
from swinbert.conversion.configs import video_processor_for
from swinbert.deployment.quantization import computes_in_bfloat16, quantize_linear
from swinbert.processing import SwinBertProcessor, VideoCaptioningPipeline
from swinbert.processing.clip_reading_swinbert import ReadAhead

from .decoding import beams, words
from .encoding import encoder
from .films import film
from .folders import folder
from .git import git
from .isolation import isolation
from .measurement import Row, Table, agreement, compare, machine, matrix_peak, take_turns, write_clip
from .peers import TorchvisionSwin, git_model, original_caption
from .reading import decode
from .startup import startup
from .training_step import training

# Share of off-diagonal entries of the sparse mask that are alive, at random places. In the paper it is below 5 %.
LIVE_SHARE = 0.05
OVERLAP_CLIPS = 50
# Logits of the mask at which an entry is certainly alive, or dead.
_LIVE, _DEAD = 20.0, -20.0


@dataclass(frozen=True)
class Size:
    """Sizes of models and clips: those of the released base model, or tiny ones that take seconds."""

    config: dict[str, Any]
    git: dict[str, Any]
    words: int
    clips: dict[str, tuple[int, int, int, int]]  # name: width, height, frames, frames between key frames
    film: tuple[int, int, int, int]  # of the clip that films repeat, as above
    films: tuple[float, ...]  # seconds
    small_clips: int
    frames: tuple[int, ...]
    batches: tuple[int, ...]


SIZES = {
    "base": Size(
        config={},
        git={},
        words=20,
        clips={
            "720p, key frame every 250": (1280, 720, 300, 250),
            "720p, key frame every 12": (1280, 720, 300, 12),
            "1080p, key frame every 60": (1920, 1080, 300, 60),
        },
        film=(320, 180, 300, 250),
        films=(120.0, 600.0, 7200.0),
        small_clips=100,
        frames=(8, 16, 32, 64, 128),
        batches=(1, 2, 4, 8, 16),
    ),
    "tiny": Size(
        config={
            "vision_config": {
                "embed_dim": 16,
                "depths": [1, 2],
                "num_heads": [1, 2],
                "num_frames": 4,
                "image_size": 32,
            },
            "projection_dim": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 200,
        },
        git={
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
            },
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 200,
        },
        words=4,
        clips={"64 x 48, key frame every 12": (64, 48, 24, 12)},
        film=(64, 48, 24, 12),
        films=(15.0,),
        small_clips=4,
        frames=(2, 4, 8),
        batches=(1, 2),
    ),
}


class Bench:
    """Models, inputs and settings of a benchmark; models and inputs are built on first use."""

    live_share = LIVE_SHARE

    def __init__(
        self,
        size: str,
        repeats: int,
        device: torch.device,
        dtype: torch.dtype,
        clips: Sequence[Path],
        folder: Path,
        progress: Callable[[str], None],
    ):
        self.size_name, self.size, self.rounds, self.device, self.dtype = size, SIZES[size], repeats, device, dtype
        self.clips, self.folder, self.progress = clips, folder, progress

    @functools.cached_property
    def peak(self) -> float:
        self.progress("matrix product")
        return matrix_peak(self.device, self.dtype)

    @functools.cached_property
    def config(self) -> SwinBertConfig:
        return SwinBertConfig(**self.size.config)

    @functools.cached_property
    def model(self) -> SwinBertForVideoCaptioning:
        return self.build()

    def build(self, num_frames: int | None = None) -> SwinBertForVideoCaptioning:
        """A model with random weights; of these, speed depends on the mask's only."""
        self.progress("building a model")
        config = SwinBertConfig(**self.size.config)
        if num_frames is not None:
            config.num_frames = num_frames
        torch.manual_seed(0)
        model = SwinBertForVideoCaptioning(config).eval()
        set_live_share(model, LIVE_SHARE)
        return model.to(device=self.device, dtype=self.dtype)

    @functools.cached_property
    def model_in_int8(self) -> SwinBertForVideoCaptioning | None:
        """A copy of the model with int8 linear layers, or `None` where they cannot be used."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return None
        return quantize_linear(copy.deepcopy(self.model))

    @functools.cached_property
    def model_in_bfloat16(self) -> SwinBertForVideoCaptioning | None:
        """A copy of the model in bfloat16, or `None` where the CPU does not compute in it."""
        if self.device.type != "cpu" or self.dtype != torch.float32 or not computes_in_bfloat16(self.device):
            return None
        return copy.deepcopy(self.model).to(torch.bfloat16)

    @functools.cached_property
    def compiled_encoder(self) -> Any:
        """The compiled encoder on a GPU, where compiling gains most; else `None`."""
        return torch.compile(self.model.model.video_encoder) if self.device.type == "cuda" else None

    @functools.cached_property
    def backbone(self) -> TorchvisionSwin:
        return TorchvisionSwin(self.model.model.video_encoder)

    def pixels(self, batch: int = 1, num_frames: int | None = None) -> torch.Tensor:
        height, width = self.config.vision_config.frame_size  # type: ignore[union-attr]
        shape = (batch, num_frames or self.config.num_frames, 3, height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    def generation(self, num_beams: int = 1) -> dict[str, int]:
        """Options for captions of exactly the configured number of words, after [CLS]."""
        return {"max_length": 1 + self.size.words, "min_length": 1 + self.size.words, "num_beams": num_beams}

    def caption(self, model: SwinBertForVideoCaptioning, pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return model.generate(pixel_values_videos=pixels, **self.generation(), **kwargs)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The backbone's output (B, N, C)."""
        return self.model.model.video_encoder(pixels).last_hidden_state

    def prefill(self, features: torch.Tensor) -> Any:
        """Keys and values of a clip, from the backbone's output (B, N, C)."""
        projected = self.model.model.projector(features)
        return self.model.encode_video(video_features=projected).video_key_values

    @functools.cached_property
    def processor(self) -> SwinBertProcessor:
        special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
        words = {special.get(number, f"word{number}"): number for number in range(self.config.vocab_size)}
        return SwinBertProcessor(video_processor_for(self.config), BertTokenizer(vocab=words))

    def clip_files(self) -> dict[str, Path]:
        """Paths of the given clips, or of generated ones, by name."""
        if self.clips:
            return {path.name: path for path in self.clips}
        files = {}
        for number, (name, geometry) in enumerate(self.size.clips.items()):
            files[name] = self.folder / f"{number}.mp4"
            if not files[name].exists():
                self.progress(f"encoding a clip of {name}")
                write_clip(files[name], *geometry)
        return files

    def compare(self, calls: dict[str, Callable[[], Any]], **kwargs: Any) -> tuple[list[Row], list[Any]]:
        return compare(calls, self.rounds, self.device, self.progress, **kwargs)


@torch.no_grad()
def set_live_share(model: SwinBertForVideoCaptioning, share: float) -> None:
    """Makes a share of the mask's off-diagonal entries alive, at random places, and the others dead."""
    weight = model.model.sparse_mask.weight  # type: ignore[union-attr]
    is_live = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < share
    weight.copy_(torch.where(is_live, _LIVE, _DEAD))


# --- Parts ------------------------------------------------------------------------------------------------------------


def stages(bench: Bench) -> list[Table]:
    path = next(iter(bench.clip_files().values()))
    video_processor = bench.processor.video_processor
    frames, _ = video_processor.load_frames(path)
    pixels = bench.pixels()
    features = bench.features(pixels)
    key_values = bench.prefill(features)
    words = bench.size.words
    rows, _ = bench.compare(
        {
            "decode": lambda: video_processor.load_frames(path),
            "preprocess": lambda: video_processor(frames, do_sample_frames=False, return_tensors="pt"),
            "both, frame by frame": lambda: video_processor(path, return_tensors="pt"),
            "encode": lambda: bench.features(pixels),
            "prefill": lambda: bench.prefill(features),
            f"{words} words": lambda: bench.model.generate(video_key_values=key_values, **bench.generation()),
        }
    )
    rows[-1].note = f"{rows[-1].median / words * 1000:.1f} ms a word"
    return [Table(f"Stages of one clip ({path.name if bench.clips else next(iter(bench.size.clips))})", rows)]


def caption(bench: Bench) -> list[Table]:
    pixels = bench.pixels()
    git = git_model(**bench.size.git).to(device=bench.device, dtype=bench.dtype)
    side = git.config.vision_config.image_size
    pictures = torch.randn(1, 6, 3, side, side).to(bench.device, bench.dtype)
    start = torch.tensor([[101]], device=bench.device)
    calls = {
        "original's algorithm": lambda: original_caption(bench.model, bench.backbone(pixels), bench.size.words),
        "swinbert": lambda: bench.caption(bench.model, pixels),
        "GIT, 6 frames": lambda: git.generate(pixel_values=pictures, input_ids=start, **bench.generation()),
    }
    if (in_bfloat16 := bench.model_in_bfloat16) is not None:
        calls["swinbert, bfloat16"] = lambda: bench.caption(in_bfloat16, pixels)
    if (in_int8 := bench.model_in_int8) is not None:
        calls["swinbert, int8"] = lambda: bench.caption(in_int8, pixels)
    rows, captions = bench.compare(calls)
    rows[1].note = agreement(*captions[:2])
    rows[2].note = f"{git.num_parameters() / 1e6:.0f} M parameters" + ("" if bench.size.git else ", as GIT-base")
    for row, ids in zip(rows[3:], captions[3:], strict=True):
        equal = int((ids == captions[1]).sum()) - 1  # not [CLS]
        row.note = f"{equal} of {bench.size.words} words as in float32, of a model with random weights"
    title = f"Pixels to a caption of {bench.size.words} words, {LIVE_SHARE:.0%} of the mask alive"
    return [Table(title, rows, "original's algorithm")]


def masks(bench: Bench) -> list[Table]:
    """The prefix stream of the fusion encoder for several live shares of the mask, and for the bundled model's mask."""
    features = bench.features(bench.pixels())
    core = bench.model.model
    own, others = core.sparse_mask, {}
    for share in (1.0, 0.25, LIVE_SHARE, 0.01, 0.0):
        core.sparse_mask = copy.deepcopy(own)
        set_live_share(bench.model, share)
        others[f"{share:.0%} alive, scattered"] = core.sparse_mask

    def prefill(mask: torch.nn.Module) -> None:
        core.sparse_mask = mask
        bench.prefill(features)

    rows, _ = bench.compare({name: functools.partial(prefill, mask) for name, mask in others.items()})
    core.sparse_mask = own
    for row, mask in zip(rows, others.values(), strict=True):
        row.note = _plan(mask)
    tables = [Table("Prefill of one clip by the live share of its mask", rows, rows[0].name)]

    bundled = SwinBertForVideoCaptioning.from_pretrained(bundled_model()).eval().to(bench.device, bench.dtype)
    height, width = bundled.config.vision_config.frame_size
    pixels = torch.randn(1, bundled.config.num_frames, 3, height, width).to(bench.device, bench.dtype)
    projected = bundled.get_video_features(pixels, return_dict=True).pooler_output
    rows, _ = bench.compare({"bundled model": lambda: bundled.encode_video(video_features=projected)})
    mask = bundled.model.sparse_mask
    statistics = mask.statistics()
    rows[0].note = f"{statistics.alive:,} of {statistics.entries:,} entries alive; {_plan(mask)}"
    return [*tables, Table("The same in the bundled model, under the mask that it learned", rows)]


def _plan(mask: SparseVideoMask | None) -> str:
    """How the attention under a mask is executed, for a note."""
    if mask is None:
        return "no mask"
    plan = mask.plan()
    return f"{plan.path}, {plan.executed:.1%} of the entries executed"


def frames(bench: Bench) -> list[Table]:
    rows = []
    for num_frames in bench.size.frames:
        model = bench.build(num_frames)
        pixels = bench.pixels(num_frames=num_frames)
        caption_all = functools.partial(bench.caption, model, pixels)
        rows += bench.compare({f"{num_frames} frames": caption_all}, items=num_frames)[0]
        rows[-1].note = f"{model.config.num_video_tokens} video tokens; {_plan(model.model.sparse_mask)}"
    base = bench.size.frames.index(bench.config.num_frames)
    rows[base + 1].target = 0.91  # per frame: linear within 10%
    return [
        Table(f"Pixels to caption by length of the clip, {LIVE_SHARE:.0%} of the mask alive", rows, rows[base].name)
    ]


def batch(bench: Bench) -> list[Table]:
    one = bench.pixels()
    baseline = "one clip, original's algorithm"
    alone = {baseline: lambda: original_caption(bench.model, bench.backbone(one), bench.size.words)}
    rows, _ = bench.compare(alone)
    for number in bench.size.batches:
        pixels = bench.pixels(batch=number)
        name = "one clip" if number == 1 else f"{number} clips"
        caption_all = functools.partial(bench.caption, bench.model, pixels)
        calls: dict[str, Callable[[], Any]] = {name: caption_all}
        if bench.compiled_encoder is not None:
            calls[f"{name}, compiled"] = functools.partial(_caption_compiled, bench, pixels)
            _caption_compiled(bench, pixels)
        rows += bench.compare(calls, items=number)[0]
    return [Table("Pixels to captions by size of the batch, each clip", rows, baseline)]


def _caption_compiled(bench: Bench, pixels: torch.Tensor) -> torch.Tensor:
    """Captions by a compiled encoder and a compiled decoding step."""
    key_values = bench.prefill(bench.compiled_encoder(pixels).last_hidden_state)
    return bench.model.generate(video_key_values=key_values, cache_implementation="static", **bench.generation())


def overlap(bench: Bench) -> list[Table]:
    path = next(iter(bench.clip_files().values()))
    pipe = VideoCaptioningPipeline(
        model=bench.model,
        processor=bench.processor,
        device=bench.device,
        task="video-captioning",
        max_new_tokens=bench.size.words,
        min_new_tokens=bench.size.words,
    )
    paths = [str(path)] * OVERLAP_CLIPS
    read = pipe.preprocess(paths[0])

    def model_alone() -> None:
        for _ in paths:
            pipe.postprocess(pipe.forward(dict(read), **pipe._forward_params))

    ways: dict[str, Callable[[], object]] = {
        "reading alone": lambda: list(ReadAhead(paths, pipe.preprocess, 1)),
        "model alone": model_alone,
        "pipeline": lambda: pipe(paths),
    }
    rows = [Row(name, items=OVERLAP_CLIPS) for name in ways]
    take_turns(rows, ways.values(), bench.rounds, bench.device, bench.progress)
    slower = max(rows[:2], key=lambda row: row.median)
    return [Table(f"{OVERLAP_CLIPS} clips, from files to captions", rows, slower.name)]


PARTS: dict[str, Callable[[Bench], list[Table]]] = {
    part.__name__: part
    for part in (
        decode,
        stages,
        encoder,
        words,
        caption,
        beams,
        masks,
        frames,
        batch,
        training,
        overlap,
        film,
        folder,
        git,
        isolation,
        startup,
    )
}


def run(
    parts: Sequence[str],
    output: Path,
    *,
    size: str = "base",
    repeats: int = 5,
    device: torch.device,
    dtype: torch.dtype,
    clips: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda message: None,
    done: Callable[[list[Table], float], None] = lambda tables, peak: None,
) -> dict[str, Any]:
    """
    Measures part by part, and writes the results after each part to `output`/benchmark.json.

    Parts that this file holds already, with the same settings and machine, are not measured again.

    Args:
        parts: names of `PARTS`.
        progress: called with a line before each step.
        done: called with the tables of each part, and the matrix peak in FLOP per second.

    Returns:
        The content of the file.

    Raises:
        ValueError: a name is not in `PARTS`.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"There is no part {', '.join(unknown)}: expected some of {', '.join(PARTS)}.")
    about = {
        "machine": machine(device),
        "settings": {
            "size": size,
            "repeats": repeats,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "clips": [path.name for path in clips],
        },
    }
    file = output / "benchmark.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if {key: results.get(key) for key in about} != about:
        results = {**about, "matrix_peak": None, "parts": {}}
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(size, repeats, device, dtype, clips, Path(folder), progress)
        results["matrix_peak"] = results["matrix_peak"] or bench.peak
        for part in parts:
            if part in results["parts"]:
                progress(f"{part}: is in {file.name} already")
            else:
                bench.progress = functools.partial(_say_of, progress, part)
                with torch.no_grad():
                    tables = PARTS[part](bench)
                results["parts"][part] = [asdict(table) for table in tables]
                file.write_text(json.dumps(results, indent=1))
            done([Table.load(table) for table in results["parts"][part]], results["matrix_peak"])
    return results


def _say_of(progress: Callable[[str], None], part: str, message: str) -> None:
    progress(f"{part}: {message}")

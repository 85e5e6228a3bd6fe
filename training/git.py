"""Fine-tuning GIT (arXiv:2205.14100): what a run starts from, its batches and its trainer, where SwinBERT's differ.

    swinbert train --model microsoft/git-base-vatex --dataset my_clips --output_dir outputs/git

A clip is read as `VideoCaptioningPipeline` reads it: as many frames as the model has embeddings for, or the middle one
for a model of single images, in the hands of GIT's own processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoProcessor, GitForCausalLM

from swinbert.processing import SwinBertVideoProcessor, VideoCaptioningPipeline
from swinbert.training.arguments import ModelArguments
from swinbert.training.data.collators import CaptionCollator, random_crops
from swinbert.training.initialization import WeightAccount, freeze
from swinbert.training.trainer import VideoCaptioningTrainer

_FRAMES = "num_image_with_embedding"
_MAX_CAPTION_LENGTH = 50


def is_git(model: str | None) -> bool:
    """Whether a folder or a name on the Hub is a GIT; `OSError` if it is nothing at all."""
    return model is not None and AutoConfig.from_pretrained(model).model_type == "git"


def load_git(args: ModelArguments, config: Mapping[str, Any]) -> tuple[GitForCausalLM, Any, list[str]]:
    """
    The model to train in float32, its processor, and a report of what it starts from.

    Args:
        config: perhaps `num_image_with_embedding`, another number of frames: a model of single images becomes one of
            clips by it, with new embeddings of time that start at zero, as in the paper.

    Raises:
        ValueError: an argument that is for SwinBERT alone; fewer frames than the model has embeddings for.
    """
    names = ("backbone", "text_encoder", "mask", "tokenizer", "lora_rank")
    of_swinbert = [name for name in names if getattr(args, name, None)]
    of_swinbert += [f"config.{name}" for name in config if name != _FRAMES]
    of_swinbert += [f"objective {args.objective}"] if args.objective not in (None, "causal_lm") else []
    if of_swinbert:
        raise ValueError(
            f"{args.model} is a GIT, for which there is no --{of_swinbert[0]}: leave it out. Of its configuration only"
            f" --config.{_FRAMES} (frames) can be changed."
        )
    model = source = GitForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    report = [f"all {len(source.state_dict())} tensors from {args.model}"]
    if config:
        model = GitForCausalLM(type(source.config)(**{**source.config.to_dict(), **config}))
        model.generation_config = source.generation_config
        weights = WeightAccount(model)
        weights.take(str(args.model), source.state_dict())
        report = weights.finish()
    if model.config.num_image_with_embedding is None:
        report.append(f"it sees the middle frame of each clip alone; --config.{_FRAMES} 6 makes it a model of six")
    generation = model.generation_config
    if args.generation_max_length:
        generation.max_length, generation.max_new_tokens = args.generation_max_length, None
    elif generation.max_length is None and generation.max_new_tokens is None:
        # What the pipeline gives a model that does not say.
        generation.max_new_tokens = VideoCaptioningPipeline._default_generation_config.max_new_tokens
    return model, AutoProcessor.from_pretrained(args.model), report + freeze(model, args.freeze)


def frame_reader(model: GitForCausalLM, processor: Any) -> SwinBertVideoProcessor:
    """Samples the frames of a clip, and knows the size to which GIT's processor brings them."""
    num_frames, images = model.config.num_image_with_embedding, processor.image_processor
    geometry = {name: _given(getattr(images, name)) for name in ("size", "crop_size")}
    sampling = {"num_frames": num_frames or 1, "frame_sampling": "uniform" if num_frames else "round"}
    return SwinBertVideoProcessor(**sampling, **geometry, resample=images.resample)


def _given(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size).items() if value is not None}


@dataclass
class GitCollator(CaptionCollator):
    """
    As [`CaptionCollator`], for GIT: every word is predicted from those before it.

    Args:
        reader (`SwinBertVideoProcessor`): that of `frame_reader`.
        single_images (`bool`): the model takes an image, not a clip.

    Returns:
        `pixel_values` (V, T, C, H, W), of single images (V, C, H, W); `input_ids`, `attention_mask`, `labels`
        (captions_per_clip * V, L): the first caption of each clip, then the second of each, since the model repeats the
        clips of a batch as a whole; `index` (V,).
    """

    objective: str = "causal_lm"
    max_caption_length: int = _MAX_CAPTION_LENGTH
    reader: Any = None
    single_images: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        pixels, index = batch.pop("pixel_values_videos"), batch.pop("index")
        order = torch.arange(len(batch["labels"])).reshape(len(examples), -1).T.flatten()
        captions = {name: rows[order] for name, rows in batch.items()}
        captions["labels"][:, 0] = -100  # given, not predicted
        return {"pixel_values": pixels, **captions, "index": index}

    def _pixels(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        if self.random_crop:
            crops = [crop.permute(0, 2, 3, 1).numpy() for crop in random_crops(examples, self.reader)]
            clips = [self._of_clip(frames, do_resize=False, do_center_crop=False) for frames in crops]
        else:
            clips = [self._of_clip(example["frames"]) for example in examples]
        pixels = torch.stack(clips)
        return pixels[:, 0] if self.single_images else pixels

    def _of_clip(self, frames: np.ndarray, **changes: bool) -> torch.Tensor:
        """(T, C, H, W) of uint8 (T, H, W, C)."""
        pixels = self.processor(images=list(frames), return_tensors="pt", **changes).pixel_values
        # GIT's two image processors differ: one returns a batch of images, the other a batch of videos.
        return pixels.reshape(len(frames), *pixels.shape[-3:])


def git_collator(model: GitForCausalLM, processor: Any, **arguments: Any) -> GitCollator:
    return GitCollator(
        processor,
        max_caption_length=min(_MAX_CAPTION_LENGTH, model.config.max_position_embeddings),
        reader=frame_reader(model, processor),
        single_images=model.config.num_image_with_embedding is None,
        **arguments,
    )


class GitTrainer(VideoCaptioningTrainer):
    """Trains and evaluates a `GitForCausalLM` on batches of a [`GitCollator`]."""

    backbone_name, clips_name = "git.image_encoder", "pixel_values"

    @property
    def num_frames(self) -> int:
        return self.model.config.num_image_with_embedding or 1

    def _card(self, name: str) -> str:
        results = self._results()
        card = ModelCardData(
            language="en",
            license="other",
            library_name="transformers",
            pipeline_tag="video-text-to-text",
            tags=["video-captioning", "git"],
            datasets=self._datasets() or None,
            metrics=sorted({result.metric_type for result in results}) or None,
            model_name=name if results else None,
            eval_results=results or None,
        )
        sections = {
            "Use": "```bash\nswinbert caption clip.mp4 --model path/to/this/folder\n```",
            "Training data and procedure": self._procedure(),
            "Evaluation": self._evaluation(results),
            "Where the weights come from": self._provenance(),
        }
        summary = (
            "A GIT model (arXiv:2205.14100), fine-tuned with the `swinbert` package. It describes a short clip in one"
            f" sentence, from {self.num_frames} frame{'s' * (self.num_frames > 1)}."
        )
        text = [f"---\n{card.to_yaml().strip()}\n---", f"# {name}", summary]
        return "\n\n".join([*text, *(f"## {title}\n\n{content}" for title, content in sections.items())]) + "\n"

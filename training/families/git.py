"""Fine-tuning of GIT (arXiv:2205.14100).

    swinbert train --model microsoft/git-base-vatex --dataset my_clips --output_dir outputs/git

Clips are read as `VideoCaptioningPipeline` reads them: as many frames as the model has temporal embeddings, or the
middle frame for a model of single images, preprocessed by GIT's own processor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers import AutoProcessor, GitForCausalLM

from swinbert.captioning.families.git import GitFamily, git_pixel_values
from swinbert.processing import SwinBertVideoProcessor, VideoCaptioningPipeline
from swinbert.training.arguments import DataArguments, ModelArguments
from swinbert.training.data.collators import CaptionCollator, random_crops
from swinbert.training.families.base import CardContents, TrainingFamily
from swinbert.training.initialization import WeightLoader, freeze

_FRAMES = "num_image_with_embedding"
_MAX_CAPTION_LENGTH = 50


class GitTraining(TrainingFamily):
    """`GitForCausalLM` of transformers."""

    model_type = "git"
    backbone_name = "git.image_encoder"
    pixels_name = "pixel_values"

    def load(
        self, args: ModelArguments, config: Mapping[str, Any], captions: Iterable[str] = ()
    ) -> tuple[GitForCausalLM, Any, list[str]]:
        """
        See [`TrainingFamily.load`]; the tokenizer is always that of the model.

        Args:
            config: nothing but perhaps `num_image_with_embedding`, another number of frames. It turns a model of single
                images into a model of clips: new temporal embeddings start at zero, as in the paper.
        """
        _check_arguments(args, config)
        model = source = GitForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        report = [f"all {len(source.state_dict())} tensors from {args.model}"]
        if config:
            model = GitForCausalLM(type(source.config)(**{**source.config.to_dict(), **config}))
            model.generation_config = source.generation_config
            weights = WeightLoader(model)
            weights.copy_from(str(args.model), source.state_dict())
            report = weights.report()
        if model.config.num_image_with_embedding is None:
            report.append(f"the model takes only the middle frame of a clip; --config.{_FRAMES} 6 makes it take six")
        generation = model.generation_config
        if args.generation_max_length:
            generation.max_length, generation.max_new_tokens = args.generation_max_length, None
        elif generation.max_length is None and generation.max_new_tokens is None:
            generation.max_new_tokens = VideoCaptioningPipeline._default_generation_config.max_new_tokens
        return model, AutoProcessor.from_pretrained(args.model), report + freeze(model, args.freeze)

    def frame_reader(self, model: GitForCausalLM, processor: Any) -> SwinBertVideoProcessor:
        captioning, images = GitFamily(model.config, processor), processor.image_processor
        geometry = {name: _without_none(getattr(images, name)) for name in ("size", "crop_size")}
        sampling = {"num_frames": captioning.num_frames, "frame_sampling": captioning.frame_sampling}
        return SwinBertVideoProcessor(**sampling, **geometry, resample=images.resample)

    def collator(self, model: GitForCausalLM, processor: Any, data: DataArguments) -> "GitCollator":
        return GitCollator(
            processor,
            max_caption_length=min(_MAX_CAPTION_LENGTH, model.config.max_position_embeddings),
            captions_per_clip=data.captions_per_clip,
            random_crop=data.random_crop,
            reader=self.frame_reader(model, processor),
            single_images=model.config.num_image_with_embedding is None,
        )

    def num_frames(self, model: GitForCausalLM) -> int:
        return model.config.num_image_with_embedding or 1

    def model_card(self, model: GitForCausalLM, contents: CardContents) -> str:
        card = ModelCardData(
            language="en",
            license="other",
            library_name="transformers",
            pipeline_tag="video-text-to-text",
            tags=["video-captioning", "git"],
            datasets=list(contents.datasets) or None,
            metrics=sorted({result.metric_type for result in contents.results}) or None,
            model_name=contents.title if contents.results else None,
            eval_results=list(contents.results) or None,
        )
        sections = {
            "Use": "```bash\nswinbert caption clip.mp4 --model path/to/this/folder\n```",
            "Training data and procedure": contents.training,
            "Evaluation": contents.evaluation,
            "Where the weights come from": contents.provenance,
        }
        frames = self.num_frames(model)
        summary = (
            "A GIT model (arXiv:2205.14100), fine-tuned with the `swinbert` package. It describes a short clip in one"
            f" sentence, from {frames} frame{'s' * (frames > 1)}."
        )
        text = [f"---\n{card.to_yaml().strip()}\n---", f"# {contents.title}", summary]
        return "\n\n".join([*text, *(f"## {title}\n\n{content}" for title, content in sections.items())]) + "\n"


def _check_arguments(args: ModelArguments, config: Mapping[str, Any]) -> None:
    names = ("backbone", "text_encoder", "mask", "tokenizer", "lora_rank")
    inapplicable = [name for name in names if getattr(args, name) is not None]
    inapplicable += [f"config.{name}" for name in config if name != _FRAMES]
    inapplicable += [f"objective {args.objective}"] if args.objective not in (None, "causal_lm") else []
    if inapplicable:
        raise ValueError(
            f"{args.model} is a GIT, for which there is no --{inapplicable[0]}: leave it out. Of its configuration only"
            f" --config.{_FRAMES} (frames) can be changed."
        )


def _without_none(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size).items() if value is not None}


@dataclass
class GitCollator(CaptionCollator):
    """
    [`CaptionCollator`] for GIT: every token is predicted from the tokens before it.

    Args:
        reader (`SwinBertVideoProcessor`): decodes the clips of rows, and resizes clips to be cropped at random.
        single_images (`bool`): the model takes an image instead of a clip.

    Returns:
        `pixel_values` (V, T, C, H, W), of single images (V, C, H, W); `input_ids`, `attention_mask`, `labels`
        (captions_per_clip * V, L): the first caption of every clip, then the second of every clip, because the model
        repeats the clips of a batch as a whole; `index` (V,), for items of `ClipDataset`.
    """

    objective: str = "causal_lm"
    max_caption_length: int = _MAX_CAPTION_LENGTH
    reader: Any = None
    single_images: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        pixels = batch.pop("pixel_values_videos")
        index = {name: batch.pop(name) for name in ("index",) if name in batch}
        order = torch.arange(len(batch["labels"])).reshape(len(examples), -1).T.flatten()
        captions = {name: rows[order] for name, rows in batch.items()}
        captions["labels"][:, 0] = -100  # the start token is an input, not a prediction
        return {"pixel_values": pixels, **captions, **index}

    @property
    def _frame_reader(self) -> Any:
        return self.reader

    def _pixels(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        if self.random_crop:
            crops = [crop.permute(0, 2, 3, 1).numpy() for crop in random_crops(examples, self.reader)]
            as_cropped = {"do_resize": False, "do_center_crop": False}
            clips = [git_pixel_values(self.processor, list(frames), **as_cropped) for frames in crops]
        else:
            clips = [git_pixel_values(self.processor, list(example["frames"])) for example in examples]
        pixels = torch.stack(clips)
        return pixels[:, 0] if self.single_images else pixels

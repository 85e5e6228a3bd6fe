"""Training of SwinBERT."""

from collections.abc import Iterable, Mapping
from typing import Any

from swinbert.model_cards import captioner_card
from swinbert.processing import SwinBertVideoProcessor
from swinbert.training.adapters import add_lora
from swinbert.training.arguments import DataArguments, ModelArguments
from swinbert.training.data.collators import CaptionCollator
from swinbert.training.families.base import CardContents, TrainingFamily
from swinbert.training.initialization import load_model


class SwinBertTraining(TrainingFamily):
    """[`SwinBertForVideoCaptioning`], from scratch, from parts, or from a trained model; or a LoRA adapter of one."""

    model_type = "swinbert"
    backbone_name = "model.video_encoder"
    pixels_name = "pixel_values_videos"

    def load(
        self, args: ModelArguments, config: Mapping[str, Any], captions: Iterable[str]
    ) -> tuple[Any, Any, list[str]]:
        if args.lora_rank is not None and not args.model:
            raise ValueError("--lora_rank adapts a trained SwinBERT: name one as --model.")
        model, processor, report = load_model(args, dict(config), captions)
        if args.lora_rank is None:
            return model, processor, report
        adapted = add_lora(model, args.lora_rank)
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        return adapted, processor, [*report, f"LoRA: {trained / 1e6:.2f} M parameters train"]

    def frame_reader(self, model: Any, processor: Any) -> SwinBertVideoProcessor:
        return processor.video_processor

    def collator(self, model: Any, processor: Any, data: DataArguments) -> CaptionCollator:
        return CaptionCollator(
            processor,
            objective=model.config.objective,
            max_caption_length=model.config.max_caption_length,
            mask_prob=data.mask_prob,
            max_masked_tokens=data.max_masked_tokens,
            captions_per_clip=data.captions_per_clip,
            random_crop=data.random_crop,
        )

    def num_frames(self, model: Any) -> int:
        return model.config.num_frames

    def model_card(self, model: Any, contents: CardContents) -> str:
        kind = "model" if contents.base_model is None else "adapter (LoRA)"
        return captioner_card(
            model.config,
            summary=(
                f"A SwinBERT {kind}, trained with the `swinbert` package. It describes a short clip in one sentence."
            ),
            **vars(contents),
        )

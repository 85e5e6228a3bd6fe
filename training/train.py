"""`swinbert train`: arguments, data, model, `Trainer`, run.

swinbert train RECIPE.yaml [--name value ...]        # or python -m swinbert.training.train
"""

import itertools
import sys
from collections.abc import Iterable, Sequence

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, EvalPrediction, set_seed

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor
from swinbert.training import moving_shapes
from swinbert.training.arguments import ModelArguments, parse_arguments
from swinbert.training.collators import CaptionCollator
from swinbert.training.data import ClipDataset, build_tokenizer, load_clips
from swinbert.training.trainer import VideoCaptioningTrainer


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains as `argv` says, writes model and processor into `output_dir`, and returns the last metrics."""
    model_args, data_args, training_args, config = parse_arguments(sys.argv[1:] if argv is None else argv)
    set_seed(training_args.seed)
    if training_args.torch_threads:
        torch.set_num_threads(training_args.torch_threads)

    train_clips = load_clips(data_args.dataset, data_args.train_split)
    eval_clips = load_clips(data_args.dataset, data_args.eval_split) if data_args.eval_split else None
    model, processor = load_model(model_args, config, itertools.chain.from_iterable(train_clips["captions"]))
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(train_clips)} clips to train on", file=sys.stderr)

    dataset = {
        "video_processor": processor.video_processor,
        "keep_frames": data_args.keep_frames,
        "seed": training_args.seed,
    }
    trainer = VideoCaptioningTrainer(
        model=model,
        args=training_args,
        data_collator=CaptionCollator(
            processor,
            objective=model.config.objective,
            max_caption_length=model.config.max_caption_length,
            mask_prob=data_args.mask_prob,
            max_masked_tokens=data_args.max_masked_tokens,
            captions_per_clip=data_args.captions_per_clip,
        ),
        train_dataset=ClipDataset(train_clips, max_shift=data_args.max_shift, **dataset),
        eval_dataset=ClipDataset(eval_clips, **dataset) if eval_clips else None,
        processing_class=processor,
        compute_metrics=CaptionMetrics(processor, eval_clips, data_args.num_samples) if eval_clips else None,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    metrics = {**result.metrics, **(trainer.evaluate() if eval_clips else {})}
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    return metrics


def load_model(
    args: ModelArguments, config: dict, captions: Iterable[str]
) -> tuple[SwinBertForVideoCaptioning, SwinBertProcessor]:
    """The model to fine-tune, or a new one of the fields `config`, with its processor."""
    if args.model:
        return AutoModelForImageTextToText.from_pretrained(args.model), AutoProcessor.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else build_tokenizer(captions)
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    model = SwinBertForVideoCaptioning(SwinBertConfig(**{**tokens, **config}))
    height, width = model.config.vision_config.frame_size
    video_processor = SwinBertVideoProcessor(
        num_frames=model.config.num_frames,
        size={"shortest_edge": min(height, width)},
        crop_size={"height": height, "width": width},
    )
    model.generation_config.max_length = model.config.max_caption_length
    return model, SwinBertProcessor(video_processor=video_processor, tokenizer=tokenizer)


class CaptionMetrics:
    """Metrics of generated captions; prints a few beside a reference."""

    def __init__(self, processor: SwinBertProcessor, clips, num_samples: int):
        self.processor, self.captions, self.num_samples = processor, clips["captions"], num_samples

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        ids = prediction.predictions.copy()
        ids[ids == -100] = self.processor.tokenizer.pad_token_id
        generated = self.processor.batch_decode(ids, skip_special_tokens=True)
        references = [self.captions[int(index)] for index in prediction.label_ids]
        for caption, reference in list(zip(generated, references, strict=True))[: self.num_samples]:
            print(f"  generated: {caption}\n  reference: {reference[0]}", file=sys.stderr)
        metrics = {"distinct_captions": len(set(generated)) / len(generated)}
        contents = [moving_shapes.content(reference[0]) for reference in references]
        if all(contents):
            same = [moving_shapes.content(caption) == meant for caption, meant in zip(generated, contents, strict=True)]
            metrics["exact_content"] = sum(same) / len(same)
        return metrics


if __name__ == "__main__":
    main()

"""How many clips of moving shapes a model captions with exactly the right content, under greedy decoding.

    python -m swinbert.training.evaluate --model DIR --dataset shapes --split test

Not words are compared but what they say: `moving_shapes.content` of the generated caption with the clip's own. A
sentence that is not well formed says nothing, and is wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor

import swinbert  # noqa: F401  registers the Auto classes
from swinbert.training.data import ClipDataset, load_clips
from swinbert.training.moving_shapes import content


def generate_captions(model: Any, processor: Any, dataset: ClipDataset, batch_size: int = 50) -> Iterator[str]:
    """Greedy captions of a dataset's clips, in its order."""
    for first in range(0, len(dataset), batch_size):
        frames = [dataset[index]["frames"] for index in range(first, min(first + batch_size, len(dataset)))]
        inputs = processor.video_processor(frames, do_sample_frames=False, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(pixel_values_videos=inputs["pixel_values_videos"], num_beams=1, do_sample=False)
        yield from processor.batch_decode(ids, skip_special_tokens=True)


def exact_content(captions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each caption says what its reference says.

    Raises:
        ValueError: a reference is no sentence of moving shapes.
    """
    meant = [content(reference) for reference in references]
    if None in meant:
        odd = references[meant.index(None)]
        raise ValueError(f"Expected captions of moving shapes (`swinbert make-shapes`), found {odd!r}.")
    return [content(caption) == what for caption, what in zip(captions, meant, strict=True)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dataset", required=True, help="folder that `swinbert make-shapes` wrote")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    clips = load_clips(args.dataset, args.split)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model).to(args.device).eval()
    dataset = ClipDataset(clips, processor.video_processor)

    console = Console(stderr=True)
    generated = generate_captions(model, processor, dataset)
    captions = list(track(generated, "Captioning", len(clips), console=console, disable=not console.is_terminal))
    references = [each[0] for each in clips["captions"]]
    right = exact_content(captions, references)
    for caption, reference, file_name, is_right in zip(captions, references, clips["file_name"], right, strict=True):
        if not is_right:
            print(f"{file_name}\n  generated: {caption}\n  reference: {reference}", file=sys.stderr)
    result = {"split": args.split, "clips": len(right), "exact": sum(right), "exact_content": sum(right) / len(right)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()

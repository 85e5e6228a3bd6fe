"""Model cards: `template.md`, and one card for every released checkpoint of the paper."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

_FIELD = re.compile(r"\{\{ (\w+) \}\}")


def render_card(card_data: ModelCardData, **sections: str) -> str:
    """
    The text of a model card: `template.md` with its fields filled in.

    Args:
        card_data: the metadata.
        sections: Markdown for every other field of the template.

    Raises:
        ValueError: a field of the template is missing, or one is given that the template does not have.
    """
    template = resources.files(__name__).joinpath("template.md").read_text(encoding="utf-8")
    values = {"card_data": card_data.to_yaml().strip(), **sections}
    if wrong := set(_FIELD.findall(template)) ^ set(values):
        raise ValueError(f"A model card takes exactly the fields of template.md; missing or unknown: {sorted(wrong)}.")
    return _FIELD.sub(lambda match: values[match[1]].strip(), template)


def captioner_card(
    config: Any,
    *,
    title: str,
    summary: str,
    training: str,
    evaluation: str,
    provenance: str,
    datasets: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
    base_model: str | None = None,
) -> str:
    """
    A first card of a SwinBERT captioner, for its owner to complete: what holds for every one, and what is given.

    Args:
        config: its `SwinBertConfig`.
        title: its name.
        datasets: names on the Hub of what it was trained on.
        results: what was measured.
        base_model: what it is an adapter of, if it is one.
        summary, training, evaluation, provenance: Markdown.
    """
    height, width = config.vision_config.frame_size
    return render_card(
        ModelCardData(
            language="en",
            license="other",
            library_name="transformers" if base_model is None else "peft",
            base_model=base_model,
            pipeline_tag="video-text-to-text",
            tags=["video-captioning", "swinbert", "video-swin", *(["custom_code"] if base_model is None else ["lora"])],
            datasets=list(datasets) or None,
            metrics=sorted({result.metric_type for result in results}) or None,
            # What was measured has to name the model that it is of.
            model_name=title if results else None,
            eval_results=list(results) or None,
        ),
        title=title,
        summary=summary,
        sampling=(
            f"{config.num_frames} frames, evenly spaced from the first to the last of the clip; the short side resized"
            f" to {max(height, width)} pixels (bilinear), the centre {height} x {width} cropped, ImageNet mean and"
            " standard deviation. The processor in this folder does all of it."
        ),
        training=training,
        evaluation=evaluation,
        limits=(
            "It knows the words and events of the data that it was trained on, hears no sound and does not read text in"
            " the picture. It describes people as its annotators did, with their assumptions about gender and role: do"
            " not use it to identify people or to decide about them."
        ),
        provenance=provenance,
    )

"""Model cards: a template, and a card for every checkpoint that the authors of SwinBERT released."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

_FIELD = re.compile(r"\{\{ (\w+) \}\}")


def render_card(card_data: ModelCardData, **sections: str) -> str:
    """
    Fills in `template.md`.

    Args:
        card_data: the metadata of the card.
        sections: Markdown for every other field of the template.

    Raises:
        ValueError: a field of the template is missing, or a section is not a field of the template.
    """
    template = resources.files(__name__).joinpath("template.md").read_text(encoding="utf-8")
    values = {"card_data": card_data.to_yaml().strip(), **sections}
    if wrong := set(_FIELD.findall(template)) ^ set(values):
        raise ValueError(f"A model card needs exactly the fields of template.md; missing or unknown: {sorted(wrong)}.")
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
    A first model card of a SwinBERT captioner, for its owner to complete.

    Args:
        config: the model's `SwinBertConfig`, which determines the section on sampling.
        title: the name of the model.
        summary, training, evaluation, provenance: Markdown of these sections.
        datasets: names on the Hub of the training datasets.
        results: evaluation results for the metadata.
        base_model: the model that an adapter changes; `None` for a whole model.
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
            # huggingface_hub requires a name together with results.
            model_name=title if results else None,
            eval_results=list(results) or None,
        ),
        title=title,
        summary=summary,
        sampling=(
            f"{config.num_frames} frames, evenly spaced from the first to the last of the clip; the short side resized"
            f" to {max(height, width)} pixels (bilinear), the centre {height} x {width} cropped, ImageNet mean and"
            " standard deviation. The processor in this folder does this."
        ),
        training=training,
        evaluation=evaluation,
        limits=(
            "The model knows the words and events of its training data. Sound is not used, text in the picture is not"
            " read. Captions repeat the annotators' assumptions about gender and role of people: do not use them to"
            " identify people or to decide about them."
        ),
        provenance=provenance,
    )

"""Model cards: `template.md`, and one card for every released checkpoint of the paper."""

import re
from importlib import resources

from huggingface_hub import ModelCardData

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

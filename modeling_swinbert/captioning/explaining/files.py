"""Explanations of many clips as files: a folder for each, which appears whole or not at all."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from swinbert.captioning.caption import Clip
from swinbert.captioning.explaining.explanation import Explanation, explain
from swinbert.captioning.explaining.masks import mask_figure
from swinbert.captioning.explaining.page import page
from swinbert.captioning.explaining.pictures import words_figure
from swinbert.captioning.isolation import IsolatedReader
from swinbert.captioning.settings import caption_settings
from swinbert.processing.pipeline_swinbert import VideoCaptioningPipeline
from swinbert.processing.video_sources_swinbert import is_url
from swinbert.utils.files import new_folder, write_json
from swinbert.utils.text import one_line

_MAX_NAME_BYTES = 100


@dataclass(frozen=True)
class Explained:
    """
    What became of one clip.

    Args:
        clip: name of the clip.
        folder: where its explanation is; `None` with an `error`.
        error: why there is none, in one line.
    """

    clip: str
    folder: Path | None = None
    error: str | None = None


def explain_clips(
    clips: Sequence[Clip],
    captioner: VideoCaptioningPipeline,
    output: Path,
    *,
    overwrite: bool = False,
    isolation: IsolatedReader | None = None,
    **options: Any,
) -> Iterator[Explained]:
    """
    Explains clips, one after the other, each into a folder of `output` that is named after it. Those that are explained
    already, with the same settings, are not explained again.

    Args:
        captioner: its search finds the captions.
        overwrite: replace folders that hold something else.
        isolation: decodes clips in processes of its own.
        options: `method` and `caption` of [`explain`].

    Yields:
        One result for each clip, in their order; whatever is wrong with one of them costs none of the others.
    """
    settings = {**caption_settings(captioner), **options}
    for clip, name in zip(clips, folder_names(clips), strict=True):
        folder = output / name
        about = {"clip": clip.name, "start": clip.start, "end": clip.end, "settings": settings}
        try:
            if overwrite or not _is_explained(folder, about):
                arguments = {**_parameters(captioner), **options, "isolation": isolation}
                explanation = explain(captioner.model, captioner.processor, clip, **arguments)
                with new_folder(folder, overwrite) as unfinished:
                    write_explanation(explanation, unfinished, clip.video, captioner.model, about)
            yield Explained(clip.name, folder)
        except Exception as error:  # of any kind: it concerns this clip alone
            yield Explained(clip.name, error=one_line(error))


def _parameters(captioner: VideoCaptioningPipeline) -> dict[str, Any]:
    """How the captioner samples clips and searches captions."""
    return {**captioner._generate_kwargs, **captioner.sampling}


def _is_explained(folder: Path, about: dict[str, Any]) -> bool:
    """
    Raises:
        FileExistsError: the folder holds something else.
    """
    try:
        written = json.loads((folder / "explanation.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False  # whoever writes the folder refuses one with other files
    except (OSError, ValueError):
        written = None
    # As JSON has it: lists for tuples.
    if isinstance(written, dict) and json.loads(json.dumps(about)).items() <= written.items():
        return True
    raise FileExistsError(
        f"{folder} explains another clip, or this one with other settings: name another folder, or pass --overwrite."
    )


def folder_names(clips: Iterable[Clip]) -> list[str]:
    """The stem of each clip's file; of several clips with one stem, the later ones get a number: `clip-2`."""
    stems = [_stem(clip.name) for clip in clips]
    taken: set[str] = set()
    free = {stem.casefold() for stem in stems}
    names = []
    for stem in stems:
        name, number = stem, 1
        # Some file systems know one letter only, large and small.
        while name.casefold() in taken or number > 1 and name.casefold() in free:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _stem(name: str) -> str:
    path = re.sub(r"[?#].*", "", name) if is_url(name) else name
    stem = re.sub(r"[^\w.+ ()\[\]-]", "_", PurePath(path).stem).strip(" .") or "clip"
    return os.fsencode(stem)[:_MAX_NAME_BYTES].decode(errors="ignore")


def write_explanation(
    explanation: Explanation, folder: Path, video: Any, model: Any, about: dict[str, Any] | None = None
) -> None:
    """
    Writes `explanation.html`, `words.png`, for a model with a sparse mask `mask.png`, and `explanation.json`.

    Args:
        video: the clip; if it is a file that browsers play, the page has it.
        model: the model that was explained.
        about: further entries of the JSON file.
    """
    file = Path(video) if isinstance(video, (str, os.PathLike)) and Path(video).is_file() else None
    (folder / "explanation.html").write_text(page(explanation, file), encoding="utf-8")
    words_figure(explanation).savefig(folder / "words.png")
    if explanation.layers:
        grid = model.config.vision_config.output_grid
        mask_figure(model.model.sparse_mask, grid, explanation.layers).savefig(folder / "mask.png")
    write_json(folder / "explanation.json", {**explanation.to_dict(), **(about or {})})


__all__ = ["Explained", "explain_clips", "folder_names", "write_explanation"]

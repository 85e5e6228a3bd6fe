"""METEOR and SPICE: Java programs that come with `pycocoevalcap`, started when they are asked for."""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class MissingTool(RuntimeError):
    """A metric needs something that is not installed; the message says what, and how to get it."""


def check_meteor() -> Path:
    """METEOR's folder.

    Raises:
        MissingTool: pycocoevalcap or Java is missing.
    """
    return _coco_tools("METEOR") / "meteor"


def check_spice() -> Path:
    """SPICE's folder.

    Raises:
        MissingTool: pycocoevalcap, Java or the parser that SPICE needs is missing.
    """
    folder = _coco_tools("SPICE") / "spice"
    if missing := [name for name in SPICE_MODELS if not (folder / "lib" / name).exists()]:
        raise MissingTool(
            f"SPICE needs the parser Stanford CoreNLP 3.6.0, several hundred MB that are downloaded once, by `python "
            f"-m pycocoevalcap.spice.get_stanford_models` (not found: {', '.join(missing)} in {folder / 'lib'}). The "
            "other metrics do without: leave this one out to score with them."
        )
    return folder


def _coco_tools(metric: str) -> Path:
    """Folder of pycocoevalcap."""
    without = "BLEU, ROUGE-L, CIDEr and CIDEr-D need neither: leave this metric out to score with those."
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise MissingTool(f'{metric} needs pycocoevalcap: pip install "swinbert[metrics]" (and Java). {without}')
    if shutil.which("java") is None:
        raise MissingTool(
            f"{metric} is a Java program, and no `java` is on the PATH: install a Java runtime, on Debian and Ubuntu "
            f"by `apt install default-jre-headless`. {without}"
        )
    return Path(next(iter(package.submodule_search_locations)))


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of the corpus and of each candidate; starting the program takes some seconds.

    Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language", 2014.

    Raises:
        MissingTool: pycocoevalcap or Java is missing.
        RuntimeError: the program ended early.
    """
    folder = check_meteor()
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar"]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    with (
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)  # also when something fails in between
        assert process.stdin is not None and process.stdout is not None
        try:
            statistics = []
            for candidate, its_references in zip(candidates, references, strict=True):
                _write(process.stdin, " ||| ".join(["SCORE", *its_references, candidate]))
                statistics.append(process.stdout.readline().strip())
            _write(process.stdin, " ||| ".join(["EVAL", *statistics]))
            scores = [float(process.stdout.readline()) for _ in statistics]
            return float(process.stdout.readline()), scores
        except (OSError, ValueError) as error:
            raise RuntimeError(
                "METEOR's Java program gave no score. Does it start here, in "
                f"{folder}: `java -Xmx2G -jar meteor-1.5.jar`? ({error})"
            ) from error


def _write(stream: IO[str], line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """SPICE of the corpus and of each candidate; takes up to 8 GB of memory.

    Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016.

    Raises:
        MissingTool: pycocoevalcap, Java or the parser that SPICE needs is missing.
        RuntimeError: the program failed.
    """
    check_spice()
    from pycocoevalcap.spice.spice import Spice

    with contextlib.redirect_stdout(None):
        try:
            corpus, scores = Spice().compute_score(
                dict(enumerate(map(list, references))), {i: [candidate] for i, candidate in enumerate(candidates)}
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"SPICE's Java program failed; it is made for Java 8 and wants 8 GB. ({error})"
            ) from error
    return float(corpus), [float(score["All"]["f"]) for score in scores]

"""METEOR and SPICE: Java programs that come with `pycocoevalcap`, started when they are asked for."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

# Lines that METEOR's program is sent at once: few enough that its answers to them never fill its pipe.
_LINES_AT_ONCE = 100
# What parts texts, and lines, there.
_SEPARATOR = re.compile(r"\|{3,}|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class MissingTool(RuntimeError):
    """A metric needs something that is not installed; the message says what, and how to get it."""


def check_tools(metrics: Iterable[str]) -> None:
    """
    Whether all is there that METEOR and SPICE need, if they are among the metrics; starts nothing.

    Raises:
        MissingTool: pycocoevalcap, Java or the parser that SPICE needs is missing.
    """
    metrics = set(metrics)
    if "meteor" in metrics:
        _coco_tools("METEOR")
    if "spice" in metrics:
        folder = _coco_tools("SPICE") / "spice" / "lib"
        if missing := [name for name in SPICE_MODELS if not (folder / name).exists()]:
            raise MissingTool(
                f"SPICE needs the parser Stanford CoreNLP 3.6.0, several hundred MB that are downloaded once, by "
                f"`python -m pycocoevalcap.spice.get_stanford_models` (not found: {', '.join(missing)} in {folder})."
                " The other metrics do without: leave this one out to score with them."
            )


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
    folder = _coco_tools("METEOR") / "meteor"
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar"]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    with (
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},  # numbers with a point
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)  # also when something fails in between
        assert process.stdin is not None and process.stdout is not None
        lines = [_line("SCORE", *others, text) for text, others in zip(candidates, references, strict=True)]
        try:
            statistics = []
            for first in range(0, len(lines), _LINES_AT_ONCE):
                some = lines[first : first + _LINES_AT_ONCE]
                _write(process.stdin, some)
                statistics += [process.stdout.readline().strip() for _ in some]
            _write(process.stdin, [_line("EVAL", *statistics)])
            scores = [float(process.stdout.readline()) for _ in statistics]
            return float(process.stdout.readline()), scores
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):  # what could not be written is flushed once more
                process.stdin.close()
            raise RuntimeError(
                "METEOR's Java program gave no score. Does it start here, in "
                f"{folder}: `java -Xmx2G -jar meteor-1.5.jar`? ({error})"
            ) from error


def _line(*texts: str) -> str:
    return " ||| ".join(_SEPARATOR.sub(" ", text) for text in texts)


def _write(stream: IO[str], lines: Sequence[str]) -> None:
    stream.write("".join(line + "\n" for line in lines))
    stream.flush()


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """SPICE of the corpus and of each candidate; takes up to 8 GB of memory.

    Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016.

    Raises:
        MissingTool: pycocoevalcap, Java or the parser that SPICE needs is missing.
        RuntimeError: the program failed.
    """
    check_tools(["spice"])
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

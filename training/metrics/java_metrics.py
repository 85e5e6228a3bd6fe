"""METEOR and SPICE, by the Java programs of their authors that come with `pycocoevalcap`."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

# Lines sent to METEOR's program at a time: so few that its answers never fill the pipe.
_LINES_PER_WRITE = 100
# Separators of texts and of lines in the protocol of that program.
_SEPARATOR = re.compile(r"\|{3,}|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class MissingTool(RuntimeError):
    """A requirement of a metric is not installed; the message says which, and how to install it."""


def check_tools(metrics: Iterable[str]) -> None:
    """
    Checks the requirements of METEOR and SPICE, if they are among the metrics, without starting anything.

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
                f"SPICE needs the parser Stanford CoreNLP 3.6.0 (not found: {', '.join(missing)} in {folder}). Run"
                " `python -m pycocoevalcap.spice.get_stanford_models`, which downloads several hundred MB once, or"
                " leave this metric out."
            )


def _coco_tools(metric: str) -> Path:
    """The folder of pycocoevalcap; raises `MissingTool` without it or without Java."""
    alternative = "BLEU, ROUGE-L, CIDEr and CIDEr-D need neither: leave this metric out to compute those."
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise MissingTool(f'{metric} needs pycocoevalcap: pip install "swinbert[metrics]" (and Java). {alternative}')
    if shutil.which("java") is None:
        raise MissingTool(
            f"{metric} is a Java program, but there is no `java` on the PATH: install a Java runtime, on Debian and "
            f"Ubuntu by `apt install default-jre-headless`. {alternative}"
        )
    return Path(next(iter(package.submodule_search_locations)))


class Meteor:
    """
    The program of METEOR 1.5, with the options of `Meteor()` in pycocoevalcap. Starting takes seconds.

    Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language", 2014.

        with Meteor() as program:
            corpus, scores = program.scores(program.statistics(candidates, references))

    Raises:
        MissingTool: pycocoevalcap or Java is missing.
        RuntimeError: the program ended or gave no number.
    """

    def __init__(self) -> None:
        self._folder = _coco_tools("METEOR") / "meteor"
        command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar"]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        self._process = subprocess.Popen(
            command,
            cwd=self._folder,
            env={**os.environ, "LC_ALL": "C"},  # decimal points in the output
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # closing flushes again what could not be written
            self._process.__exit__(None, None, None)

    def statistics(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
        """What METEOR counts of each candidate; `scores` takes any choice of them, any number of times."""
        lines = [
            _line("SCORE", *its_references, text) for text, its_references in zip(candidates, references, strict=True)
        ]
        found = []
        for first in range(0, len(lines), _LINES_PER_WRITE):
            batch = lines[first : first + _LINES_PER_WRITE]
            found += self._answers(batch, len(batch))
        return found

    def scores(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """METEOR of the corpus that consists of some candidates, and of each of them."""
        answers = self._answers([_line("EVAL", *statistics)], len(statistics) + 1)
        try:
            *scores, corpus = map(float, answers)
        except ValueError as error:
            raise self._failure(error) from error
        return corpus, scores

    def _answers(self, lines: Sequence[str], number: int) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            _write(self._process.stdin, lines)
            answers = [self._process.stdout.readline().strip() for _ in range(number)]
        except OSError as error:
            raise self._failure(error) from error
        if not all(answers):
            raise self._failure("it ended")
        return answers

    def _failure(self, reason: object) -> RuntimeError:
        return RuntimeError(
            f"METEOR's Java program gave no score ({reason}). Check that `java -Xmx2G -jar meteor-1.5.jar` starts in"
            f" {self._folder}."
        )


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of the corpus and of each candidate, by [`Meteor`]."""
    with Meteor() as program:
        return program.scores(program.statistics(candidates, references))


def _line(*texts: str) -> str:
    return " ||| ".join(_SEPARATOR.sub(" ", text) for text in texts)


def _write(stream: IO[str], lines: Sequence[str]) -> None:
    stream.write("".join(line + "\n" for line in lines))
    stream.flush()


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """SPICE of the corpus and of each candidate, by `Spice()` of pycocoevalcap. Takes up to 8 GB of memory.

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
                f"SPICE's Java program failed ({error}). It is made for Java 8 and needs 8 GB of memory."
            ) from error
    return float(corpus), [float(score["All"]["f"]) for score in scores]

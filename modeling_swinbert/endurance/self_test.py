"""Running the suite: which case is next, what is counted, what is written down."""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from swinbert.endurance.cases import IN_PART, READ, REFUSED, Case, Outcome
from swinbert.endurance.shrinking import shrink

_PER_SIGNATURE = 3  # findings of one kind, place and sample that are written down


@dataclass
class Counts:
    """Of one target: how many cases came out how. `known` are documented limits of a library, and no findings."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, outcome: Outcome, known: frozenset[str]) -> None:
        self.cases += 1
        counter = self.outcomes if not outcome.is_finding else self.known if outcome.status in known else self.findings
        counter[outcome.status] += 1


@dataclass
class SelfTest:
    """
    The result of a run; `str()` is a table to print.

    Args:
        targets: name -> counts.
        findings: file with one line of JSON for each finding that was written down; `None` without any.
        complete: false after Ctrl-C.
    """

    seed: int
    targets: dict[str, Counts]
    findings: Path | None = None
    complete: bool = True

    @property
    def num_findings(self) -> int:
        return sum(sum(counts.findings.values()) for counts in self.targets.values())

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("target", "cases", READ, IN_PART, REFUSED, "findings")]
        for name, counts in self.targets.items():
            numbers = (counts.cases, *(counts.outcomes[status] for status in (READ, IN_PART, REFUSED)))
            known = f" (known: {_listed(counts.known)})" if counts.known else ""
            rows.append((name, *(f"{number:,}" for number in numbers), (_listed(counts.findings) or "0") + known))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:]), found])
            for name, *numbers, found in rows
        ]
        if self.findings is not None:
            lines.append(f"Findings with their reproducers are in {self.findings.parent}.")
        if not self.complete:
            lines.append("Interrupted.")
        return "\n".join(lines)


@contextmanager
def shown(minutes: float) -> Iterator[Callable[[SelfTest], Any]]:
    """A function for `announce` that shows counts and time behind a progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    bar = Progress(*Progress.get_default_columns()[:2], TimeElapsedColumn(), console=console, transient=True)
    if not console.is_terminal:
        yield lambda result: None
        return
    with bar:
        task = bar.add_task("Starting", total=60 * minutes)

        def show(result: SelfTest) -> None:
            cases = sum(counts.cases for counts in result.targets.values())
            text = f"{cases:,} cases, {result.num_findings:,} findings"
            bar.update(task, description=text, completed=sum(counts.seconds for counts in result.targets.values()))

        yield show


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(counter.items()))


def self_test(
    minutes: float = 1.0,
    seed: int = 0,
    output: Path | None = None,
    clips: Path | None = None,
    targets: Sequence[str] | None = None,
    most_cases: int | None = None,
    announce: Callable[[SelfTest], Any] = lambda result: None,
) -> SelfTest:
    """
    Tries mutants of files, of a server's answers and of command lines, until the time is over.

    Args:
        minutes: how long; each target gets an equal part.
        seed: the n-th case of a target depends on the seed alone.
        output: folder for `findings.jsonl` and the files of reproducers, created if there are findings.
        clips: a folder with more videos to mutate.
        targets: names; by default all.
        most_cases: of each target, at most.
        announce: called after each case.

    Raises:
        ValueError: there is no such target.
        OSError: `clips` or `output` cannot be used, or this is Windows, where processes cannot be limited.
    """
    if sys.platform == "win32":
        raise OSError("The self-test needs Linux or macOS, where processes can be limited in time and memory.")
    from swinbert.endurance.targets import all_targets, write_samples
    from swinbert.endurance.worker import Watched

    folder = Path(tempfile.mkdtemp(prefix="swinbert-endurance-"))
    try:
        write_samples(folder, clips)
        found = {target.name: target for target in all_targets(folder)}
        if unknown := set(targets or ()) - set(found):
            raise ValueError(f"Expected targets of {', '.join(found)}, got {', '.join(sorted(unknown))}.")
        chosen = {name: target for name, target in found.items() if not targets or name in targets}
        result = SelfTest(seed, {name: Counts() for name in chosen})
        preload = () if all(each.is_of_videos for each in chosen.values()) else ("swinbert.endurance.preloaded",)
        watched = Watched(all_targets, folder, preload=preload)
        try:
            watched.start()
            _run(watched, chosen, result, 60 * minutes, most_cases, output, announce)
        except KeyboardInterrupt:
            result.complete = False
        finally:
            watched.stop()
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    watched: Any,
    targets: dict[str, Any],
    result: SelfTest,
    seconds: float,
    most_cases: int | None,
    output: Path | None,
    announce: Callable[[SelfTest], Any],
) -> None:
    written: Counter[tuple[str, ...]] = Counter()
    end = time.monotonic() + seconds
    waiting = dict(targets)
    while waiting and time.monotonic() < end:
        name = min(waiting, key=lambda each: result.targets[each].seconds)
        counts, target = result.targets[name], targets[name]
        started = time.monotonic()
        case = target.draw(Random(f"{result.seed} {name} {counts.cases}"))
        outcome = watched.run(case)
        counts.add(outcome, target.known)
        alike = *outcome.signature, case.sample
        if outcome.is_finding and outcome.status not in target.known and written[alike] < _PER_SIGNATURE:
            written[alike] += 1
            if written[alike] == 1:
                case = shrink(case, outcome, watched.run)
            if output is not None:
                result.findings = _write_down(output, target, case, outcome, result.seed)
        counts.seconds += time.monotonic() - started
        if counts.cases == most_cases:
            del waiting[name]
        announce(result)


def _write_down(output: Path, target: Any, case: Case, outcome: Outcome, seed: int) -> Path:
    """Adds a line to `findings.jsonl`, with the file of the case beside it."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "findings.jsonl"
    number = len(file.read_text().splitlines()) if file.exists() else 0
    line: dict[str, Any] = {"seed": seed, **asdict(outcome), **asdict(case)}
    if (content := target.content(case)) is not None:
        line["file"] = f"{number:04}-{Path(case.sample).name}"
        (output / line["file"]).write_bytes(content)
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")
    return file

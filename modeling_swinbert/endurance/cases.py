"""What is tried, and what came of it."""

import json
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

from swinbert.endurance.mutation import Operation

# What is right: a result, a result that says what it lacks, or a documented error.
READ, IN_PART, REFUSED = "read", "in part", "refused"


@dataclass(frozen=True)
class Case:
    """
    One trial; in JSON, a reproducer.

    Args:
        target: name of the target.
        sample: name of the file, or of the command, that is mutated.
        operations: see `mutation.py`; of a command line its parts.
        settings: everything else that is drawn.
    """

    target: str
    sample: str
    operations: list[Operation]
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """
    Args:
        status: `READ`, `IN_PART`, `REFUSED`, or the kind of a finding.
        place: of a finding, what tells it from others of its kind.
        details: of a finding, for people.
    """

    status: str
    place: str = ""
    details: str = ""

    @property
    def is_finding(self) -> bool:
        return self.status not in (READ, IN_PART, REFUSED)

    @property
    def signature(self) -> tuple[str, str]:
        return self.status, self.place


class Finding(Exception):
    """Raised by a target where the rule is broken: kind, place and details of the outcome."""

    def __init__(self, kind: str, place: str, details: str):
        self.outcome = Outcome(kind, place, details)
        super().__init__(kind, place, details)


def foreign(error: BaseException) -> Outcome:
    """The finding of an exception that nobody has documented."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "swinbert" in frame.filename and "endurance" not in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else ""
    details = "".join(traceback.format_exception(error)[-12:])
    return Outcome("foreign exception", f"{type(error).__name__} in {place}", details[-4000:])


class Target(Protocol):
    """One thing that is tried. `draw` is called in the watching process, `run` in the watched one."""

    name: str
    known: frozenset[str]  # kinds of findings that are documented limits of a library: counted, and no findings
    is_of_videos: bool  # needs no torch

    def draw(self, random: Random) -> Case: ...

    def run(self, case: Case) -> str:
        """`READ`, `IN_PART` or `REFUSED`; raises `Finding`, or an exception that nobody has documented."""
        ...

    def content(self, case: Case) -> bytes | None:
        """The file of a case, for a reproducer; `None` where its JSON says all."""
        ...

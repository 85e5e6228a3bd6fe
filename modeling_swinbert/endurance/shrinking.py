"""From a case that fails to a small one that fails in the same way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from swinbert.endurance.cases import Case, Outcome


def shrink(case: Case, outcome: Outcome, run: Callable[[Case], Outcome], most_trials: int = 60) -> Case:
    """
    A case with fewer operations, simpler settings and, where it has a file, a shorter one, of the same `signature`.

    Args:
        run: tries a case.
        most_trials: calls of `run`.
    """
    trials = 0
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(case):
            if trials == most_trials:
                return case
            trials += 1
            if run(smaller).signature == outcome.signature:
                case, progress = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    operations: list[Any] = case.operations
    half = len(operations) // 2
    if half > 1:
        yield replace(case, operations=operations[:half])
        yield replace(case, operations=operations[half:])
    if len(operations) > 1:
        for number in range(len(operations)):
            yield replace(case, operations=operations[:number] + operations[number + 1 :])
    for name in case.settings:
        if name in ("start", "end", "strict"):
            yield replace(case, settings={key: value for key, value in case.settings.items() if key != name})
    if operations and operations[-1][0] == "cut" and operations[-1][1] > 1:
        yield replace(case, operations=[*operations[:-1], ["cut", operations[-1][1] // 2]])
        yield replace(case, operations=[*operations[:-1], ["cut", operations[-1][1] * 7 // 8]])

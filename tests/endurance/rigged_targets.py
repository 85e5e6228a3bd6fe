"""Targets that go wrong as they are told, to watch the watching process."""

import os
import time
from pathlib import Path

from swinbert.endurance.cases import READ, REFUSED, Case, Finding


class Rigged:
    """Fails if 3 and 7 are among the operations, which are numbers; how, `settings` say."""

    name, known, is_of_videos = "rigged", frozenset({"known limit"}), True

    def draw(self, random):
        how = random.choice(["nothing", "refuse", "raise", "crash", "hang", "limit"])
        operations = [[number] for number in random.sample(range(2, 9), 7)]
        return Case(self.name, "sample", operations, {"how": how, "strict": True})

    def content(self, case):
        return bytes(number for (number,) in case.operations)

    def run(self, case):
        how = case.settings["how"]
        if how == "refuse":
            return REFUSED
        if how == "nothing" or not {(3,), (7,)} <= set(map(tuple, case.operations)):
            return READ
        if how == "limit":
            raise Finding("known limit", "", "")
        if how == "crash":
            os.abort()
        while how == "hang":
            time.process_time()
        raise KeyError("foreign")


def targets(folder: Path):
    return [Rigged()]

"""
The table of `.ci/newest`: the release of each direct dependency, then what broke with these releases.

Reads, in the folder that is its argument, what the script leaves there of the oldest and of the newest releases:
`NAME.txt` (what was installed), `NAME.xml` (pytest's report) and `NAME.audit` (its result). The exit status is 1 if
something broke.
"""

import sys
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def direct_dependencies() -> list[str]:
    """Names, in the order of pyproject.toml."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    return list(dict.fromkeys(canonicalize_name(Requirement(line).name) for line in lines))


def releases(file: Path) -> dict[str, str]:
    """The release of each direct dependency in the output of `pip freeze`."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = {canonicalize_name(name): release for name, _, release in (line.partition("==") for line in lines)}
    return {name: found[name] for name in direct_dependencies() if name in found}


def failures(folder: Path, name: str) -> dict[str, str]:
    """What broke: the installation, pytest as a whole, or some tests of a file."""
    if not (folder / f"{name}.txt").exists():
        return {"installation": "FAILED"}
    report = folder / f"{name}.xml"
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if not cases:
        return {"pytest": "FAILED"}
    broken = (case for case in cases if case.find("failure") is not None or case.find("error") is not None)
    # A file that cannot be imported is a case whose name is its module.
    count = Counter(case.get("file") or case.get("name", "") for case in broken)
    return {file: f"{number} FAILED" for file, number in sorted(count.items())}


def print_table(columns: dict[str, dict[str, str]]) -> None:
    print(f"\n{'':44}" + "".join(f"{title:>16}" for title in columns))
    for row in dict.fromkeys(row for cells in columns.values() for row in cells):
        print(f"{row:44}" + "".join(f"{cells.get(row, '-'):>16}" for cells in columns.values()))


def main(folder: Path) -> int:
    names = ("oldest", "newest")
    broken = {name: failures(folder, name) for name in names}
    audits = {name: file.read_text().strip() for name in names if (file := folder / f"{name}.audit").exists()}
    print_table({name: releases(folder / f"{name}.txt") for name in names})
    print_table({name: {"audit": audits.get(name, "NOT AUDITED"), **broken[name]} for name in names})
    return int(any(broken.values()) or "VULNERABLE" in audits.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

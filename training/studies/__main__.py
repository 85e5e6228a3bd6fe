"""`python -m swinbert.training.studies` reproduces the paper's findings on moving shapes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from swinbert.training.checkpoints import RunError
from swinbert.training.studies import run_studies
from swinbert.training.studies.plan import STUDIES, Sizes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m swinbert.training.studies",
        description="Reproduce the paper's findings on moving shapes. Other arguments go to every `swinbert train`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies"), help="runs and report")
    parser.add_argument("--only", default="", help=f"some of {','.join(study.name for study in STUDIES)}")
    parser.add_argument(
        "--cores", default="", help="numbers of the cores, such as 0,1, each with one run at a time; by default all"
    )
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=name.replace("_", " "))
    args, extra = parser.parse_known_args(argv)
    sizes = Sizes(**{name: getattr(args, name) for name in vars(Sizes())})
    only, cores = ([each for each in text.split(",") if each] for text in (args.only, args.cores))
    try:
        failed = run_studies(args.output_dir, sizes, only, [int(core) for core in cores], extra)
    except (ValueError, OSError, RunError) as error:
        parser.exit(1, f"studies: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "studies: interrupted; the same command resumes.\n")
    for name, log in failed.items():
        print(f"studies: {name} failed:\n{log}", file=sys.stderr)
    print(args.output_dir / "studies.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

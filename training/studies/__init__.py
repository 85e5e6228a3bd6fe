"""The findings of the SwinBERT paper (arXiv:2111.13196), reproduced on moving shapes, at small scale and with seeds.

    python -m swinbert.training.studies --output_dir outputs/studies [--only frames,mask] [--seeds 3]

Every run is a `swinbert` command of its own, listed in `commands.sh` of the output folder. The same call resumes: it
repeats no finished run, and rewrites the report: `studies.md`, a picture of each study, and all numbers in
`studies.json`. Unknown arguments are passed to every `swinbert train`.

`plan.py` says which runs there are and why, `jobs.py` runs them, `report.py` writes the report.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from swinbert.processing.clip_reading_swinbert import available_cores
from swinbert.training.checkpoints import lock_output_folder
from swinbert.training.studies.jobs import read_results, run_jobs, shell_line
from swinbert.training.studies.plan import RECIPE, Sizes, chosen_studies, plan_jobs
from swinbert.training.studies.report import write_report
from swinbert.utils.files import write_atomically


def run_studies(
    folder: Path, sizes: Sizes, only: Sequence[str] = (), cores: Sequence[int] = (), extra: Sequence[str] = ()
) -> dict[str, str]:
    """
    Runs the jobs that have no result in `folder` yet, and writes the report.

    Args:
        only: names of studies; by default all.
        cores: the cores to use, one run at a time on each; by default all that this process may use.
        extra: arguments for every `swinbert train`.

    Returns:
        Job that failed or could not start -> the end of its log, or the reason.

    Raises:
        ValueError: a study does not exist, or `folder` has results of other arguments.
        RunError: another process uses `folder`.
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the current runs have saved a checkpoint.
    """
    jobs = plan_jobs(sizes, only, extra)
    with lock_output_folder(folder):
        recipe = folder / RECIPE.name
        if recipe.exists() and yaml.safe_load(recipe.read_bytes()) != yaml.safe_load(RECIPE.read_bytes()):
            raise ValueError(f"{folder} has runs of another recipe ({recipe.name}): give another --output_dir.")
        shutil.copyfile(RECIPE, recipe)
        commands = "".join(f"{shell_line(job)}\n" for job in jobs)
        write_atomically(folder / "commands.sh", f"# To be run in this folder, one after the other.\n{commands}")
        settings = {**vars(sizes), "extra": list(extra)}
        read_results(jobs, folder)
        try:
            return run_jobs(jobs, folder, cores or available_cores())
        finally:
            write_report(folder, chosen_studies(only), read_results(jobs, folder), settings)

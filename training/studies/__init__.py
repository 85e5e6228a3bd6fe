"""The findings of the SwinBERT paper (arXiv:2111.13196), rerun small on moving shapes, with several seeds.

    python -m swinbert.training.studies --output_dir outputs/studies [--only frames,mask] [--seeds 3]

Every run is a `swinbert` command of its own, listed in `commands.sh` of the output folder. The same call goes on where
the last one ended; it repeats nothing that is finished, and writes the report anew: `studies.md`, a picture of each
study, and all numbers in `studies.json`. Arguments that are not its own go to every `swinbert train`.

This file says what is run and why; `runs.py` runs it, `report.py` makes the report.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from swinbert.training.checkpoints import RunError, locked
from swinbert.training.studies.report import Study, write_report
from swinbert.training.studies.runs import Job, read_results, shell_line, work_off

RECIPE = Path(__file__).parents[1] / "recipes" / "studies.yaml"
FRAMES = (2, 4, 8, 16)
_BATCH_SIZE = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["per_device_train_batch_size"]


@dataclass(frozen=True)
class Sizes:
    """What decides how long it all takes: the defaults are for two hours on two cores.

    Args:
        clips, eval_clips: clips of each world to train on and to score.
        pretraining_steps: of the backbone, one for each seed, from which all its runs start.
        steps: of a run.
        tuning_steps: of the runs that go on from another one.
        seeds: how often all is run.
    """

    clips: int = 4000
    eval_clips: int = 300
    pretraining_steps: int = 2500
    steps: int = 700
    tuning_steps: int = 200
    seeds: int = 3


# --- Runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One `swinbert` command, to be run with each seed.

    Args:
        changes: arguments of `swinbert train` on top of the recipe. `{name}` is the model of another run, same seed.
        steps: the field of `Sizes` that says how many.
        harden: not training, but `swinbert harden` of this run's model.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    steps: str = "steps"
    harden: str | None = None


def _new(changes: dict[str, Any]) -> Run:
    """A model whose backbone is pretrained and whose fusion encoder is new, as in the paper."""
    return Run({"backbone": "{backbone}", **changes})


_SOFT: dict[str, Any] = {"config.sparse_mask": "soft"}
_PENALTY = {**_SOFT, "config.sparse_mask_form": "penalty"}
_NO_SPARSITY_LOSS: dict[str, Any] = {"config.sparsity_loss_weight": 0}
_TUNING: dict[str, Any] = {"learning_rate": 3e-4, "backbone_lr_factor": 1.0}

# Each after those that it starts from.
RUNS: dict[str, Run] = {
    # One fusion layer alone: the fewer, the sooner the words' errors reach the backbone, of which alone use is made.
    "backbone": Run(
        {"config.num_frames": 8, "config.num_hidden_layers": 1, "backbone_lr_factor": 1.0}, steps="pretraining_steps"
    ),
    "gate": _new(_SOFT),
    "gate-8-frames": _new({**_SOFT, "config.num_frames": 8}),
    **{f"full-{frames}-frames": _new({"config.num_frames": frames}) for frames in FRAMES},
    "gate-no-sparsity": _new({**_SOFT, **_NO_SPARSITY_LOSS}),
    "penalty": _new(_PENALTY),
    "penalty-no-sparsity": _new({**_PENALTY, **_NO_SPARSITY_LOSS}),
    "causal": _new({"objective": "causal_lm"}),
    "gate-binary": Run(harden="gate"),
    "tuned-binary": Run({"model": "{gate-binary}", **_TUNING}, steps="tuning_steps"),
    "tuned-soft": Run({"model": "{gate}", **_TUNING}, steps="tuning_steps"),
    "tuned-full": Run({"model": "{full-16-frames}", **_TUNING}, steps="tuning_steps"),
    "8-to-16-mask": _new({**_SOFT, "mask": "{gate-8-frames}"}),
    "8-to-16-mask-diagonal": _new({**_SOFT, "mask": "{gate-8-frames}", "mask_expansion": "diagonal"}),
    "8-to-16-entire": Run({"model": "{gate-8-frames}", "config.num_frames": 16}),
    "tiles-new-mask": _new({**_SOFT, "dataset": "tiles"}),
    "tiles-mask": _new({**_SOFT, "dataset": "tiles", "mask": "{gate}"}),
    "tiles-entire": Run({"model": "{gate}", "tokenizer": "captions", "dataset": "tiles"}),
}

# --- Studies ----------------------------------------------------------------------------------------------------------

STUDIES = (
    Study(
        name="frames",
        title="Frames of a clip",
        about="Full attention. The paper, CIDEr at 2/4/8/16/32/64 frames: MSRVTT 36.6/43.7/47.6/49.5/52.3/55.3, VATEX"
        " 47.4/58.2/65.2/68.4/71.1/72.7.",
        rows={f"{frames} frames": f"full-{frames}-frames" for frames in FRAMES},
        numbers=FRAMES,
    ),
    Study(
        name="mask",
        title="A learnable sparse mask against full attention",
        about="16 frames, mask as a gate. The paper, CIDEr at 32 frames (MSRVTT/VATEX): full 52.3/71.1, learnable"
        " 53.3/70.7, learnable with sparsity loss 55.1/71.6.",
        rows={
            "full attention": "full-16-frames",
            "learnable": "gate-no-sparsity",
            "learnable, sparsity loss": "gate",
        },
        sparsity=True,
    ),
    Study(
        name="binary",
        title="A binary mask against a soft one",
        about="Each run goes on from a finished one by the same few steps; the binary mask is the soft one, cut at one"
        " half. The paper, CIDEr at 64 frames, full/soft/binary: MSVD 144.7/149.4/146.3, MSRVTT 55.3/55.9/55.0, VATEX"
        " 72.7/73.0/71.9.",
        rows={"full attention": "tuned-full", "soft": "tuned-soft", "binary": "tuned-binary"},
        sparsity=True,
    ),
    Study(
        name="frame_rates",
        title="The mask of 8 frames for 16 frames",
        about="Gate with sparsity loss; equal steps at 16 frames, to which those at 8 frames come in addition. The"
        " paper, CIDEr, 32 to 64 frames, mask only/entire model: VATEX 73.0/72.4, MSRVTT 55.9/55.6.",
        rows={
            "new mask": "gate",
            "mask only, interpolated": "8-to-16-mask",
            "mask only, repeated along the diagonal": "8-to-16-mask-diagonal",
            "entire model": "8-to-16-entire",
        },
        sparsity=True,
    ),
    Study(
        name="datasets",
        title="The mask of one world for another",
        about="From the world `shapes` to `tiles`: other shapes, colours and words, the same events. Gate with sparsity"
        " loss; equal steps on `tiles`. The backbone of all runs was pretrained on `shapes`.",
        rows={"new mask": "tiles-new-mask", "mask only": "tiles-mask", "entire model": "tiles-entire"},
        sparsity=True,
    ),
    Study(
        name="forms",
        title="Penalty against gate",
        about="16 frames. `penalty` adds (1 - M) * -10000 to attention scores (the released code), `gate` adds log M"
        " (the paper's text, as we read it). The paper has no such comparison.",
        rows={
            "gate": "gate-no-sparsity",
            "penalty": "penalty-no-sparsity",
            "gate, sparsity loss": "gate",
            "penalty, sparsity loss": "penalty",
        },
        sparsity=True,
    ),
    Study(
        name="sparsity",
        title="Sparsity by epoch",
        about="Share of the mask's off-diagonal entries below one half, and its mean value. The paper: over 95% of the"
        " entries end at zero.",
        rows={
            "gate": "gate-no-sparsity",
            "gate, sparsity loss": "gate",
            "penalty": "penalty-no-sparsity",
            "penalty, sparsity loss": "penalty",
        },
        sparsity=True,
        curves=True,
    ),
    Study(
        name="objectives",
        title="Masked LM against causal LM",
        about="Full attention, 16 frames, equal steps and captions: SwinBERT's objective predicts three quarters of the"
        " words, GIT's all. Their losses are not of the same words, and are not compared. The paper has no such"
        " comparison.",
        rows={"masked LM": "full-16-frames", "causal LM": "causal"},
        compare_loss=False,
    ),
)

# --- From runs to commands --------------------------------------------------------------------------------------------


def plan(sizes: Sizes, only: Sequence[str] = (), extra: Sequence[str] = ()) -> list[Job]:
    """
    All jobs, each after those that it needs.

    Args:
        only: names of studies; by default all.
        extra: arguments for every `swinbert train`.

    Raises:
        ValueError: a study that does not exist.
    """
    known = [study.name for study in STUDIES]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"No study {unknown[0]!r}; there are {', '.join(known)}.")
    wanted = {run for study in STUDIES if not only or study.name in only for run in study.rows.values()}
    for name in reversed(RUNS):
        wanted |= set(_sources(RUNS[name])) if name in wanted else set()
    runs = [name for name in RUNS if name in wanted]
    worlds = dict.fromkeys(RUNS[name].changes.get("dataset", "shapes") for name in runs if not RUNS[name].harden)
    jobs = [_world_job(world, sizes) for world in worlds]
    jobs += [_job(name, seed, sizes, extra) for seed in range(sizes.seeds) for name in runs]
    # The backbones first, for which all the others of a seed wait.
    return sorted(
        jobs, key=lambda job: (job.run not in (*worlds, "backbone"), job.seed if job.seed is not None else -1)
    )


def _sources(run: Run) -> list[str]:
    named = [name for value in run.changes.values() for name in re.findall(r"\{([\w-]+)\}", str(value))]
    return [*named, *([run.harden] if run.harden else [])]


def _folder(name: str, seed: int) -> str:
    return f"runs/{name}-seed{seed}"


def _world_job(world: str, sizes: Sizes) -> Job:
    numbers = {"train": sizes.clips, "validation": sizes.eval_clips, "test": 0}
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    argv = ("make-shapes", world, *options, "--world", world, "--kinds", "solo,sequence")
    return Job(world, world, None, argv, output=world, seconds=0.015 * (sizes.clips + sizes.eval_clips))


def _job(name: str, seed: int, sizes: Sizes, extra: Sequence[str]) -> Job:
    run, output = RUNS[name], _folder(name, seed)
    needs = [f"{source}-seed{seed}" for source in _sources(run)]
    if run.harden:
        argv = ["harden", _folder(run.harden, seed), "--output", output]
        return Job(f"{name}-seed{seed}", name, seed, tuple(argv), tuple(needs), output, seconds=2)
    steps = getattr(sizes, run.steps)
    part = max(1, steps // 4)
    values = {
        **{
            key: re.sub(r"\{([\w-]+)\}", lambda m: _folder(m[1], seed), str(value))
            for key, value in run.changes.items()
        },
        **{"max_steps": steps, "eval_steps": part, "save_steps": part, "seed": seed, "output_dir": output},
    }
    argv = ["train", RECIPE.name, *(word for key, value in values.items() for word in (f"--{key}", str(value)))]
    frames = int(run.changes.get("config.num_frames", 16))
    return Job(
        f"{name}-seed{seed}",
        name,
        seed,
        (*argv, *extra),
        (*needs, run.changes.get("dataset", "shapes")),
        output,
        # On one core, about: start, steps, and five evaluations (one more at the end).
        seconds=3 + steps * (0.18 + 0.006 * frames) + 5 * 0.012 * sizes.eval_clips,
        epochs=steps * _BATCH_SIZE / sizes.clips,
        resumable=True,
    )


# --- All of it --------------------------------------------------------------------------------------------------------


def run_studies(
    folder: Path, sizes: Sizes, only: Sequence[str] = (), cores: Sequence[int] = (), extra: Sequence[str] = ()
) -> dict[str, str]:
    """
    Runs what is missing in `folder` and writes the report.

    Args:
        cores: a run at a time on each of them; by default on all that this process may use.

    Returns:
        Names of the runs that failed, with the end of their logs.

    Raises:
        ValueError: an unknown study; results in `folder` are of other arguments.
        RunError: another process uses `folder`.
        KeyboardInterrupt: on Ctrl-C and SIGTERM, when the runs under way have saved a checkpoint.
    """
    jobs = plan(sizes, only, extra)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(SimpleNamespace(process_index=0, output_dir=folder)):  # type: ignore[arg-type]
        recipe = folder / RECIPE.name
        if recipe.exists() and recipe.read_bytes() != RECIPE.read_bytes():
            raise ValueError(f"{folder} holds runs of another recipe ({recipe.name}): give another --output_dir.")
        shutil.copyfile(RECIPE, recipe)
        commands = "".join(f"{shell_line(job)}\n" for job in jobs)
        (folder / "commands.sh").write_text(f"# In this folder, one after the other.\n{commands}", encoding="utf-8")
        chosen = [study for study in STUDIES if not only or study.name in only]
        settings = {**vars(sizes), "extra": list(extra)}
        read_results(jobs, folder)
        try:
            return work_off(jobs, folder, cores or default_cores())
        finally:
            write_report(folder, chosen, read_results(jobs, folder), settings)


def default_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m swinbert.training.studies",
        description="Rerun the paper's findings on moving shapes. Other arguments go to every `swinbert train`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies"), help="runs and report")
    parser.add_argument("--only", default="", help=f"some of {','.join(study.name for study in STUDIES)}")
    parser.add_argument("--cores", default="", help="numbers of the cores, such as 0,1: a run on each (all there are)")
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
        parser.exit(130, "studies: ended early; the same command goes on from here.\n")
    for name, log in failed.items():
        print(f"studies: {name} failed:\n{log}", file=sys.stderr)
    print(args.output_dir / "studies.md")
    return 1 if failed else 0

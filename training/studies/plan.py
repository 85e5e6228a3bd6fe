"""The studies: which runs answer which question of the paper, and the `swinbert` commands of these runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swinbert.training.studies.jobs import Job

RECIPE = Path(__file__).parents[1] / "recipes" / "studies.yaml"
FRAMES = (2, 4, 8, 16)
_BATCH_SIZE = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["per_device_train_batch_size"]


@dataclass(frozen=True)
class Sizes:
    """
    Sizes of the data and lengths of the runs. With the defaults all studies take two hours on two cores.

    Args:
        clips, eval_clips: clips of each world to train on and to evaluate on.
        pretraining_steps: steps of the backbone's pretraining; each seed has one backbone, from which its runs start.
        steps: steps of a run.
        tuning_steps: steps of a run that starts from the model of another run.
        seeds: number of seeds.
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
    """
    A `swinbert` command that is run with each seed.

    Args:
        changes: arguments of `swinbert train`, on top of the recipe. `{name}` stands for the model of another run with
            the same seed.
        steps: the field of `Sizes` with the number of training steps.
        harden: run `swinbert harden` on the model of this run instead of training.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    steps: str = "steps"
    harden: str | None = None


def _new_model(changes: dict[str, Any]) -> Run:
    """Training of a model with a pretrained backbone and a fusion encoder from scratch, as in the paper."""
    return Run({"backbone": "{backbone}", **changes})


_SOFT: dict[str, Any] = {"config.sparse_mask": "soft"}
_PENALTY = {**_SOFT, "config.sparse_mask_form": "penalty"}
_NO_SPARSITY_LOSS: dict[str, Any] = {"config.sparsity_loss_weight": 0}
_TUNING: dict[str, Any] = {"learning_rate": 3e-4, "backbone_lr_factor": 1.0}

# A run comes after the runs that it starts from.
RUNS: dict[str, Run] = {
    # Only the backbone of this run is used. With a single fusion layer, gradients of the captions reach it sooner.
    "backbone": Run(
        {"config.num_frames": 8, "config.num_hidden_layers": 1, "backbone_lr_factor": 1.0}, steps="pretraining_steps"
    ),
    "gate": _new_model(_SOFT),
    "gate-8-frames": _new_model({**_SOFT, "config.num_frames": 8}),
    **{f"full-{frames}-frames": _new_model({"config.num_frames": frames}) for frames in FRAMES},
    "gate-no-sparsity": _new_model({**_SOFT, **_NO_SPARSITY_LOSS}),
    "penalty": _new_model(_PENALTY),
    "penalty-no-sparsity": _new_model({**_PENALTY, **_NO_SPARSITY_LOSS}),
    "causal": _new_model({"objective": "causal_lm"}),
    "gate-binary": Run(harden="gate"),
    "tuned-binary": Run({"model": "{gate-binary}", **_TUNING}, steps="tuning_steps"),
    "tuned-soft": Run({"model": "{gate}", **_TUNING}, steps="tuning_steps"),
    "tuned-full": Run({"model": "{full-16-frames}", **_TUNING}, steps="tuning_steps"),
    "8-to-16-mask": _new_model({**_SOFT, "mask": "{gate-8-frames}"}),
    "8-to-16-mask-diagonal": _new_model({**_SOFT, "mask": "{gate-8-frames}", "mask_expansion": "diagonal"}),
    "8-to-16-entire": Run({"model": "{gate-8-frames}", "config.num_frames": 16}),
    "tiles-new-mask": _new_model({**_SOFT, "dataset": "tiles"}),
    "tiles-mask": _new_model({**_SOFT, "dataset": "tiles", "mask": "{gate}"}),
    "tiles-entire": Run({"model": "{gate}", "tokenizer": "captions", "dataset": "tiles"}),
}

# --- Studies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """
    A question, and the runs that answer it.

    Args:
        about: what is compared, and what the paper found.
        rows: label of a row of the table -> its run.
        numbers: positions of the rows on a numeric axis, if they have any.
        sparsity: report statistics of the sparse mask.
        curves: draw the sparse mask by epoch instead of the final scores.
        compare_loss: whether the losses of the rows are comparable.
    """

    name: str
    title: str
    about: str
    rows: Mapping[str, str]
    numbers: Sequence[float] = ()
    sparsity: bool = False
    curves: bool = False
    compare_loss: bool = True


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
        about="Each run trains a finished model for the same few further steps; the binary mask is the soft mask,"
        " thresholded at one half. The paper, CIDEr at 64 frames, full/soft/binary: MSVD 144.7/149.4/146.3, MSRVTT"
        " 55.3/55.9/55.0, VATEX 72.7/73.0/71.9.",
        rows={"full attention": "tuned-full", "soft": "tuned-soft", "binary": "tuned-binary"},
        sparsity=True,
    ),
    Study(
        name="frame_rates",
        title="The mask of 8 frames for 16 frames",
        about="Gate with sparsity loss; equal steps at 16 frames, in addition to the steps at 8 frames. The"
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
        " words, GIT's all of them. Their losses are over different words, and cannot be compared. The paper has no"
        " such comparison.",
        rows={"masked LM": "full-16-frames", "causal LM": "causal"},
        compare_loss=False,
    ),
)

# --- From runs to commands --------------------------------------------------------------------------------------------


def _source_runs(run: Run) -> list[str]:
    """Names of the runs whose models a run starts from."""
    named = [name for value in run.changes.values() for name in re.findall(r"\{([\w-]+)\}", str(value))]
    return [*named, *([run.harden] if run.harden else [])]


def _output_folder(name: str, seed: int) -> str:
    return f"runs/{name}-seed{seed}"


def _dataset_job(world: str, sizes: Sizes) -> Job:
    numbers = {"train": sizes.clips, "validation": sizes.eval_clips, "test": 0}
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    argv = ("make-shapes", world, *options, "--world", world, "--kinds", "solo,sequence")
    return Job(world, world, None, argv, output=world, seconds=0.015 * (sizes.clips + sizes.eval_clips))


def _run_job(name: str, seed: int, sizes: Sizes, extra: Sequence[str]) -> Job:
    run, output = RUNS[name], _output_folder(name, seed)
    needs = [f"{source}-seed{seed}" for source in _source_runs(run)]
    if run.harden:
        argv = ["harden", _output_folder(run.harden, seed), "--output", output]
        return Job(f"{name}-seed{seed}", name, seed, tuple(argv), tuple(needs), output, seconds=2)
    steps = getattr(sizes, run.steps)
    interval = max(1, steps // 4)
    values = {
        **{
            key: re.sub(r"\{([\w-]+)\}", lambda m: _output_folder(m[1], seed), str(value))
            for key, value in run.changes.items()
        },
        **{"max_steps": steps, "eval_steps": interval, "save_steps": interval, "seed": seed, "output_dir": output},
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
        # Estimate for one core: start, steps, and five evaluations (one of them at the end).
        seconds=3 + steps * (0.18 + 0.006 * frames) + 5 * 0.012 * sizes.eval_clips,
        epochs=steps * _BATCH_SIZE / sizes.clips,
        resumable=True,
    )


def chosen_studies(only: Sequence[str] = ()) -> list[Study]:
    """
    The studies of these names, or all.

    Raises:
        ValueError: a study does not exist.
    """
    known = [study.name for study in STUDIES]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"No study {unknown[0]!r}; there are {', '.join(known)}.")
    return [study for study in STUDIES if not only or study.name in only]


def plan_jobs(sizes: Sizes, only: Sequence[str] = (), extra: Sequence[str] = ()) -> list[Job]:
    """
    All jobs, each after the jobs that it needs.

    Args:
        only: names of studies; by default all.
        extra: arguments for every `swinbert train`.

    Raises:
        ValueError: a study does not exist.
    """
    wanted = {run for study in chosen_studies(only) for run in study.rows.values()}
    for name in reversed(RUNS):
        wanted |= set(_source_runs(RUNS[name])) if name in wanted else set()
    runs = [name for name in RUNS if name in wanted]
    worlds = dict.fromkeys(RUNS[name].changes.get("dataset", "shapes") for name in runs if not RUNS[name].harden)
    jobs = [_dataset_job(world, sizes) for world in worlds]
    jobs += [_run_job(name, seed, sizes, extra) for seed in range(sizes.seeds) for name in runs]
    # Datasets and backbones first: all the other runs need them.
    return sorted(
        jobs, key=lambda job: (job.run not in (*worlds, "backbone"), job.seed if job.seed is not None else -1)
    )

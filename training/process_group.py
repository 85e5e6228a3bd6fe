"""What processes need: one world of several, a parameter whole that they share out, memory that goes back."""

import contextlib
import copy
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from swinbert.training.checkpoints import RunError


def check_world(args: TrainingArguments, objective: str | None = None) -> None:
    """
    Raises:
        RunError: a launcher started several processes, but each would train on its own; FSDP would be left out; or the
            objective cannot do with parts of the weights.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # `accelerate launch --cpu --num_processes N` prepares for N processes and starts one.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    alone = on_cpu and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
    if launched != args.world_size or alone:
        raise RunError(
            f"The launcher was asked for {'several' if alone else launched} processes, the trainer sees"
            f" {args.world_size}: each would train a model of its own. On CPUs give --use_cpu to `swinbert train`, and"
            " launch it by `torchrun --nproc_per_node N` or `accelerate launch --multi_gpu --num_processes N`."
        )
    wants_fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and (args.device.type == "cpu" or "RANK" not in os.environ):
        raise RunError("FSDP needs GPUs, and a launcher (torchrun); without, every process would hold the whole model.")
    if objective == "scst" and (wants_fsdp or is_deepspeed_zero3_enabled()):
        raise RunError("scst wants whole weights in each process: instead of ZeRO-3 or FSDP use ZeRO-2, or neither.")


def keep_freed_memory(keep: bool) -> None:
    """
    Whether glibc keeps freed memory for later or gives it back to the system at once, from 4 MiB on; of itself it keeps
    what is below 32 MiB. For a base model on a CPU, keeping all makes a step 1.2 times as fast, since none is got anew
    page by page, and takes 4% more memory; with checkpointing, giving back saves 1 of 4.3 GiB for a third more time.
    """
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4
    with contextlib.suppress(OSError, AttributeError):  # another system, or another library of C
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if keep:
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
        else:
            mallopt(m_mmap_threshold, 4 << 20)


def read_by_all(args: Any) -> None:
    """Lets each process read a whole stream and take its share of the batches: by default one would read for all, which
    cannot be shared out where captions differ in length from batch to batch."""
    args.accelerator_config.dispatch_batches = False


def leave_world() -> None:
    """Ends what connects the processes, when all are done: without, one may abort on its way out."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def loaded_whole(args: TrainingArguments) -> Iterator[None]:
    """Under ZeRO-3, transformers parts a model among the processes while it is made, before weights can be put into it:
    here it is made whole, and DeepSpeed parts it when training begins."""
    config = getattr(args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def whole(module: nn.Module) -> Any:
    """
    The module with its own parameters whole and without gradient, where processes share them out (ZeRO-3, FSDP).

    A collective operation: all processes must call it.
    """
    result = copy.copy(module)
    result._parameters = {}
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(parameter, DTensor):
            parameter = parameter.full_tensor()
        elif hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                parameter = parameter.detach().clone()
        result._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    return result

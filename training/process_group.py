"""Distributed training: checks of the process group, and parameters that processes shard."""

import contextlib
import copy
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


def check_process_group(args: TrainingArguments, objective: str | None = None) -> None:
    """
    Raises:
        RunError: a launcher started several processes that do not form a process group; FSDP would be ignored; or the
            objective does not work with sharded parameters.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # `accelerate launch --cpu --num_processes N` sets the environment of N processes and starts one.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    is_single = on_cpu and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
    if launched != args.world_size or is_single:
        raise RunError(
            f"The launcher was asked for {'several' if is_single else launched} processes, the trainer sees"
            f" {args.world_size}: each would train a model of its own. On CPUs give --use_cpu to `swinbert train`, and"
            " launch it by `torchrun --nproc_per_node N` or `accelerate launch --multi_gpu --num_processes N`."
        )
    wants_fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and (args.device.type == "cpu" or "RANK" not in os.environ):
        raise RunError(
            "FSDP needs GPUs and a launcher (torchrun); without them every process would hold the whole model."
        )
    if objective == "scst" and (wants_fsdp or is_deepspeed_zero3_enabled()):
        raise RunError(
            "--objective scst needs all parameters in each process: instead of ZeRO-3 or FSDP use ZeRO-2, or neither."
        )


def destroy_process_group() -> None:
    """Waits for all processes and disconnects them: otherwise one may abort when it exits."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def unsharded_initialization(args: TrainingArguments) -> Iterator[None]:
    """
    Within the context, models are created with all their parameters, also under ZeRO-3.

    transformers would shard a model while it creates it, and weights could not be copied into it. DeepSpeed shards the
    model when training begins.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def gather_parameters(module: nn.Module) -> Any:
    """
    A copy of a module whose own parameters are gathered from all processes (ZeRO-3, FSDP), without gradients.

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

"""`swinbert train` as the tests of several processes launch it, with replacements for what CPUs lack.

    torchrun --nproc_per_node 2 tests/launched.py RECIPE [--name value ...]

DeepSpeed would first compile an operator for gradients in shared memory, which takes minutes. accelerate supports FSDP
only on GPUs: with ACCELERATE_TORCH_DEVICE=cpu, it treats the processes as if they had GPUs. With DIE_AT=N, the second
process is killed during step N. The indices of the evaluated clips are written to evaluated.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from swinbert.training import process_group, train

if os.environ.get("DS_ACCELERATOR") == "cpu":
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False

if os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu":
    import torch.distributed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    train.check_process_group = lambda *args: None


class KillProcess(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step + 1 == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    trainer = train.build_trainer(sys.argv[1:])
    trainer.add_callback(KillProcess())
    metrics = trainer.compute_metrics

    def compute_metrics(prediction):
        if trainer.is_world_process_zero():
            indices = json.dumps(prediction.label_ids.tolist())
            Path(trainer.args.output_dir, "evaluated.json").write_text(indices)
        return metrics(prediction)

    trainer.compute_metrics = compute_metrics
    train.run(trainer)
    process_group.destroy_process_group()


if __name__ == "__main__":
    main()

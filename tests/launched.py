"""`swinbert train` as the tests of several processes launch it: with what CPUs lack put in.

    torchrun --nproc_per_node 2 tests/launched.py RECIPE [--name value ...]

DeepSpeed would first compile an operator that exchanges gradients through shared memory, which takes minutes.
accelerate knows FSDP on GPUs alone: with ACCELERATE_TORCH_DEVICE=cpu, it takes the processes for such. With DIE_AT=N
the second process is killed in the midst of step N. Leaves the numbers of the evaluated clips in evaluated.json.
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


class Die(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step + 1 == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    trainer = train.build_trainer(sys.argv[1:])
    trainer.add_callback(Die())
    metrics = trainer.compute_metrics

    def compute_metrics(prediction):
        if trainer.is_world_process_zero():
            numbers = json.dumps(prediction.label_ids.tolist())
            Path(trainer.args.output_dir, "evaluated.json").write_text(numbers)
        return metrics(prediction)

    trainer.compute_metrics = compute_metrics
    train.run(trainer)
    process_group.destroy_process_group()


if __name__ == "__main__":
    main()

"""`swinbert train` as the tests of several processes launch it: with what CPUs lack put in.

    torchrun --nproc_per_node 2 tests/launched.py RECIPE [--name value ...]

DeepSpeed would first compile an operator that exchanges gradients through shared memory, which takes minutes.
accelerate knows FSDP on GPUs alone: with ACCELERATE_TORCH_DEVICE=cpu, it takes the processes for such.
"""

import os
import sys

from swinbert.training import processes, train

if os.environ.get("DS_ACCELERATOR") == "cpu":
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False

if os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu":
    import torch.distributed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    processes.check_world = train.check_world = lambda args: None

if __name__ == "__main__":
    train.main(sys.argv[1:])

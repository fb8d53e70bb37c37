"""Several processes in a test, forked from one that has imported what they need, which takes each ten seconds."""

import multiprocessing

import torch
from lightning.pytorch.strategies import DDPStrategy

# Nothing of vr1 or the tests, so that a test that changes a module for itself changes it for its processes alone.
multiprocessing.set_forkserver_preload(
    [
        "torch",
        "lightning.pytorch",
        "torchmetrics.detection",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "peft",
        "bitsandbytes",
        "scipy.optimize",
        "pycocotools.cocoeval",
    ]
)


class _Forked(DDPStrategy):
    def __init__(self):
        super().__init__(start_method="forkserver", process_group_backend="gloo")

    def setup_environment(self):
        # Tensors come to a process in memory that all of them share. Lightning copies them for "spawn" alone.
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            tensor.data = tensor.data.clone()
        super().setup_environment()


def two_ranks():
    """Settings of a trainer for two processes with DDP; new ones for each trainer, which keeps the strategy."""
    return {"devices": 2, "strategy": _Forked()}


def start_two(function, *arguments):
    """Call a function in two processes, with the number of each before the arguments, and wait for both."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")

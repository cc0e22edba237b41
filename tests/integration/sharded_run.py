"""``difftrain`` with the adapter's weights sharded over its processes, for a process that does nothing else.

Stands for what sharded training will do: everything but the two functions here is the project's own.
"""

import sys

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from difftrain.cli.main import run
from difftrain.model.low_rank.lora import Lora

attach = Lora.attach


def attach_sharded(self, denoiser, targets, dtype):
    attach(self, denoiser, targets, dtype)
    frozen = {parameter for parameter in denoiser.parameters() if not parameter.requires_grad}
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(denoiser, mesh=mesh, ignored_params=frozen)


def leave_as_it_is(self, model, **options):
    return model


def main():
    Lora.attach = attach_sharded
    Accelerator.prepare_model = leave_as_it_is
    sys.exit(run(sys.argv[1:]))

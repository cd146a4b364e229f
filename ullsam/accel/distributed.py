"""The processes that a launcher started, or this one alone: who does what, and one list of all results.

`accelerate launch -m ullsam ...` starts one process per GPU. On a machine without a GPU it starts a single one unless told
otherwise: `accelerate launch --multi_gpu --num_processes 2 -m ullsam ...` starts two, which talk by gloo, as torchrun does.
Training keeps the whole model on each GPU; with `accelerate launch --use_fsdp ...` each GPU keeps its part of every weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def distributed_state():
    """This process among its fellows: process_index, num_processes, is_main_process, device, wait_for_everyone().

    Source: accelerate's PartialState, which joins processes on the CPU only when told to.
    """
    from accelerate import PartialState

    return PartialState(cpu=torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available())


def device() -> torch.device:
    """Where this process computes: its own GPU if there is one, else the CPU."""
    own = distributed_state().device
    return own if own.type == "cuda" else torch.device("cpu")


def local_items(items: Sequence[T]) -> list[T]:
    """This process's items of a list that all processes have; together they do each once."""
    state = distributed_state()
    return list(items[state.process_index :: state.num_processes])


def gather_results(numbered: Sequence[tuple[int, T]]) -> list[T]:
    """The results of all processes, sorted by their numbers, for every process.

    Args:
        numbered: (number, result) of this process; no number occurs twice among them.
    """
    from accelerate.utils import gather_object

    distributed_state()
    return [result for _, result in sorted(gather_object(list(numbered)), key=lambda pair: pair[0])]


def wants_shards() -> bool:
    """True where several processes were asked to divide the weights among them: accelerate launch --use_fsdp."""
    from accelerate.utils import parse_flag_from_env

    return distributed_state().num_processes > 1 and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def shard(module: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Divides every weight of `module` among the processes; those of a layer are put together while it computes.

    PyTorch's own function and not accelerate's, which refuses to be set up where there is no GPU.

    Args:
        module: changed in place, the same one in all processes; its weights become DTensors.
        layers: the large parts of it that compute one after the other.

    Source: FSDP2 (torch.distributed.fsdp.fully_shard).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device().type, (distributed_state().num_processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor as a whole: a divided one is collected on the CPU, by all processes at once."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a tensor that belongs to a divided parameter; any other tensor as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)

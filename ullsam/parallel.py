"""The processes that a launcher started, or this one alone: who does what, and one list of all results.

`accelerate launch -m ullsam ...` starts one process per GPU. On a machine without a GPU it starts a single one unless told
otherwise: `accelerate launch --multi_gpu --num_processes 2 -m ullsam ...` starts two, which talk by gloo, as torchrun does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def team():
    """This process among its fellows: process_index, num_processes, is_main_process, device, wait_for_everyone().

    Source: accelerate's PartialState, which joins processes on the CPU only when told to.
    """
    from accelerate import PartialState

    return PartialState(cpu=torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available())


def device() -> torch.device:
    """Where this process computes: its own GPU if there is one, else the CPU."""
    place = team().device
    return place if place.type == "cuda" else torch.device("cpu")


def share(items: Sequence[T]) -> list[T]:
    """This process's items of a list that all processes have; together they do each once."""
    state = team()
    return list(items[state.process_index :: state.num_processes])


def collect(numbered: Sequence[tuple[int, T]]) -> list[T]:
    """The results of all processes, sorted by their numbers, for every process.

    Args:
        numbered: (number, result) of this process; no number occurs twice in the team.
    """
    from accelerate.utils import gather_object

    team()
    return [result for _, result in sorted(gather_object(list(numbered)), key=lambda pair: pair[0])]

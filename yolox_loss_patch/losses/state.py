"""Running state: what a loss keeps from batch to batch.

The state is held in non-persistent buffers: it follows the module to a device, into a copy and into eval mode, and stays
out of the state_dict, so that checkpoints remain stock's. A resumed run reads it with `RunningKernel.running_state`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes of a distributed run, the tensor itself elsewhere.

    Every rank must call this once per step, also one whose batch is empty.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def number_of_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class RunningKernel(nn.Module):
    """A kernel with running state.

    Attributes:
        state: the names of the buffers that hold it.
    """

    state: tuple[str, ...] = ()
    _owes_a_move = False

    def moves_now(self) -> bool:
        """Whether this call is the one of its training step in which the state moves. A kernel asks once per call.

        Not in eval mode and not under ``no_grad``, where nothing is trained. Activation checkpointing calls the loss a
        second time inside the backward pass: the state has moved by then, unless the first call was under ``no_grad``,
        as it is with ``use_reentrant=True``.
        """
        if not self.training:
            return False
        is_backward = torch._C._current_graph_task_id() != -1
        if not torch.is_grad_enabled():
            self._owes_a_move = not is_backward
            return False
        moves = self._owes_a_move or not is_backward
        self._owes_a_move = False
        return moves

    def running_state(self) -> dict[str, Tensor]:
        """A copy of the state on the CPU, for the resume file of a run."""
        return {name: getattr(self, name).detach().cpu().clone() for name in self.state}

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: what `running_state` of the same loss with the same knobs gave.

        Raises:
            ValueError: the state is of another loss, or of other knobs.
        """
        for name in self.state:
            buffer = getattr(self, name)
            if name not in state or state[name].shape != buffer.shape:
                raise ValueError(f"The running state has no {name!r} of shape {tuple(buffer.shape)}; it has {state}.")
            setattr(self, name, state[name].to(buffer.device).clone())

"""The processes that train one student together, and what they agree on.

Owns which process this is, its part of a batch, how networks are shared between processes, and
what is the same on all of them. One process alone needs none of it: `ALONE` answers for it without
a process group. Knows nothing of losses or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from distill.config import ConfigError, RunConfig
from distill.training.device import has_half_units, pick_device

_TIMEOUT = timedelta(minutes=30)  # the first process may write a large snapshot meanwhile
# Parts of a UNet that are gathered together: large enough to be worth a message, small enough that
# one of them at a time is no burden.
_SHARDED_PARTS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: of this process, from 0.
        num: processes.
        device: where this one computes, and what it sends lies.
    """

    rank: int = 0
    num: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, config: RunConfig) -> Processes:
        """Join the processes that `torchrun` or `accelerate launch` started, or be alone.

        Raises:
            ConfigError: the batch cannot be dealt out evenly.
        """
        device = pick_device(config.device)
        state = PartialState(cpu=device.type == "cpu", timeout=_TIMEOUT)
        num, size = state.num_processes, config.student.optimizer.batch_size
        if size % num:
            raise ConfigError(
                f"student.optimizer.batch_size is {size}, which {num} processes cannot share "
                f"evenly: take a multiple of {num}"
            )
        return cls(state.process_index, num, device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, batch_size: int) -> range:
        """Positions of the whole batch that this process takes."""
        size = batch_size // self.num
        return range(self.rank * size, (self.rank + 1) * size)

    def share(self, network: nn.Module, config: RunConfig, *, is_large: bool) -> nn.Module:
        """The network as it is to be called in training, its gradients averaged over processes.

        Args:
            network: on this process's device, equal on all of them.
            config: `scale.strategy` says how.
            is_large: worth dealing out with "fsdp"; others are kept whole by every process.

        Returns:
            A wrapper around it, or the network itself, its parameters dealt out in place.
        """
        if self.num == 1:
            return network
        if config.scale.strategy == "fsdp" and is_large:
            return _dealt_out(network, is_half=config.bf16 and has_half_units(self.device))
        # Buffers follow from the weights alone; sending them between the two looks of one critic
        # phase would also change them under autograd.
        return DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Each number's mean over all processes, the same on all of them."""
        if self.num == 1:
            return dict(metrics)
        names = sorted(metrics)
        values = torch.tensor([metrics[k] for k in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        means = dict(zip(names, (values / self.num).tolist(), strict=True))
        return {name: means[name] for name in metrics}

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether a process raised it."""
        if self.num == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def of_main(self, value: float) -> float:
        """The first process's number."""
        if self.num == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(said, src=0)
        return float(said.item())

    def are_finite(self, gradients: Iterable[torch.Tensor]) -> bool:
        """Whether no process holds a gradient that is infinite or not a number."""
        held = [local(gradient) for gradient in gradients]
        norms = torch._foreach_norm(held) if held else []
        is_finite = bool(torch.isfinite(torch.stack(list(norms))).all()) if norms else True
        return not self.any(not is_finite)[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process through before the others."""
        if not self.is_main:
            self.wait()
        try:
            yield
        finally:
            if self.is_main:
                self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.num > 1:
            dist.barrier()

    def end(self) -> None:
        """Leave the group, so that the others are not waited for."""
        if self.num > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Processes()


def _dealt_out(network: nn.Module, *, is_half: bool) -> nn.Module:
    policy = MixedPrecisionPolicy()
    if is_half:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for name in _SHARDED_PARTS:
        part = getattr(network, name, None)
        for block in part if isinstance(part, nn.ModuleList) else [part]:
            if block is not None:
                fully_shard(block, mp_policy=policy)
    fully_shard(network, mp_policy=policy)
    return network


@contextmanager
def held_back(*networks: nn.Module, is_last: bool) -> Iterator[None]:
    """Gather gradients of several passes before they are averaged over processes.

    Args:
        networks: as `Processes.share` returned them.
        is_last: of the passes, which sends the sum.
    """
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel) and not is_last:
                stack.enter_context(network.no_sync())
            elif isinstance(network, FSDPModule):
                network.set_requires_gradient_sync(is_last)
        yield


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies in this process; changing it changes the tensor."""
    if isinstance(tensor, DTensor):
        part: torch.Tensor = tensor.to_local()
        return part
    return tensor


def whole(state: Any) -> Any:
    """A state with every dealt-out tensor gathered on the CPU; all processes must ask together."""
    if isinstance(state, DTensor):
        return state.full_tensor().detach().cpu()
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state


def dealt_like(value: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """A whole tensor, dealt out as another of its shape is; every process has the whole one."""
    if not isinstance(pattern, DTensor) or isinstance(value, DTensor):
        return value
    # Without a source: every process cuts its part out of its own copy, and nothing is sent.
    return distribute_tensor(
        value.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Continue an optimizer from a state of whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(isinstance(p, DTensor) for p in parameters):
        dealt = {
            index: {
                name: dealt_like(value, parameters[index])
                if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in entry.items()
            }
            for index, entry in state["state"].items()
        }
        state = {**state, "state": dealt}
    optimizer.load_state_dict(dict(state))

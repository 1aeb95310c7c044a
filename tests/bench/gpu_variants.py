"""Ways to run one module on a GPU, and a loop that times them all alike.

Owns memory format, compilation, CUDA graphs and how pictures reach the host. On the CPU, which
only shows that the code runs, buffers are plain and nothing is asynchronous.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.bench.gpu_models import Inputs, TextToPicture

_NUM_CAPTURE_WARM_UP = 3  # libraries choose their kernels and allocate before the capture

Launch = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to run the whole.

    Attributes:
        name: shown in the rows.
        is_channels_last: convolutions' weights and the latents lie with channels innermost.
        is_compiled: by torch.compile, one function from tokens to pixels.
        are_blocks_compiled: by torch.compile, every block that the networks repeat by itself;
            blocks of one shape share their code.
        is_graph: captured once per batch size as one CUDA graph and replayed.
    """

    name: str
    is_channels_last: bool = False
    is_compiled: bool = False
    are_blocks_compiled: bool = False
    is_graph: bool = False

    @property
    def needs_cuda(self) -> bool:
        """Whether it has no meaning on a CPU, or would show nothing there."""
        return self.is_compiled or self.are_blocks_compiled or self.is_graph


VARIANTS = (
    Variant("eager"),
    Variant("channels_last", is_channels_last=True),
    Variant("compile", is_channels_last=True, is_compiled=True),
    Variant("cuda_graph", is_channels_last=True, is_graph=True),
    Variant("blocks_cuda_graph", is_channels_last=True, are_blocks_compiled=True, is_graph=True),
    Variant("compile_cuda_graph", is_channels_last=True, is_compiled=True, is_graph=True),
)
# By class name: what UNets and autoencoders are made of. Text encoders are left out: transformers
# makes them another mask while a graph is captured, and to compile anew then breaks the capture.
_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "AutoencoderTinyBlock")
# As many shapes as one class of block has in a network, and more than torch's own limit.
_MAX_SHAPES_PER_BLOCK = 64


def prepare(
    model: TextToPicture, inputs: Inputs, variant: Variant, *, compiler: str = "inductor"
) -> Launch:
    """Return what starts one batch on the inputs' present content; its result is on the device.

    A graph's result is one static buffer: the next launch overwrites it.

    Args:
        model: converted in place to the variant's memory format.
        inputs: read at every launch.
        variant: how to run.
        compiler: torch.compile's backend.
    """
    layout = torch.channels_last if variant.is_channels_last else torch.contiguous_format
    for part in (model.unet, model.vae):
        part.to(memory_format=layout)
    _compile_blocks(model, compiler if variant.are_blocks_compiled else None)

    def run(input_ids_BL: Tensor, noise_SBChw: Tensor, timestep_SB: Tensor) -> Tensor:
        if variant.is_channels_last:
            # torch has no such format for five axes; this lays out each step's latents in it.
            noise_SBhwC = noise_SBChw.permute(0, 1, 3, 4, 2).contiguous()
            noise_SBChw = noise_SBhwC.permute(0, 1, 4, 2, 3)
        return model(input_ids_BL, noise_SBChw, timestep_SB)

    whole = run
    if variant.is_compiled:
        torch.compiler.reset()  # else every batch size adds to the functions kept
        whole = torch.compile(run, backend=compiler, dynamic=False)
    if variant.is_graph:
        return _captured(whole, inputs)
    return lambda: whole(*inputs.tensors)


def _compile_blocks(model: TextToPicture, compiler: str | None) -> None:
    """Compile each repeated block, or undo it with None: the model serves other variants too."""
    torch._dynamo.config.recompile_limit = _MAX_SHAPES_PER_BLOCK
    for part in model.modules():
        if type(part).__name__ in _BLOCKS:
            part._compiled_call_impl = None
            if compiler is not None:
                part.compile(backend=compiler, dynamic=False)


def _captured(run: Callable[..., Tensor], inputs: Inputs) -> Launch:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_NUM_CAPTURE_WARM_UP):
            run(*inputs.tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images_BHWC = run(*inputs.tensors)

    def replay() -> Tensor:
        graph.replay()
        return images_BHWC

    return replay


class HostPictures:
    """Two buffers on the host in turn: one is read while the GPU fills the other."""

    def __init__(self, images_BHWC: Tensor) -> None:
        """Make buffers like these images; pinned where they come from a GPU."""
        self._is_cuda = images_BHWC.is_cuda
        self._buffers = [
            torch.empty(
                images_BHWC.shape, dtype=images_BHWC.dtype, pin_memory=self._is_cuda, device="cpu"
            )
            for _ in range(2)
        ]
        self._events = [torch.cuda.Event() for _ in range(2)] if self._is_cuda else []
        self._next = 0

    def fetch(self, images_BHWC: Tensor) -> int:
        """Start the copy and return the buffer's number, without waiting."""
        number, self._next = self._next, 1 - self._next
        self._buffers[number].copy_(images_BHWC, non_blocking=True)
        if self._is_cuda:
            self._events[number].record()
        return number

    def wait(self, number: int) -> Tensor:
        """The pictures, once they are there; valid until the second `fetch` from now."""
        if self._is_cuda:
            self._events[number].synchronize()
        return self._buffers[number]


@dataclass(frozen=True)
class Timing:
    """Seconds of single batches, and pictures per second of batches that follow one another."""

    spans_s: tuple[float, ...]
    images_per_s: float


@dataclass(frozen=True)
class Effort:
    """How long to measure one row: whichever of runs and seconds comes first, never under five."""

    num_runs: int = 100
    num_warm_up: int = 10
    max_seconds: float = 10.0


_MIN_RUNS = 5


def time_variant(launch: Launch, inputs: Inputs, effort: Effort) -> Timing:
    """Time one batch at a time, from launch to pictures on the host, and then a stream of them."""

    def draw() -> Tensor:
        inputs.refill()
        return launch()

    host = HostPictures(draw())
    for _ in range(effort.num_warm_up):
        host.wait(host.fetch(draw()))
    spans_s: list[float] = []
    while len(spans_s) < _MIN_RUNS or (
        len(spans_s) < effort.num_runs and sum(spans_s) < effort.max_seconds
    ):
        start_s = time.perf_counter()
        host.wait(host.fetch(draw()))
        spans_s.append(time.perf_counter() - start_s)
    batch_size = len(inputs.input_ids_BL)
    num_batches = len(spans_s)
    start_s = time.perf_counter()
    pending = host.fetch(draw())
    for _ in range(num_batches - 1):
        following = host.fetch(draw())
        host.wait(pending)
        pending = following
    host.wait(pending)
    elapsed_s = time.perf_counter() - start_s
    return Timing(tuple(spans_s), num_batches * batch_size / elapsed_s)

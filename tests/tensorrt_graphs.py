"""A graph through the real TensorRT-for-RTX parser and builder, weights beside it included.

Owns the shapes that a test compiles for. Needs no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def parse_and_build(trt: Any, graph: Path, latent_cells: int = 8, size_px: int = 32) -> Any:
    """Parse `graph` and compile it for SM89 and batches of 1 to 3; return the network.

    Fails where the parser complains or the builder gives no plan.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    is_parsed = parser.parse_from_file(str(graph))
    assert is_parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        given = network.get_input(index)
        assert given.shape[0] == -1, given.name
        free = size_px if given.name == "images_BHWC" else latent_cells
        rest = [size if size > 0 else free for size in given.shape[1:]]
        profile.set_shape(given.name, *[(num, *rest) for num in (1, 2, 3)])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 10_000
    return network

"""From a torch folder in the diffusers layout to a bundle that serves without torch.

Owns the ONNX graphs, how their weights are stored and how a bundle appears on disk. What a stage
computes is in `engines.runtime.modules`; what a bundle says is in `engines.spec`.
"""

from engines.export.bundle import ExportOptions, export_bundle
from engines.export.tracing import OPSET, trace

__all__ = ["OPSET", "ExportOptions", "export_bundle", "trace"]

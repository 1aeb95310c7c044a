"""The finished student as a folder: a diffusers pipeline, model.json, model card, provenance.

Owns the folder that diffusers loads and that `onestep-engines export` turns into graphs. Knows
nothing of ONNX.
"""

from distill.export.files import write_json
from distill.export.folder import export_student, parameter_counts
from distill.export.schedulers import student_scheduler

__all__ = ["export_student", "parameter_counts", "student_scheduler", "write_json"]

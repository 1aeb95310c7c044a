"""Diffusion models that a student can be distilled from.

Owns one form for all of them, `Teacher`, and the loaders: a run's own teacher, a folder of a
diffusers pipeline, a name on the hub. Knows nothing of students.
"""

from distill.teachers.base import Teacher

__all__ = ["Teacher"]

"""Diffusion models that a student can be distilled from."""

"""Backends: each turns the stages of a model folder into callables over numpy arrays."""

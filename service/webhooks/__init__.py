"""Telling another service how a job ended: which addresses may be called, signed, tried again."""

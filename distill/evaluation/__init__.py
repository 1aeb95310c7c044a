"""Judging what student and teacher draw: networks that look, scores, tables and the report.

Owns everything between finished pictures and figures with intervals. Nothing here is ever part of
a training, and nothing a training looks through may choose between results here.
"""

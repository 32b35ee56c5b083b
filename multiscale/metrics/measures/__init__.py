"""One file for each measure, or for a family of them; a file that is put here is found.

A measure subclasses the kind that compares patches (:mod:`multiscale.metrics.compare`) or the one that renders views of its own
(:mod:`multiscale.metrics.render`). What needs PyTorch is imported where something is measured: help and mistakes
need names alone.
"""

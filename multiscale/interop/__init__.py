"""Weights of other programs, brought into ours."""

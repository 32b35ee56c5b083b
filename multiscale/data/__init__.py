"""Patches with a scale: their container, how they are made and in which order training sees them."""

"""The model that comes with the program, trained by it on its own procedural planet (docs/lab/long-run-planet.md)."""

from pathlib import Path

MODEL = Path(__file__).with_name("planet64.safetensors")
"""64 x 64 pixels, 6 octaves; parameters in half precision, how it was trained in its metadata."""

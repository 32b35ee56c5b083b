"""Learning and rendering one continuous scale space: views, patches, the generator, its training, rendering."""

__version__ = "0.1.0"

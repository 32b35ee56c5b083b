"""Learning and rendering one continuous scale space: views, patches, the generator, its training, rendering."""

"""Signal-processing layers, one a file: argument checks and dispatch there, the mathematics in ``reference``."""

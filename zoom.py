"""Explore a trained model in the browser: ``python zoom.py``."""

from multiscale.cli.zoom import main

if __name__ == "__main__":
    main()

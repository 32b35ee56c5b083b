"""Render views of a trained model: ``python generate.py --seed 3 --scale 64``."""

from multiscale.cli.generate import main

if __name__ == "__main__":
    main()

"""Measure how good models are, at every scale: ``python calc_metrics.py --network RUN --data patches.zip``."""

from multiscale.cli.calc_metrics import main

if __name__ == "__main__":
    main()

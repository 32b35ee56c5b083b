"""Train a multiscale generator on a bag of patches: ``python train.py --data patches.zip``."""

from multiscale.cli.train import main

if __name__ == "__main__":
    main()

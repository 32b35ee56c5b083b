"""Make and inspect sets of patches with scale labels: ``python dataset_tool.py demo --dest patches.zip``."""

from multiscale.cli.dataset_tool import main

if __name__ == "__main__":
    main()

"""The commands: options, their words, and nothing else."""

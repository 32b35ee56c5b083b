"""PyTorch things that know nothing of scales or GANs."""

"""The multiscale alias-free generator and its discriminator."""

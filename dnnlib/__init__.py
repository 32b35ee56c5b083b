"""Things that know nothing of PyTorch: errors that users can cause, files that are never half-written, command plumbing."""

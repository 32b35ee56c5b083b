"""From a snapshot on disk to pictures: any seed, any view."""

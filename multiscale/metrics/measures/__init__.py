"""One file for each measure, or for a family of them; a file that is put here is found."""

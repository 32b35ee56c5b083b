"""Training: from what the user typed (``launch``) to the loop (``trainer``) and what it differentiates (``objective``)."""

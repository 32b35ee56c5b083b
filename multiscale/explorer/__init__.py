"""A world in the browser: the web server behind ``zoom.py``, and its page."""

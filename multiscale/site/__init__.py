"""A folder of static files that renders a model in the visitor's own browser."""

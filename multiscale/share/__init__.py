"""Sharing a world: a model's folder for a hub, with a card that shows it and says how to fly through it."""

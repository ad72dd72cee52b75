"""Grids of recipes: which stages they need, running them, and the table that comes of it."""

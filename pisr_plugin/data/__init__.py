"""Stores, datasets and the preparation of images."""

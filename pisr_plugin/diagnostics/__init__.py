"""Diagnostics of a trained stage: gradients of its loss terms, representations of degradations."""

"""Taps, estimators and links: how a student learns from a teacher's features. Needs only torch."""

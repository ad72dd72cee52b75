"""Taps, estimators and links: how a teacher's feature reaches a student. Pure torch, usable on its own."""

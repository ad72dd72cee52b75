"""Sections of the report. Each is one file with its template, found by listing this folder."""

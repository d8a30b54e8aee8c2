"""Measurements, each a command that says what it measured, against what, in the same run."""

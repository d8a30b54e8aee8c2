"""Exports: what is asked for, how it is walked through, and the forms in which it goes out."""

"""Allegro's REST API, as it behaves: bodies, errors, OAuth, calls of one seller."""

"""Degradation operators with all their values in them."""

"""The metrics: what each compares, its protocol, its implementation."""

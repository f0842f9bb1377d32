"""Metrics: what each compares, its protocol, its implementation."""

"""Predictions, then scores, then tables: pictures in a folder become rows, rows become the paper's tables."""

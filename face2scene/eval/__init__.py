"""Predictions, then scores, then tables: images in a folder become rows, rows become the paper's tables."""

"""The paper's tables: printed numbers, ours, the difference."""

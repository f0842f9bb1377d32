"""Training: one loop, and for each network what a step of it is."""

"""From predictions to scores: pairing, regions, intervals, caching."""

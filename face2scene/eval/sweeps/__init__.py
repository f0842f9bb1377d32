"""Ablation sweeps: plans, variants, runs, tables."""

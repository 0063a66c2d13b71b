"""Ranks and metrics of next-item recommendation, baselines, and the comparison of models."""

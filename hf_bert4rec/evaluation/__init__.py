"""Evaluation: ranks and metrics of next-item recommendation, baselines, and comparison of models."""

"""Scores images: encoders, metrics, the best step of a run, comparisons and plots."""

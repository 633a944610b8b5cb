"""Scores of images: encoders, metrics, the best step, comparisons and plots."""

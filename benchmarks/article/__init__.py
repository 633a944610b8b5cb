"""The source article's nine findings, repeated on the included model: `python -m
benchmarks.article`, which writes docs/experiments.md."""

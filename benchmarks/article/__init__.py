"""The source article's nine findings, tried again on the embedded model: `python -m
benchmarks.article`, which writes docs/experiments.md."""

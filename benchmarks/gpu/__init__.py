"""Measures memory and speed of training on a GPU, and tests that it computes the same there as on
the CPU: `python -m benchmarks.gpu`."""

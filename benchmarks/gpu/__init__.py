"""What training takes on a GPU, and whether it computes there what it computes on the CPU:
`python -m benchmarks.gpu`."""

"""The folder of one run: identity, recording, resuming, results and output files."""

"""The folder of one run: its identity, recording, resuming, result and output files."""

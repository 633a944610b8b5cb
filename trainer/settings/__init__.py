"""The settings of a run, whether each affects the result, their checks, and the presets."""

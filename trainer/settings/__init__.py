"""Every option of a run, what it decides, what is checked about it, and the presets."""

"""The command line: commands, their settings file, and progress in the terminal."""

"""The command line: its commands, settings files, and progress in the terminal."""

"""What a run does when its disk fails: every file operation once, and a power cut at any moment."""

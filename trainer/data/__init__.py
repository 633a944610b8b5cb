"""From a folder of photos to batches. Never learns what is trained."""

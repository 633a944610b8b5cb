"""From a folder of photos to batches. Does not know what is trained."""

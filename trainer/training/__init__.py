"""Training: steps, moving average, checks of the numbers, encoded images and captions."""

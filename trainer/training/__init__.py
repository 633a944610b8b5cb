"""The training itself: one session's steps, moving average, health checks and encoded images."""

"""The optimizers and the learning-rate schedules that a user picks from."""

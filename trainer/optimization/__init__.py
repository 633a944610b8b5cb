"""The optimizers and learning-rate schedules that users choose from."""

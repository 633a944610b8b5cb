"""Draws images: noise schedulers, the sampler and class images."""

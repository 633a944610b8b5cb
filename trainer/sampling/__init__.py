"""Drawing images: noise schedulers, the sampler, and class images."""

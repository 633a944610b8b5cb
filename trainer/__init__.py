"""Teach Stable Diffusion a new subject from a few photos: `loop.train`, with the settings of
`config` and a method of `methods`. Knows nothing of ComfyUI."""

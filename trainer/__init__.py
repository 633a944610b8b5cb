"""DreamBooth training for Stable Diffusion: teach a model a subject from a few photos.

Start at `loop.train`, with the settings of `settings/config.py` and a method of `methods/`. This
package does not depend on ComfyUI."""

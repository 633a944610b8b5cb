"""The embedded model: a tiny Stable Diffusion of a drawn world, with sample photos and a judge."""

from pathlib import Path

MODEL = Path(__file__).parent / "model.safetensors"
PHOTOS = Path(__file__).parent / "photos"


def resolve(base: Path) -> Path:
    """The embedded model's file where "toy" is asked for, and any other path as it is."""
    return MODEL if str(base) == "toy" else base

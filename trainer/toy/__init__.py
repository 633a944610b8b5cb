"""The embedded toy model: a tiny Stable Diffusion of a drawn world, with sample photos and a
scoring model."""

from pathlib import Path

from ..storage.names import KNOWN_AS

NAME = "toy"
"""What users write instead of a path."""
MODEL = Path(__file__).parent / "model.safetensors"
JUDGE = Path(__file__).parent / "judge.safetensors"
PHOTOS = Path(__file__).parent / "photos"

KNOWN_AS |= {MODEL: NAME, JUDGE: NAME}


def resolve(base: Path) -> Path:
    """The embedded model's file for "toy", and any other path unchanged."""
    return MODEL if str(base) == NAME else base


def resolve_judge(judge: Path) -> Path:
    """The embedded scoring model's file for "toy", and any other path unchanged."""
    return JUDGE if str(judge) == NAME else judge

"""Scores a subject's images with DINO and CLIP from the user's files. Each score is computed once
and stored with everything that decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.article.scores import ScoreBook
from trainer.data.images import parse_color, read_image
from trainer.evaluation import encoders, metrics
from trainer.evaluation.encoders import ClipEncoder, DinoEncoder, ImageEncoder
from trainer.runs.identity import Hashes
from trainer.storage import json_files

from .dataset import Subject
from .runs import Drawn, digest

Measures = dict[str, float]
KINDS: dict[str, type[ImageEncoder]] = {"dino": DinoEncoder, "clip": ClipEncoder}
EDITION = 1
"""Raise this with every change here that changes numbers."""
PAPERS_DINO = {
    "model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16,
}  # fmt: skip
"""ViT-S/16, as its config.json describes it."""


class Encoders:
    """The available encoders and their stored scores. They only use the device's memory while they
    compute."""

    def __init__(self, paths: Mapping[str, Path], folder: Path, device: torch.device) -> None:
        """`paths` by kind; `folder` has the stored scores. Raises ValueError if there are no
        encoders, or if one is of another kind."""
        if not paths:
            raise ValueError(
                "There is no encoder to score the images. Give DINO with --dino, CLIP with "
                "--clip, or both."
            )
        self._folder, self._paths = folder, paths
        self._encoders = {kind: _load(kind, path, device) for kind, path in paths.items()}

    def remarks(self) -> list[str]:
        """Notes on what they cannot measure, or measure differently from the paper."""
        remarks = []
        if "dino" not in self._paths:
            remarks.append("Without --dino, there is no DINO, PRES and diversity.")
        elif not PAPERS_DINO.items() <= _config(self._paths["dino"]).items():
            remarks.append("This DINO is not ViT-S/16, which the paper uses.")
        if "clip" not in self._paths:
            remarks.append("Without --clip, there is no CLIP-I and CLIP-T.")
        elif self._encoders["clip"].embed_prompts(["a"]) is None:
            remarks.append("This CLIP has no text encoder, so there is no CLIP-T.")
        return remarks

    def measure(self, subject: Subject, drawn: Drawn) -> Measures:
        """All measures of a subject. Stored ones are reused."""
        book, measures = ScoreBook(self._folder), Measures()
        for kind, path in self._paths.items():
            pictures = [picture.name for picture in (*drawn.pictures, *drawn.class_pictures)]
            key = digest([EDITION, kind, self._fingerprint(path), drawn.key, pictures])
            found = book.read().get(key)
            if found is None:
                found = MEASURES[kind](self._encoders[kind], subject, drawn)
                book.add(key, found, {"subject": subject.name, "encoder": path.name})
            measures |= found
        return measures

    def _fingerprint(self, path: Path) -> list[str]:
        hashes = Hashes(self._folder / "runs" / "hashes.json")
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return [*map(hashes.sha256, files), digest(_config(path))]


def measure_dino(encoder: ImageEncoder, subject: Subject, drawn: Drawn) -> Measures:
    """DINO of the images and of the photos among themselves; PRES if there are class images;
    diversity if a prompt has several images."""
    photos, images = _embed_photos(encoder, subject), encoder.embed_images(_read(drawn.pictures))
    measures = {"DINO": metrics.subject_fidelity(images, photos)}
    if len(subject.photos) > 1:
        measures["DINO, photos"] = metrics.likeness(photos)
    if drawn.class_pictures:
        of_class = encoder.embed_images(_read(drawn.class_pictures))
        measures["PRES"] = metrics.prior_preservation(of_class, photos)
    if len(drawn.prompts) > len(set(drawn.prompts)):
        measures["diversity"] = metrics.diversity(images, drawn.prompts)
    return measures


def measure_clip(encoder: ImageEncoder, subject: Subject, drawn: Drawn) -> Measures:
    """CLIP-I of the images and of the photos among themselves; CLIP-T if it has a text encoder."""
    photos, images = _embed_photos(encoder, subject), encoder.embed_images(_read(drawn.pictures))
    measures = {"CLIP-I": metrics.subject_fidelity(images, photos)}
    if len(subject.photos) > 1:
        measures["CLIP-I, photos"] = metrics.likeness(photos)
    prompts = encoder.embed_prompts(drawn.prompts)
    if prompts is not None:
        measures["CLIP-T"] = metrics.prompt_fidelity(images, prompts)
    return measures


MEASURES = {"dino": measure_dino, "clip": measure_clip}


def _load(kind: str, path: Path, device: torch.device) -> ImageEncoder:
    encoder = encoders.load(path, device)
    if not isinstance(encoder, KINDS[kind]):
        raise ValueError(
            f"--{kind} is {path}, which is another kind of encoder. Give DINO with --dino and CLIP "
            "with --clip."
        )
    return encoder


def _embed_photos(encoder: ImageEncoder, subject: Subject) -> torch.Tensor:
    white = parse_color("white")
    return encoder.embed_images([np.array(read_image(path, white)) for path in subject.photos])


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.array(image.convert("RGB")))
    return images


def _config(path: Path) -> dict[str, object]:
    return json_files.read(path / "config.json")

"""The models that the experiments train. Finished runs are reused, and stopped runs are resumed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer import families
from trainer.families.base import ModelFamily
from trainer.loop import TrainingResult, train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.sampling.class_images import make_class_images
from trainer.settings.config import ModelOptions, OptimizerConfig, TrainingConfig
from trainer.settings.presets import INVERSION_PRESETS
from trainer.toy import MODEL
from trainer.toy.demo import demo_config

from .subjects import photos

CPU = torch.device("cpu")
SAVE_EVERY = 50
INVERSION_STEPS, INVERSION_SAVE_EVERY = 300, 60
"""For the one run of textual inversion per seed. The embeddings that it saves in between are used
too."""
QUICK = 10
"""A quick trial divides all numbers by this."""
PLACEHOLDER = "<sks>"
DIRECTIONAL_RATE = 1e-3
"""The learning rate of directional textual inversion, chosen with seed 10, of 1e-3 and 3e-3."""
NEWER = (
    "is_lora", "anchor", "teacher_weight", "unmasked_weight", "random_backgrounds", "directional",
    "num_vectors", "teacher_ratio",
)  # fmt: skip
"""Fields that were added to `Recipe` after the first scores were stored."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one model: the toy preset, except for these fields."""

    subject: str = "striking cup"
    words: str = "sks cup"
    """The words for the subject, in the photos' caption and in all prompts."""
    steps: int = 300
    of: int = 0
    """The length of the run that saves this model as its checkpoint at `steps`. 0: the model is the
    result of the run."""
    learning_rate: float = 2e-4
    class_images: int = 60
    """0 trains without prior preservation."""
    prior_weight: float = 1.0
    text_encoder: bool = True
    ema: bool = False
    optimizer: str = "AdamW"
    precision: str = "fp32"
    weights: str = "fp32"
    releases_gradients: bool = False
    inversion_steps: int = 0
    """The steps of textual inversion before the others."""
    directional: bool = False
    num_vectors: int = 1
    """Of the new word of textual inversion."""
    unmasked_weight: float = 1.0
    """1: the masks beside the photos, if there are any, change nothing."""
    random_backgrounds: int = 0
    is_lora: bool = False
    """Train a LoRA of the preset's rank instead of all weights."""
    anchor: float = 0.0
    """How strongly weights are pulled back to those before training."""
    teacher_weight: float = 0.0
    """Weight of the loss against the base model's answers to the class prompt."""
    teacher_ratio: float = 1.0
    """Share of the photos that this is done for."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the recipe is, without newer fields at their defaults, so that earlier scores are
        still found."""
        found, defaults = asdict(self), asdict(Recipe())
        return {
            name: value
            for name, value in found.items()
            if name not in NEWER or value != defaults[name]
        }

    @property
    def run(self) -> Recipe:
        """The recipe of the run that produces this model. Only one process at a time may work on a
        run."""
        if self.inversion_steps:
            return Recipe(
                words=PLACEHOLDER, steps=0, inversion_steps=INVERSION_STEPS,
                directional=self.directional, num_vectors=self.num_vectors,
            )  # fmt: skip
        return replace(self, steps=self.of or self.steps, of=0)


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Trains models and stores them."""

    folder: Path
    is_quick: bool = False

    @property
    def runs(self) -> Path:
        """A separate folder for every numerics version, because their runs differ."""
        return self.folder / f"numerics{NUMERICS_VERSION}{'-quick' * self.is_quick}"

    def shortened(self, number: int) -> int:
        return -(-number // QUICK) if self.is_quick else number

    def class_images(self, number: int = 60) -> tuple[Path, ...]:
        """The first class images of those that all runs share. They are generated if they do not
        exist yet."""
        base = families.load(MODEL, CPU)
        made = make_class_images(
            base,
            demo_config(self.folder).prior,
            self.folder / "class_images",
            resolution=base.native_resolution,
        )
        return tuple(made[:number])

    def model(self, recipe: Recipe, seed: int) -> ModelFamily:
        """The model of this recipe. It is trained if it does not exist yet."""
        embedding = self._embedding(recipe, seed) if recipe.inversion_steps else None
        if recipe.steps == 0:
            return families.load(MODEL, CPU, embedding)
        config = self._config(recipe, seed, recipe.of or recipe.steps)
        config = replace(config, embedding=embedding)
        method = (LoRA if recipe.is_lora else FullFineTune)(train_text_encoder=recipe.text_encoder)
        result = self._train(config, method, save_every=SAVE_EVERY if recipe.of else 0)
        if result.lora:
            return families.load(MODEL, CPU, options=ModelOptions(loras=(result.lora,)))
        file = self._saved(config, result.checkpoint, recipe.steps)
        return families.load(file, CPU, embedding)

    def _embedding(self, recipe: Recipe, seed: int) -> Path:
        preset = INVERSION_PRESETS["toy"]
        config = self._config(replace(recipe, class_images=0), seed, INVERSION_STEPS)
        optimizer = {"learning_rate": DIRECTIONAL_RATE} if recipe.directional else {}
        config = replace(config, optimizer=OptimizerConfig(**preset["optimizer"] | optimizer))
        method = TextualInversion(
            placeholder=PLACEHOLDER, initializer="cup", directional=recipe.directional,
            num_vectors=recipe.num_vectors, **preset["method"],
        )  # fmt: skip
        result = self._train(config, method, save_every=INVERSION_SAVE_EVERY)
        assert result.embedding, "textual inversion writes an embedding"
        return self._saved(config, result.embedding, recipe.inversion_steps)

    def _config(self, recipe: Recipe, seed: int, steps: int) -> TrainingConfig:
        prior: dict[str, Any] = {"weight": 0.0, "teacher_weight": recipe.teacher_weight,
                                 "teacher_ratio": recipe.teacher_ratio}  # fmt: skip
        if recipe.class_images:
            images = self.class_images(recipe.class_images)
            prior |= {"weight": recipe.prior_weight, "images": images}
        return demo_config(self.runs).replace({
            "dataset": {
                "photos": photos(recipe.subject, self.folder),
                "prompt": f"a photo of {recipe.words}",
                "masks": "off" if recipe.unmasked_weight == 1 else "auto",
                "unmasked_weight": recipe.unmasked_weight,
                "random_backgrounds": recipe.random_backgrounds,
            },
            "optimizer": {
                "name": recipe.optimizer,
                "learning_rate": recipe.learning_rate,
                "anchor": recipe.anchor,
            },
            "prior": prior,
            "steps": self.shortened(steps),
            "seed": seed,
            "ema": recipe.ema,
            "precision": recipe.precision,
            "weights": recipe.weights,
            "gradient_release": recipe.releases_gradients,
        })  # fmt: skip

    def _train(self, config: TrainingConfig, method: Method, *, save_every: int) -> TrainingResult:
        """Each run has its own output folder, so that the names of its files are known."""
        name = hashlib.sha256(repr((config, method)).encode()).hexdigest()[:16]
        output = {
            "folder": self.runs / name,
            "save_every": self.shortened(save_every),
            "keep": 1000,
        }
        config = config.replace({"output": output})
        return train(config, method, device=CPU, runs=self.runs / "runs")

    def _saved(self, config: TrainingConfig, final: Path, steps: int) -> Path:
        """The file that a run wrote after this number of its steps."""
        steps = self.shortened(steps)
        if steps == config.steps:
            return final
        return final.with_name(f"{config.output.name}-step{steps:06d}.safetensors")

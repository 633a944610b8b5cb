"""Settings of the images that a run draws: class images and previews, and how previews are scored.
No torch, no file access."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .checks import at_least, is_number_of_images, is_seed, is_text, require
from .effects import ByContent, Decides, OnlyRounding


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How images are drawn from prompts."""

    scheduler: Decides[str] = "DDIM"
    """Noise scheduler, such as DDIM, PNDM, Euler or UniPC. On an overfitted model DDIM gives the
    best images and LMSDiscrete the worst."""
    steps: Decides[int] = 50
    """Denoising steps per image, 1 to 1000: 20 to 50 are usual, about 100 help if images come out
    noisy. Few steps give rough images. Above 100, DDIM, PNDM and DDPM need a number that divides
    1000, such as 125, 200 or 250; with others images may come out pale."""
    guidance_scale: Decides[float] = 7.5
    """How strongly images follow the prompt: 7.5 is usual, 4 for the toy model. 1 is no guidance;
    above 15 colours burn out."""
    negative_prompt: Decides[str] = ""
    """What the images should not show. May be empty."""
    seed: Decides[int] = 0
    """Image number i starts from the noise of seed + i, whatever the scheduler, the steps and the
    batch size."""
    batch_size: OnlyRounding[int] = 4
    """Images drawn at once, 1 to 16. More is faster and takes more memory; the noise that each
    image starts from stays the same."""

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 1000, f"steps must be between 1 and 1000, got {self.steps}.")
        at_least("guidance_scale", self.guidance_scale, 1)
        is_seed("seed", self.seed)
        at_least("batch_size", self.batch_size, 1)
        is_text("negative_prompt", self.negative_prompt)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompt if it has an effect: it is not used without guidance."""
        return (self.negative_prompt,) if self.guidance_scale > 1 else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Prior preservation: training on images of the class too, or on what the model before training
    answers to the class prompt, so that it keeps the class."""

    weight: Decides[float] = 0.0
    """Weight of the loss on class images relative to the loss on photos: 1 is usual, 0 turns prior
    preservation off. Far above 1 the subject is hardly learned."""
    prompt: Decides[str] = ""
    """What the class images show: the instance prompt without its rare word or placeholder, such as
    "a photo of a dog". With the rare word in it, class images work against the photos."""
    images: ByContent[tuple[Path, ...]] = ()
    """A folder of your own class images, or the image files: 200 or more, as images of one style
    teach that style. Not set: the base model draws them."""
    num_images: Decides[int] = 200
    """How many class images the base model draws: 200 to 400, or 60 for the toy model. Below 50 the
    model begins to memorise them; more only take longer to draw, once."""
    ratio: Decides[float] = 1.0
    """Class images per photo in each step, rounded; at least one per step."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the class images are drawn."""
    teacher_weight: Decides[float] = 0.0
    """Weight of a loss that needs no class images: on the noisy photos, the model should answer the
    class prompt as it did before training. 1 is usual, 0 turns it off. Takes longer than class
    images, and, unless a LoRA is trained, memory for a second U-Net."""
    teacher_ratio: Decides[float] = 1.0
    """Share of the photos that the class prompt is answered for, above 0 to 1. Less is faster. If
    it is less than one photo per step, one photo is used in every few steps."""

    def __post_init__(self) -> None:
        for name in ("weight", "teacher_weight"):
            weight = getattr(self, name)
            at_least(f"prior.{name}", weight, 0)
            require(weight == 0 or self.prompt.strip() != "", f"prior.{name} is {weight:g} but "
                    "prior.prompt is empty. Name the class, such as 'a photo of a dog', or set "
                    f"prior.{name} to 0.")  # fmt: skip
        is_text("prior.prompt", self.prompt)
        is_number_of_images("prior.num_images", self.num_images, 1)
        require(self.ratio > 0, f"prior.ratio must be above 0, got {self.ratio}.")
        require(0 < self.teacher_ratio <= 1, "prior.teacher_ratio must be above 0 and at most 1, "
                f"got {self.teacher_ratio}.")  # fmt: skip

    @property
    def is_on(self) -> bool:
        """Whether the class is trained on, by images or by the teacher."""
        return self.weight > 0 or self.teacher_weight > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Images drawn during training with the weights of that step. They never change the result."""

    prompts: tuple[str, ...] = ()
    """Prompts of the preview images: 2 to 4 that show the subject as in the photos, the subject
    elsewhere, and the class without the rare word or placeholder. For scored previews: 4 to 8 of
    the subject in different places. Without prompts no previews are drawn."""
    every: int = 100
    """Steps between previews, such as a tenth to a quarter of all steps. Each preview takes as long
    as a few training steps; above the number of steps none is drawn."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=25))
    """How the previews are drawn."""

    def __post_init__(self) -> None:
        at_least("preview.every", self.every, 1)
        for prompt in self.prompts:
            is_text("preview.prompts", prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringConfig:
    """How previews are scored with CLIP or DINO, and how `best_step.py` chooses the best step."""

    class_prompt: str = ""
    """The class without the rare word, such as "a photo of a dog", to score whether the class is
    kept. Empty: the prompt of the class images; without those, the class is not scored."""
    num_class_images: int = 8
    """Images of the class drawn and scored with each preview. 8 are usual: fewer are faster but
    make the best step less certain, and 0 leaves the class out."""
    subject_weight: float = 1.0
    """Weight of subject likeness when choosing the best step, relative to the two other weights. 1
    is usual."""
    prompt_weight: float = 1.0
    """Weight of prompt fidelity when choosing the best step, relative to the two other weights. 1
    is usual; 0 leaves it out."""
    prior_weight: float = 1.0
    """Weight of keeping the class when choosing the best step, relative to the two other weights. 1
    is usual; 0 leaves it out."""

    def __post_init__(self) -> None:
        is_text("scoring.class_prompt", self.class_prompt)
        require(self.subject_weight > 0, "scoring.subject_weight must be above 0, got "
                f"{self.subject_weight}.")  # fmt: skip
        is_number_of_images("scoring.num_class_images", self.num_class_images, 0)
        for name in ("prompt_weight", "prior_weight"):
            at_least(f"scoring.{name}", getattr(self, name), 0)

"""Sessions on a tiny model, for tests of training."""

from pathlib import Path

import torch

from trainer import precision, weights
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing, ModelFamily
from trainer.families.networks import NumberFormats
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig
from trainer.training.session import Session

FRAMING = Framing((32, 32), (0, 0), (32, 32))


def latents(count: int, caption: str, *, is_prior: bool) -> dict[Example, CachedLatents]:
    generator = torch.Generator().manual_seed(int(is_prior))
    return {
        Example(Path(f"{n}.png"), (caption,), is_prior): CachedLatents(
            torch.randn(4, 8, 8, generator=generator), torch.full((4, 8, 8), 0.1), FRAMING
        )
        for n in range(count)
    }


def begin(
    model: ModelFamily,
    method: FullFineTune | TextualInversion | None = None,
    *,
    caption: str = "a sks dog",
    **changes: object,
) -> Session:
    """A new session with three photos that share a caption and, if the prior weight is above 0,
    three class images."""
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        batch_size=1,
    ).replace(changes)
    photos = latents(3, caption, is_prior=False)
    class_images = latents(3, "a dog", is_prior=True) if config.prior.weight else {}
    method = method or FullFineTune()
    _store(model, NumberFormats(config.precision, config.weights, method.trained_parts))
    trainable = method.attach(model, config, list(photos))
    return Session(config, model, trainable, BatchStream(photos, class_images, config))


def overflow(model):
    """Make the gradients infinite until `remove` is called on the returned handle."""
    return model.unet.conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))


def _store(model: ModelFamily, formats: NumberFormats) -> None:
    """Convert a model in fp32 to these formats, as if it had been loaded in them."""
    for part, module in model.parts().items():
        dtypes = precision.frozen_dtypes(module, formats.precision)
        for name, parameter in module.named_parameters():
            if part in formats.trained:
                weights.store(parameter, formats.weights)
            else:
                parameter.data = parameter.data.to(dtypes[name])

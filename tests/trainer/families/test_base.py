import pytest
import torch

from trainer import families, precision
from trainer.families.base import Conditioning, ModelFamily
from trainer.families.embedding import Embedding
from trainer.families.networks import FP32, NumberFormats

CPU = torch.device("cpu")


def test_conditioning_is_stacked_along_the_batch() -> None:
    a, b = Conditioning(torch.zeros(1, 3, 2)), Conditioning(torch.ones(2, 3, 2))
    stacked = Conditioning.stack([a, b])
    assert torch.equal(stacked.hidden[:, 0, 0], torch.tensor([0.0, 1.0, 1.0]))


def test_a_method_may_train_unet_and_text_encoder(tiny_model: ModelFamily) -> None:
    parts = tiny_model.parts()
    assert list(parts) == ["unet", "text_encoder"]
    assert parts["unet"] is tiny_model.unet
    assert parts["text_encoder"] is tiny_model.text_encoders[0]


def test_a_second_text_encoder_is_a_separate_part(tiny_model: ModelFamily) -> None:
    tiny_model.text_encoders.append(torch.nn.Linear(1, 1))
    assert list(tiny_model.parts()) == ["unet", "text_encoder", "text_encoder_2"]


def test_device_and_latent_channels(tiny_model: ModelFamily) -> None:
    assert tiny_model.device == CPU
    assert tiny_model.latent_channels == 4


def gradients(model: ModelFamily) -> dict[str, torch.Tensor]:
    """The gradients of the U-Net's and the text encoder's weights for one fixed batch."""
    generator = torch.Generator().manual_seed(0)
    noisy_latents = torch.randn(2, 4, 8, 8, generator=generator)
    for part in model.parts().values():
        part.requires_grad_(True)
    given = model.encode_captions(["a cup", "a red cup on the grass"])
    prediction = model.predict(noisy_latents, torch.tensor([3, 700]), given)
    prediction.square().mean().backward()
    return {
        f"{part}.{name}": parameter.grad
        for part, module in model.parts().items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("option", ["gradient_checkpointing", "channels_last"])
def test_preparing_for_training_does_not_change_gradients(
    tiny_model: ModelFamily, option: str
) -> None:
    plain = gradients(tiny_model)
    for part in tiny_model.parts().values():
        part.zero_grad()
    options = dict.fromkeys(("gradient_checkpointing", "channels_last", "compiled"), False)
    tiny_model.prepare_for_training(**{**options, option: True})
    prepared = gradients(tiny_model)
    assert plain.keys() == prepared.keys()
    assert len(plain) == sum(len(list(part.parameters())) for part in tiny_model.parts().values())
    for name, gradient in plain.items():
        assert torch.allclose(prepared[name], gradient, rtol=1e-3, atol=1e-6), name


def test_gradient_checkpointing_computes_activations_twice(tiny_model: ModelFamily) -> None:
    calls = {"unet": 0, "text_encoder": 0}
    # Layers inside checkpointed blocks: a residual block's convolution and a feed-forward layer.
    layers = {"unet": "down_blocks.0.resnets.0.conv1", "text_encoder": "encoder.layers.0.mlp.fc1"}
    for part, module in tiny_model.parts().items():
        named = {name.removeprefix("text_model."): layer for name, layer in module.named_modules()}

        def count(*_: object, part: str = part) -> None:
            calls[part] += 1

        named[layers[part]].register_forward_hook(count)
    gradients(tiny_model)
    assert calls == {"unet": 1, "text_encoder": 1}
    tiny_model.prepare_for_training(
        gradient_checkpointing=True, channels_last=False, compiled=False
    )
    gradients(tiny_model)
    assert calls == {"unet": 3, "text_encoder": 3}


def test_channels_last_does_not_change_the_file_tensors(tiny_model: ModelFamily) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.file_tensors("unet").items()}
    tiny_model.prepare_for_training(
        gradient_checkpointing=False, channels_last=True, compiled=False
    )
    convolution = tiny_model.unet.conv_in.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    after = tiny_model.file_tensors("unet")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_compiling_keeps_the_weight_names(tiny_model: ModelFamily) -> None:
    before = list(tiny_model.file_tensors("unet"))
    # With a backend that does not exist, exactly the compiled code fails.
    with torch.compiler.set_stance(force_backend="none"):
        gradients(tiny_model)
        tiny_model.prepare_for_training(
            gradient_checkpointing=False, channels_last=False, compiled=True
        )
        with pytest.raises(ValueError, match="torch.compile failed: Invalid backend: 'none'"):
            gradients(tiny_model)
    assert list(tiny_model.file_tensors("unet")) == before


@pytest.mark.parametrize("formats", [FP32, NumberFormats(precision="bf16")])
def test_dropped_text_encoders_are_read_again_when_they_are_at_work(tiny_checkpoint, formats):
    model = families.load(tiny_checkpoint, CPU, formats=formats)
    with torch.no_grad(), precision.autocast(formats.precision, CPU):
        before = model.encode_captions(["a dog"]).hidden
        model.drop_text_encoders()
        storages = [p.untyped_storage().nbytes() for p in model.text_encoders.parameters()]
        assert max(storages) <= 4
        with model.on_device(model.text_encoders):
            after = model.encode_captions(["a dog"]).hidden
    assert torch.equal(before, after)
    assert [p.requires_grad for p in model.text_encoders.parameters() if p.requires_grad] == []


def test_text_encoders_with_learned_vectors_are_not_dropped(tiny_model):
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    tiny_model.drop_text_encoders()
    assert all(p.is_contiguous() for p in tiny_model.text_encoders.parameters())

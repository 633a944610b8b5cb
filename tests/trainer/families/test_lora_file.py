"""What LoRA files do to weights: against LyCORIS, and in files of each generation."""

import logging
import re

import pytest
import torch
from lycoris.modules.locon import LoConModule
from safetensors.torch import save_file
from torch import nn

from trainer import families
from trainer.families.lora_file import LayerChange, LoraFile
from trainer.settings.config import ModelOptions

CPU = torch.device("cpu")
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def filled(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def save_lora(path, layers, *, rank=2, alpha=1.0, ends=("lora_down.weight", "lora_up.weight")):
    """A LoRA with random weights for these layers, by the name that is written."""
    tensors = {}
    for seed, (name, shape) in enumerate(layers.items()):
        ones = [1] * (len(shape) - 2)
        tensors[f"{name}.{ends[0]}"] = filled(rank, *shape[1:], seed=seed)
        tensors[f"{name}.{ends[1]}"] = filled(shape[0], rank, *ones, seed=seed + 1000)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def layers_of(model) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in model.lora_layers()}


LAYERS = [nn.Linear(12, 20), nn.Linear(12, 12), nn.Conv2d(12, 20, 1), nn.Conv2d(12, 20, 3)]


@pytest.mark.parametrize("is_tucker", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0])
def test_changed_weights_equal_those_of_lycoris(layer, dora, is_tucker, strength):
    theirs = LoConModule(
        "layer", layer, lora_dim=4, alpha=2, weight_decompose=dora, wd_on_out=False,
        use_tucker=is_tucker,
    )  # fmt: skip
    for number, parameter in enumerate(theirs.parameters()):
        parameter.data.copy_(filled(*parameter.shape, seed=number))
    if dora:
        theirs.dora_scale.data.abs_().add_(0.1)
    tensors = theirs.custom_state_dict()
    change = LayerChange(
        down=tensors["lora_down.weight"], up=tensors["lora_up.weight"],
        alpha=tensors["alpha"].item(), mid=tensors.get("lora_mid.weight"),
        magnitude=tensors.get("dora_scale"),
    )  # fmt: skip
    found = change.apply(layer.weight, strength)
    if dora:
        merged = theirs.get_merged_weight(1.0)[0]
        expected = layer.weight + strength * (merged - layer.weight)
    else:
        expected = theirs.get_merged_weight(strength)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_dora_by_output_has_the_norms_of_the_weight_before_as_in_comfyui():
    weight = filled(6, 4)
    change = LayerChange(filled(2, 4), filled(6, 2), magnitude=filled(6, 1, seed=5).abs())
    changed = weight + change.up @ change.down
    expected = changed * (change.magnitude / weight.norm(dim=1, keepdim=True))
    torch.testing.assert_close(change.apply(weight), expected)


def expected_weights(model, path, strength) -> dict[torch.nn.Module, torch.Tensor]:
    """The weights of a loaded model after a LoRA with alpha / rank = 0.5."""
    from safetensors.torch import load_file

    tensors, found = load_file(path), {}
    for layer in model.lora_layers():
        down, up = (tensors[f"{layer.name}.lora_{end}.weight"] for end in ("down", "up"))
        change = (up.flatten(1) @ down.flatten(1)).view(layer.shape)
        found[layer.name] = layer.module.weight + strength * 0.5 * change
    return found


@pytest.mark.parametrize(
    "fixture", ["tiny_checkpoint", "tiny_sd2_checkpoint", "tiny_xl_checkpoint"]
)
@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_a_model_is_read_with_its_layers_changed(request, tmp_path, fixture, strength):
    """Also the fused queries, keys and values of OpenCLIP."""
    base = request.getfixturevalue(fixture)
    plain = families.load(base, CPU)
    lora = save_lora(tmp_path / "dog.safetensors", layers_of(plain))
    options = ModelOptions(loras=(lora,), lora_strengths=(strength,))
    changed = families.load(base, CPU, options=options)
    expected = expected_weights(plain, lora, strength)
    names = {f"{layer.part} {layer.path}.weight" for layer in plain.lora_layers()}
    for layer in changed.lora_layers():
        torch.testing.assert_close(layer.module.weight, expected[layer.name])
    for part, module in plain.parts().items():
        others = changed.parts()[part].state_dict()
        for name, tensor in module.state_dict().items():
            if f"{part} {name}" not in names:
                assert torch.equal(others[name], tensor), name
    assert changed.source.overrides["loras"].endswith(f" {strength:g}")


def test_dropped_text_encoders_are_read_with_their_layers_changed(tiny_checkpoint, tmp_path):
    lora = save_lora(tmp_path / "dog.safetensors", layers_of(families.load(tiny_checkpoint, CPU)))
    model = families.load(tiny_checkpoint, CPU, options=ModelOptions(loras=(lora,)))
    before = [p.clone() for p in model.text_encoders.parameters()]
    model.drop_text_encoders()
    with model.on_device(model.text_encoders):
        assert all(map(torch.equal, model.text_encoders.parameters(), before))


def test_loras_are_applied_one_after_the_other(tiny_checkpoint, tiny_model, tmp_path):
    layers = layers_of(tiny_model)
    one = save_lora(tmp_path / "one.safetensors", {QUERY: layers[QUERY]})
    two = save_lora(tmp_path / "two.safetensors", {QUERY: layers[QUERY]}, alpha=4.0)
    options = ModelOptions(loras=(one, two), lora_strengths=(1.0, -0.25))
    (layer,) = [each for each in tiny_model.lora_layers() if each.name == QUERY]
    model = families.load(tiny_checkpoint, CPU, options=options)
    (changed,) = [each for each in model.lora_layers() if each.name == QUERY]
    # 1 x 1/2 and -1/4 x 4/2 of the same difference cancel out.
    torch.testing.assert_close(changed.module.weight, layer.module.weight)


@pytest.mark.parametrize(
    ("name", "ends", "alpha"),
    [
        ("unet.{}", ("lora_A.weight", "lora_B.weight"), None),
        ("unet.{}", ("lora.down.weight", "lora.up.weight"), None),
        ("lora_unet_{}", ("lora_down.weight", "lora_up.weight"), None),
    ],
)
def test_files_of_other_programs_are_read(tiny_checkpoint, tiny_model, tmp_path, name, ends, alpha):
    """Without alpha, the factor is 1."""
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    (layer,) = [each for each in tiny_model.lora_layers() if each.path == path]
    shown = name.format(path if name.startswith("unet.") else path.replace(".", "_"))
    lora = save_lora(tmp_path / "a.safetensors", {shown: layer.shape}, ends=ends, alpha=alpha)
    model = families.load(tiny_checkpoint, CPU, options=ModelOptions(loras=(lora,)))
    (changed,) = [each for each in model.lora_layers() if each.path == path]
    difference = filled(layer.shape[0], 2, seed=1000) @ filled(2, layer.shape[1])
    torch.testing.assert_close(changed.module.weight, layer.module.weight + difference)


def test_layers_that_the_model_does_not_have_are_named(
    tiny_checkpoint, tiny_model, tmp_path, caplog
):
    layers = {QUERY: layers_of(tiny_model)[QUERY], "lora_unet_other": (4, 4), "lora_b": (4, 4)}
    lora = save_lora(tmp_path / "dog.safetensors", layers)
    with caplog.at_level(logging.WARNING):
        families.open_model(tiny_checkpoint, ModelOptions(loras=(lora,)))
    assert caplog.messages == [
        "'dog.safetensors' also changes 2 layers that Stable Diffusion 1 does not have, such as "
        "'lora_b'. They have no effect."
    ]


REFUSED = [
    (
        {f"lora_transformer_x.lora_{end}.weight": (2, 2) for end in ("down", "up")},
        "'dog.safetensors' changes no layer of Stable Diffusion 1: it has layers such as "
        "'lora_transformer_x'. Choose a LoRA for Stable Diffusion 1.",
    ),
    (
        {f"{QUERY}.lora_down.weight": (2, 5), f"{QUERY}.lora_up.weight": (7, 2)},
        f"The layer '{QUERY}' of 'dog.safetensors' is made for a weight of the shape [7, 5], but "
        "that of Stable Diffusion 1 has [64, 64]. Choose a LoRA for Stable Diffusion 1.",
    ),
    (
        {f"{QUERY}.lora_down.weight": (2, 64), f"{QUERY}.lora_up.weight": (64, 3)},
        f"The layer '{QUERY}' of 'dog.safetensors' has weights of the shapes [2, 64] and [64, 3], "
        "which do not fit each other. The file is damaged: download it again, or choose another.",
    ),
    (
        {f"{QUERY}.hada_w1_a": (16, 2), f"{QUERY}.alpha": ()},
        f"'dog.safetensors' is not a plain LoRA: it holds '{QUERY}.hada_w1_a', as LoHa, LoKr and "
        "similar files do. Load it with ComfyUI's Load LoRA and connect Model from Graph, or "
        "choose a LoRA.",
    ),
    (
        {f"{QUERY}.lora_down.weight": (2, 16)},
        f"'dog.safetensors' lacks weights of '{QUERY}'. Choose a complete LoRA file.",
    ),
    (
        {"clip_l": (2, 16)},
        "'dog.safetensors' is a textual inversion embedding, not a LoRA. Choose a complete LoRA "
        "file.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_unsuitable_files_are_refused(tiny_checkpoint, tmp_path, shapes, message):
    save_file({k: torch.ones(s) for k, s in shapes.items()}, tmp_path / "dog.safetensors")
    options = ModelOptions(loras=(tmp_path / "dog.safetensors",))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        families.open_model(tiny_checkpoint, options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        LoraFile(tmp_path / "dog.safetensors")
    assert str(caught.value) == (
        f"There is no file {tmp_path / 'dog.safetensors'}. Name an existing .safetensors or .pt "
        "LoRA."
    )


def test_there_is_one_strength_for_each_lora(tmp_path):
    with pytest.raises(ValueError) as caught:
        ModelOptions(loras=(tmp_path,), lora_strengths=(1.0, 2.0))
    assert str(caught.value) == (
        "lora_strengths has 2 numbers, but loras has 1 files. Write one number for each file, or "
        "none."
    )


def test_a_changed_weight_of_a_coarse_file_is_written_in_a_finer_format(
    tiny_checkpoint, tiny_model, tmp_path
):
    lora = save_lora(tmp_path / "dog.safetensors", layers_of(tiny_model))
    coarse = tmp_path / "fp8.safetensors"
    tensors = {name: tiny_model.source.tensor(name) for name in tiny_model.source.shapes}
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, coarse,
        metadata=tiny_model.source.metadata,
    )  # fmt: skip
    source = families.open_model(coarse, ModelOptions(loras=(lora,)))
    changed = {layer.place.key for layer in tiny_model.lora_layers()}
    for name, dtype in source.dtypes.items():
        assert dtype == (torch.float16 if name in changed else torch.float8_e4m3fn)
        source.tensor(name)

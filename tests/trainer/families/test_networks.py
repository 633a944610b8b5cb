"""What `plan_*` refuses. `test_sd1.py` tests that the networks compute the right results."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer import families

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
Change = Callable[[dict[str, Tensor]], object]


def refusal(
    path: Path, tensors: dict[str, Tensor], change: Change, metadata: str | None = None
) -> str:
    changed = dict(tensors)
    change(changed)
    constants = {"dreambooth.constants": metadata} if metadata else None
    save_file(changed, path, metadata=constants)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(path, torch.device("cpu"))
    return str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        f"{UNET}time_embed.0.bias",
        f"{UNET}input_blocks.3.0.skip_connection.weight",
        f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        f"{UNET}output_blocks.1.1.conv.weight",
        "first_stage_model.encoder.down.0.block.0.conv2.bias",
        "first_stage_model.decoder.mid.attn_1.k.weight",
        "first_stage_model.decoder.up.1.block.1.norm1.weight",
        f"{TEXT}encoder.layers.1.self_attn.out_proj.bias",
        f"{TEXT}final_layer_norm.weight",
    ],
)
def test_a_missing_weight_is_named(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], key: str
) -> None:
    message = refusal(tmp_path / "model.safetensors", tiny_tensors, lambda t: t.pop(key))
    assert message == (
        f"'model.safetensors' lacks the weight '{key}', which its other weights call for. "
        "The file is incomplete: download it again, or choose another."
    )


def test_a_weight_of_another_shape_is_named(
    tmp_path: Path, tiny_tensors: dict[str, Tensor]
) -> None:
    key = f"{UNET}output_blocks.3.0.in_layers.2.weight"
    wrong = {key: torch.zeros(32, 48, 3, 3)}
    message = refusal(tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update(wrong))
    assert message == (
        f"The weight '{key}' of 'model.safetensors' has the shape [32, 48, 3, 3], but its other "
        "weights call for [32, 64, 3, 3]. The file is damaged: download it again, or choose "
        "another."
    )


def test_a_quantized_weight_is_named(tmp_path: Path, tiny_tensors: dict[str, Tensor]) -> None:
    key = f"{UNET}time_embed.0.bias"
    wrong = {key: tiny_tensors[key].to(torch.int8)}
    message = refusal(tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update(wrong))
    assert message == (
        f"The weight '{key}' of 'model.safetensors' holds int8 numbers, but only floating-point "
        "numbers can be trained. Choose the fp32, fp16 or bf16 version of this checkpoint."
    )


def test_an_unknown_unet_weight_is_named(tmp_path: Path, tiny_tensors: dict[str, Tensor]) -> None:
    key = f"{UNET}middle_block.1.transformer_blocks.0.adapter.weight"
    extra = {key: torch.zeros(1)}
    message = refusal(tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update(extra))
    assert message == (
        f"'model.safetensors' has the weight '{key}', which a Stable Diffusion 1 U-Net does not "
        "have. Choose a checkpoint without additions to the U-Net."
    )


def test_a_smaller_vocabulary_is_refused(tmp_path: Path, tiny_tensors: dict[str, Tensor]) -> None:
    smaller = {f"{TEXT}embeddings.token_embedding.weight": torch.zeros(675, 24)}
    message = refusal(tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update(smaller))
    assert message == (
        "The text encoder of 'model.safetensors' knows 675 tokens, but CLIP's vocabulary has "
        "49408. Choose a checkpoint with CLIP's text encoder."
    )


@pytest.mark.parametrize(
    ("constant", "network", "width"),
    [
        ("unet_norm_groups", "U-Net", 32),
        ("unet_heads", "U-Net", 32),
        ("vae_norm_groups", "VAE", 32),
        ("text_heads", "text encoder", 24),
    ],
)
def test_constants_that_do_not_fit_the_widths_are_refused(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], constant: str, network: str, width: int
) -> None:
    message = refusal(
        tmp_path / "model.safetensors", tiny_tensors, lambda t: None, f'{{"{constant}": 5}}'
    )
    assert message == (
        f"The {network} of 'model.safetensors' has {width} channels, which is not divisible by "
        f"{constant} = 5. Choose another checkpoint, or set {constant} in the file's metadata "
        "under dreambooth.constants."
    )


# ------------------------------------------------------------ NaN and infinity


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "key",
    [
        f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "first_stage_model.decoder.conv_out.weight",
        f"{TEXT}final_layer_norm.bias",
    ],
)
def test_a_weight_with_nan_or_infinity_is_named(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], key: str, dtype: torch.dtype, bad: float
) -> None:
    weight = tiny_tensors[key].to(dtype, copy=True)
    weight.view(-1)[[0, 5]] = bad
    message = refusal(
        tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update({key: weight})
    )
    assert message == (
        f"The weight '{key}' of 'model.safetensors' holds 2 numbers of {weight.numel()} that are "
        "infinite or not a number (NaN) and would spoil every result. Download the file again, or "
        "choose another."
    )


def test_nan_in_an_unused_tensor_is_ignored(
    tmp_path: Path, tiny_tensors: dict[str, Tensor]
) -> None:
    unused = {"model_ema.decay": torch.tensor(float("nan"))}
    save_file({**tiny_tensors, **unused}, tmp_path / "model.safetensors")
    families.load(tmp_path / "model.safetensors", torch.device("cpu"))


# ------------------------------------------------- inconsistent names and shapes


@pytest.mark.parametrize(
    ("key", "number", "missing"),
    [
        (f"{UNET}input_blocks.3.0.in_layers.0.weight", "9" * 5000, "input_blocks.5.0.out_layers.3"),
        (
            f"{UNET}output_blocks.1.0.in_layers.0.bias",
            "1000000000",
            "output_blocks.1.0.in_layers.0",
        ),
        (f"{TEXT}encoder.layers.1.layer_norm1.bias", "1000000000", "encoder.layers.1.layer_norm1"),
        (
            "first_stage_model.encoder.down.1.block.0.norm1.bias",
            "٣",
            "encoder.down.1.block.0.norm1",
        ),
    ],
)
def test_a_layer_number_out_of_range_is_not_trusted(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], key: str, number: str, missing: str
) -> None:
    other = re.sub(r"(blocks|layers|down)\.\d+\.", rf"\g<1>.{number}.", key, count=1)
    message = refusal(
        tmp_path / "model.safetensors", tiny_tensors, lambda t: t.update({other: t.pop(key)})
    )
    assert "lacks the weight" in message
    assert missing in message


def corrupt(rng: random.Random, tensors: dict[str, Tensor]) -> None:
    """Rename, reshape, empty, retype or drop a weight."""
    key = rng.choice(sorted(tensors))
    weight = tensors[key]
    way = rng.randrange(5)
    if way == 0:
        number = str(rng.choice([0, 1, 2, 5, 99, 10**9]))
        tensors[re.sub(r"\d+", number, key, count=rng.randint(1, 2))] = tensors.pop(key)
    elif way == 1:
        sides = [*weight.shape, 1]
        tensors[key] = weight.reshape(rng.choice([sides, sides[-2::-1], [-1], [1, -1]]))
    elif way == 2:
        sides = list(weight.shape)
        sides[rng.randrange(len(sides))] = 0
        tensors[key] = torch.zeros(sides)
    elif way == 3:
        tensors[key] = weight.view(rng.choice([torch.int32, torch.uint8, torch.float16]))
    else:
        del tensors[key]


@pytest.mark.parametrize("seed", range(40))
def test_all_inconsistencies_raise_value_error(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], seed: int
) -> None:
    rng, tensors = random.Random(seed), dict(tiny_tensors)
    corrupt(rng, tensors)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "a.safetensors"
    )
    try:
        families.load(tmp_path / "a.safetensors", torch.device("cpu"))
    except ValueError as error:
        message = str(error)
        assert "'a.safetensors'" in message
        assert re.search(r"(Choose|download it again|Correct)", message), message

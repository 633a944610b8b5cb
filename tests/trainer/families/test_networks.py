"""What `plan_*` refuses, and the number formats in which weights are kept. `test_sd1.py` tests that
the networks compute the right results."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import eight_bit, families, toy, weights
from trainer.checkpoint import CheckpointWriter
from trainer.families.base import ModelFamily
from trainer.families.files import CheckpointFile
from trainer.families.key_maps import Place
from trainer.families.networks import Network, NumberFormats
from trainer.precision import DTYPES
from trainer.settings.config import OutputConfig

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
CPU = torch.device("cpu")
EVERYTHING = frozenset({"unet", "text_encoder"})
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


# ------------------------------------------------------------ number formats


def load(path: Path, formats: NumberFormats) -> ModelFamily:
    return families.load(path, CPU, formats=formats)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_frozen_parts_are_kept_in_the_format_of_the_computation(tiny_checkpoint, precision, dtype):
    """But norms, embeddings and the VAE in fp32."""
    model = load(tiny_checkpoint, NumberFormats(precision, trained=frozenset({"text_encoder"})))
    for layer in model.unet.modules():
        expected = dtype if isinstance(layer, nn.Linear | nn.Conv2d) else torch.float32
        assert {p.dtype for p in layer.parameters(recurse=False)} <= {expected}
    for module in (model.vae, model.text_encoders):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    frozen = load(tiny_checkpoint, NumberFormats(precision)).text_encoders
    assert {parameter.dtype for parameter in frozen.parameters()} == {dtype, torch.float32}


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tiny_xl_checkpoint"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_of_frozen_parts_are_kept_in_8_bits(request, kind, precision):
    path = request.getfixturevalue(kind)
    formats = NumberFormats(precision, trained=frozenset({"text_encoder"}), frozen="8 bit")
    model, exact = load(path, formats), load(path, NumberFormats())
    modules = zip(model.unet.named_modules(), exact.unet.modules(), strict=True)
    for (name, layer), other in modules:
        is_layer = isinstance(layer, nn.Linear | nn.Conv2d)
        assert eight_bit.is_held(layer) == is_layer, name
        for key, parameter in layer.named_parameters(recurse=False):
            dtype = torch.int8 if key == "weight" else DTYPES[precision]
            assert parameter.dtype == (dtype if is_layer else torch.float32)
        if is_layer:
            error = (eight_bit.values(layer) - other.weight).std() / other.weight.std()
            assert error < 0.012, name
    first, *others = model.text_encoders
    assert {p.dtype for module in (model.vae, first) for p in module.parameters()} == {
        torch.float32
    }
    assert all(torch.int8 in {p.dtype for p in other.parameters()} for other in others)
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_dropped_text_encoders_in_8_bits_are_read_again(tiny_xl_checkpoint):
    model = load(tiny_xl_checkpoint, NumberFormats("bf16", frozen="8 bit"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model.encode_captions(["a dog"])
        model.drop_text_encoders()
        with model.on_device(model.text_encoders):
            after = model.encode_captions(["a dog"])
    assert torch.equal(before.hidden, after.hidden)
    assert torch.equal(before.added["text_embeds"], after.added["text_embeds"])


@pytest.mark.parametrize("format", ["24 bit", "bf16"])
def test_trained_parts_are_kept_in_their_own_format(tiny_checkpoint, format):
    model = load(tiny_checkpoint, NumberFormats("bf16", format, frozenset({"unet"})))
    for parameter in model.unet.parameters():
        assert weights.is_stored(parameter) == weights.is_large(parameter)
        has_rest = weights.rest_of(parameter) is not None
        assert has_rest == (weights.is_large(parameter) and format == "24 bit")
        assert not parameter.requires_grad
    assert any(map(weights.is_stored, model.unet.parameters()))
    assert not any(weights.rest_of(p) is not None for p in model.text_encoders.parameters())


@pytest.mark.parametrize("name", ["tiny", "toy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_pass_through_24_bits_unchanged(
    tiny_checkpoint: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    tensors = load_file(tiny_checkpoint if name == "tiny" else toy.MODEL)
    original = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    metadata = CheckpointFile(tiny_checkpoint if name == "tiny" else toy.MODEL).metadata
    save_file(original, tmp_path / "base.safetensors", metadata)
    written = load_file(save_again(tmp_path / "base.safetensors", tmp_path))
    assert written.keys() == original.keys()
    for key, tensor in original.items():
        assert written[key].dtype == dtype
        assert torch.equal(written[key], tensor), key


def test_fp32_files_lose_the_last_bits_in_24_bits(tiny_checkpoint, tmp_path):
    original, written = load_file(tiny_checkpoint), load_file(save_again(tiny_checkpoint, tmp_path))
    errors = {key: (written[key] - original[key]).abs() for key in original}
    assert all((error <= 2**-16 * original[key].abs()).all() for key, error in errors.items())
    assert sum(int(error.count_nonzero()) for error in errors.values()) > 100_000


def save_again(path: Path, folder: Path) -> Path:
    """Loads a checkpoint with weights in 24 bits, and writes them all to a new file."""
    model = load(path, NumberFormats("bf16", "24 bit", EVERYTHING))
    trained = {**model.file_tensors("unet"), **model.file_tensors("text_encoder")}
    assert sum(weights.rest_of(tensor) is not None for tensor in trained.values()) > 20
    writer = CheckpointWriter(model.source, OutputConfig(folder=folder, name="again"))
    return writer.save_final(trained, {})


class Bytes(TorchDispatchMode):
    """The most bytes that tensors made by operations took at once."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not func.is_view:
            storage = made.untyped_storage()
            self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.most = max(self.most, sum(self._alive.values()))
        return made


@pytest.mark.parametrize(
    ("formats", "per_weight"),
    [
        (NumberFormats("bf16", "24 bit", frozenset({"unet"})), 3),
        (NumberFormats("bf16", "bf16", frozenset({"unet"})), 2),
        (NumberFormats("bf16"), 2),
        (NumberFormats(), 4),
    ],
    ids=["24 bit", "bf16", "frozen", "fp32"],
)
def test_loading_takes_the_memory_of_the_result_and_of_one_weight(tmp_path, formats, per_weight):
    num_layers, numbers = 60, 64 * 64
    network = Network(
        lambda: nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(num_layers))),
        lambda names: {name: Place(name) for name in names},
    )
    tensors = {f"{n}.weight": torch.randn(64, 64).half() for n in range(num_layers)}
    save_file(tensors, tmp_path / "layers.safetensors")
    source = CheckpointFile(tmp_path / "layers.safetensors")
    with Bytes() as counted:
        network.read_tensors(source, "unet", formats)
    result = per_weight * num_layers * numbers
    assert result <= counted.most <= result + 8 * 4 * numbers  # temporary copies of one weight

"""The text encoder's layers are compared with transformers' own hidden states."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import families, toy
from trainer.families.clip_skip import choose_clip_skip, default_clip_skip, files_of
from trainer.families.tokenizer import ClipTokenizer
from trainer.settings.config import ModelOptions

CPU = torch.device("cpu")
CAPTIONS = ["a photo of sks dog", "a red cup"]


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file whose metadata are the arguments, named by the first argument."""

    def write(name: str, **metadata: str) -> Path:
        metadata = {key.replace("ours", "dreambooth.clip_skip"): v for key, v in metadata.items()}
        save_file({"x": torch.zeros(1)}, tmp_path / name, metadata={"format": "pt", **metadata})
        return tmp_path / name

    return write


@pytest.mark.parametrize("layers", [2, 5])
def test_every_layer_is_normed_like_the_last(
    tmp_path: Path, build_networks, four_levels, layers: int
) -> None:
    """The intermediate layer's output passes through the final layer norm, as in ComfyUI."""
    from trainer.families.sd1 import SD1

    options = {**four_levels["text_encoder"], "num_hidden_layers": layers}
    networks = build_networks(**{**four_levels, "text_encoder": options})
    tensors = {key: value.contiguous() for key, value in SD1.checkpoint_tensors(*networks).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    encoder = networks[2]
    body = getattr(encoder, "text_model", encoder)  # transformers 5 has no such level
    with torch.no_grad():
        states = encoder(ClipTokenizer().encode(CAPTIONS), output_hidden_states=True).hidden_states
        seen = []
        for clip_skip in range(1, layers + 1):
            options = ModelOptions(clip_skip=clip_skip)
            model = families.load(tmp_path / "model.safetensors", CPU, options=options)
            given = model.encode_captions(CAPTIONS).hidden
            expected = body.final_layer_norm(states[layers + 1 - clip_skip])
            assert (given - expected).abs().max() <= 1e-5
            seen.append(given)
    for one, other in zip(seen, seen[1:], strict=False):
        assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("clip_skip", [0, 3])
def test_a_layer_that_does_not_exist_is_refused(tiny_checkpoint: Path, clip_skip: int) -> None:
    with pytest.raises(ValueError) as caught:
        families.load(tiny_checkpoint, CPU, options=ModelOptions(clip_skip=clip_skip))
    assert str(caught.value) == (
        f"clip_skip is {clip_skip}, but the text encoder of 'tiny.safetensors' has 2 layers. "
        "Choose a clip_skip between 1 and 2."
    )
    families.load(tiny_checkpoint, CPU, options=ModelOptions(clip_skip=2))


def test_messages_call_the_toy_model_by_the_name_that_a_user_wrote() -> None:
    with pytest.raises(ValueError, match="encoder of 'toy' has 3 layers"):
        families.load(toy.MODEL, CPU, options=ModelOptions(clip_skip=4))


@pytest.mark.parametrize("ending", [".safetensors", ".sft"])
def test_a_model_draws_as_its_file_says(tiny_checkpoint: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"trained{ending}"
    metadata = {"dreambooth.constants": '{"resolution": 16}', "dreambooth.clip_skip": "2"}
    save_file(load_file(tiny_checkpoint), path, metadata=metadata)
    assert families.load(path, CPU).clip_skip == 2
    assert families.load(path, CPU, options=ModelOptions(clip_skip=1)).clip_skip == 1
    assert families.load(tiny_checkpoint, CPU).clip_skip == 1


def test_the_embedding_decides_before_the_checkpoint(recording: Callable[..., Path]) -> None:
    plain, two = recording("plain.safetensors"), recording("two.safetensors", ours="2")
    three = recording("three.safetensors", ours="3")
    assert default_clip_skip([plain]) == default_clip_skip([plain, plain]) == 1
    assert default_clip_skip([plain, two]) == default_clip_skip([two, plain]) == 2
    assert default_clip_skip(files_of(two, three)) == 3
    assert default_clip_skip(files_of(two, None, [three, plain])) == 3
    assert default_clip_skip(files_of(two, None, [three, two])) == 2
    pickled = two.rename(two.with_suffix(".pt"))  # has no metadata
    assert default_clip_skip([pickled, plain]) == 1


@pytest.mark.parametrize("value", ["None", "", "0", "-2", "2.0", "²", "9" * 5000])
def test_values_that_are_no_layer_are_ignored(recording: Callable[..., Path], value: str) -> None:
    assert default_clip_skip([recording("a.safetensors", ours=value)]) == 1


@pytest.mark.parametrize(
    ("metadata", "given", "chosen", "warned"),
    [
        ({"ours": "2"}, None, 2, ""),
        ({"ours": "2"}, 2, 2, ""),
        ({"ours": "2"}, 1, 1, "2 (dreambooth.clip_skip"),
        # Another trainer's value is not followed, but never ignored in silence.
        ({"ss_clip_skip": "2"}, None, 1, "2 (ss_clip_skip"),
        ({"ss_clip_skip": "2"}, 2, 2, ""),
        ({"ss_clip_skip": "1"}, 2, 2, "1 (ss_clip_skip"),
        ({"ss_clip_skip": "None"}, None, 1, ""),
        # Ours is the truth about a file whose base model had another.
        ({"ours": "1", "ss_clip_skip": "2"}, None, 1, ""),
    ],
)
def test_a_file_that_was_trained_otherwise_is_warned_of(
    recording: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, str],
    given: int | None,
    chosen: int,
    warned: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_clip_skip(given, [recording("a.safetensors", **metadata)]) == chosen
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([] if not warned else [
        f"'a.safetensors' was trained with clip skip {warned} in its metadata), but clip skip "
        f"{chosen} is used. Set clip_skip to {warned[0]} to use the file as it was trained."
    ])  # fmt: skip

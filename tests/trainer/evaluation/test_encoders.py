"""CLIP and DINO with random weights, compared with transformers on the same images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from trainer.evaluation import encoders
from trainer.evaluation.encoders import BATCH, IMAGENET_COLORS, to_pixels
from trainer.evaluation.metrics import prompt_fidelity, subject_fidelity
from trainer.families.tokenizer import ClipTokenizer

CPU = torch.device("cpu")
PROMPTS = ["a photo of sks dog", "a dog in the snow, " * 30, "고양이"]
VISION = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 8, "image_size": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1,
    "vocab_size": 49408, "hidden_act": "quick_gelu",
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 8, "image_size": 56,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fixed_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """More than one batch, in several shapes."""
    rng = np.random.default_rng(0)
    shapes = [(32, 32), (64, 64), (40, 100), (133, 57), (512, 384), (20, 21)]
    return [
        rng.integers(0, 256, (*shapes[number % len(shapes)], 3), np.uint8)
        for number in range(BATCH + 3)
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[CLIPModel, Path]:
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    model = CLIPModel(config).eval()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def clip_file(clip, tmp_path_factory) -> Path:
    """Like the published files in ComfyUI's clip_vision folder, with both networks."""
    path = tmp_path_factory.mktemp("clip_vision") / "clip_l.safetensors"
    tensors = load_file(clip[1] / "model.safetensors")
    # The older of the published files have these too.
    positions = {
        f"{part}_model.embeddings.position_ids": torch.arange(9) for part in ("text", "vision")
    }
    save_file({**tensors, **positions}, path)
    return path


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> tuple[ViTModel, Path]:
    """As DINO's weights are published: without the pooling layer that transformers would add."""
    model = ViTModel(ViTConfig(**SMALL), add_pooling_layer=False).eval()
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def own_image_features(model: CLIPModel, images: list[np.ndarray]) -> torch.Tensor:
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    features = model.get_image_features(pixel_values=pixels)
    return getattr(features, "pooler_output", features)  # transformers 5 wraps them


# ---------------------------------------------------------------------- CLIP


@pytest.mark.parametrize("source", ["folder", "file"])
def test_clip_embeds_images_like_transformers(clip, clip_file, images, source):
    model, folder = clip
    encoder = encoders.load(folder if source == "folder" else clip_file, CPU)
    embeddings = encoder.embed_images(images)
    torch.testing.assert_close(embeddings, own_image_features(model, images), rtol=1e-4, atol=1e-5)
    assert (embeddings.dtype, embeddings.requires_grad) == (torch.float32, False)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_clip_embeds_prompts_like_transformers(clip, clip_file, source):
    model, folder = clip
    encoder = encoders.load(folder if source == "folder" else clip_file, CPU)
    ids = ClipTokenizer().encode(PROMPTS)
    with torch.no_grad():
        own = model.get_text_features(input_ids=ids)
    own = getattr(own, "pooler_output", own)
    torch.testing.assert_close(encoder.embed_prompts(PROMPTS), own, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_is_cut_for_scoring_is_warned_about_once(clip, caplog):
    encoder = encoders.load(clip[1], CPU)
    for _ in range(2):
        encoder.embed_prompts(["a dog", "dog " * 75 + "red"])
    assert caplog.messages == [
        f"For scoring, CLIP cannot read all of the prompt {'dog ' * 75 + 'red'!r}. Its end is "
        "ignored: 'red'. Shorten the prompt."
    ]
    caplog.clear()
    encoder.embed_prompts(["dog " * 75])
    assert caplog.messages == []


def test_images_and_prompts_have_a_common_space(clip, images):
    model, folder = clip
    encoder = encoders.load(folder, CPU)
    ids = ClipTokenizer().encode(PROMPTS)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor(images[:3], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    own = (logits.diagonal() / model.logit_scale.exp()).mean().item()
    ours = prompt_fidelity(encoder.embed_images(images[:3]), encoder.embed_prompts(PROMPTS))
    assert ours == pytest.approx(own, abs=1e-5)


def test_a_vision_network_alone_cannot_embed_prompts(clip, images, tmp_path):
    model, folder = clip
    tensors = load_file(folder / "model.safetensors")
    vision = {name: t for name, t in tensors.items() if name.startswith(("vision", "visual"))}
    save_file(vision, tmp_path / "vision.safetensors")
    alone = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24))
    alone.load_state_dict(vision)
    alone.save_pretrained(tmp_path / "vision")
    for path in (tmp_path / "vision.safetensors", tmp_path / "vision"):
        encoder = encoders.load(path, CPU)
        own = own_image_features(model, images)
        torch.testing.assert_close(encoder.embed_images(images), own, rtol=1e-4, atol=1e-5)
        assert encoder.embed_prompts(PROMPTS) is None


def test_half_precision_files_are_computed_in_fp32(clip, images, tmp_path):
    tensors = load_file(clip[1] / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    embeddings = encoders.load(tmp_path / "a.safetensors", CPU).embed_images(images)
    assert embeddings.dtype == torch.float32
    own = own_image_features(clip[0], images)
    assert subject_fidelity(embeddings, own) == pytest.approx(subject_fidelity(own, own), abs=1e-2)


# ---------------------------------------------------------------------- DINO


def test_dino_returns_its_class_token(dino, images):
    model, folder = dino
    pixels = torch.stack([to_pixels(image, 64, 56, IMAGENET_COLORS) for image in images])
    with torch.no_grad():
        own = model(pixel_values=pixels).last_hidden_state[:, 0]
    encoder = encoders.load(folder, CPU)
    torch.testing.assert_close(encoder.embed_images(images), own, rtol=1e-4, atol=1e-5)
    assert encoder.embed_prompts(PROMPTS) is None


def test_dinov2_uses_smaller_images_than_it_could(images, tmp_path):
    model = Dinov2Model(Dinov2Config(**{**SMALL, "image_size": 256})).eval()
    model.save_pretrained(tmp_path)
    processor = BitImageProcessor(
        size={"shortest_edge": 256}, crop_size=224, image_mean=IMAGENET_COLORS[0],
        image_std=IMAGENET_COLORS[1],
    )  # fmt: skip
    with torch.no_grad():
        own = model(**processor(images[:4], return_tensors="pt")).last_hidden_state[:, 0]
    found = encoders.load(tmp_path, CPU).embed_images(images[:4])
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


def test_loading_and_embedding_do_not_touch_the_process_wide_generator(dino, clip, images):
    before = torch.get_rng_state()
    for _, folder in (dino, clip):
        encoders.load(folder, CPU).embed_images(images[:1])
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------ refusals


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        encoders.load(path, CPU)
    return str(caught.value)


TYPES = "clip, clip_vision_model, vit, dinov2, dinov2_with_registers"


def test_a_folder_with_another_model_is_refused(tmp_path):
    end = (
        ", which cannot score images. Choose a folder with CLIP or DINO in the layout of "
        f"transformers ({TYPES}), or a .safetensors file of CLIP."
    )
    assert refusal(tmp_path) == f"{tmp_path} contains no readable config.json{end}"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert refusal(tmp_path) == f"{tmp_path} contains a model of type 'bert'{end}"


def test_pickled_weights_are_refused(dino, tmp_path):
    shutil.copy(dino[1] / "config.json", tmp_path)
    torch.save(dino[0].state_dict(), tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path) == (
        f"{tmp_path} contains no .safetensors file, and other formats are not supported. Download "
        "the model's .safetensors version."
    )


def test_a_damaged_folder_is_refused(dino, tmp_path):
    folder = shutil.copytree(dino[1], tmp_path / "dino")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    assert refusal(folder) == (
        f"'model.safetensors' is cut short, {len(whole) - 10} of {len(whole)} bytes: the download "
        "or copy did not finish. Download it again."
    )


def test_an_incomplete_folder_is_refused_instead_of_randomly_initialised(dino, tmp_path):
    folder = shutil.copytree(dino[1], tmp_path / "dino")
    tensors = load_file(folder / "model.safetensors")
    lost = sorted(tensors)[3]
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder) == (
        f"{folder} lacks the weight '{lost}', which its config.json requires. The model is "
        "incomplete: download it again, or choose another."
    )


def test_a_config_that_does_not_fit_is_refused(dino, tmp_path):
    folder = shutil.copytree(dino[1], tmp_path / "dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    message = refusal(folder)
    # Between the two is the reason that transformers gives, which changes between its releases.
    assert message.startswith(f"{folder} cannot be loaded as a model of type 'vit' (")
    assert message.endswith("). Download it again, or choose another.")


def test_a_file_without_clip_is_refused(tiny_checkpoint):
    assert refusal(tiny_checkpoint) == (
        f"'{tiny_checkpoint.name}' has no weights named 'vision_model.…', so it is not a CLIP "
        "image encoder. Choose a file as in ComfyUI's clip_vision folder, in the layout of "
        "transformers."
    )


def test_an_incomplete_file_is_refused(clip_file, tmp_path):
    lost = "vision_model.encoder.layers.1.mlp.fc2.bias"
    tensors = {name: t for name, t in load_file(clip_file).items() if name != lost}
    save_file(tensors, tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors") == (
        f"'a.safetensors' lacks the weight '{lost}', which its other weights call for. The file is "
        "incomplete: download it again, or choose another."
    )


def test_a_width_that_does_not_reveal_the_heads_is_refused(clip, tmp_path):
    odd = CLIPConfig(
        vision_config={**VISION, "hidden_size": 36}, text_config=TEXT, projection_dim=24
    )
    model = CLIPVisionModelWithProjection(odd.vision_config)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors") == (
        "A network of 'a.safetensors' has the width 36, which does not reveal its number of "
        "attention heads. Choose a folder with config.json instead."
    )


def test_another_vocabulary_is_refused(tmp_path):
    config = CLIPConfig(
        vision_config=VISION, text_config={**TEXT, "vocab_size": 21128}, projection_dim=24
    )
    save_file(CLIPModel(config).state_dict(), tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors") == (
        "The text encoder of 'a.safetensors' has a vocabulary of 21128 tokens instead of CLIP's "
        "49408. Choose a CLIP with the original one."
    )


# ------------------------------------------------------------ published shapes


@pytest.mark.parametrize(
    ("width", "layers", "side", "expected"),
    [
        (768, 12, 224, ("quick_gelu", 12)),
        (1024, 24, 224, ("quick_gelu", 16)),
        (1024, 24, 336, ("quick_gelu", 16)),
        (1280, 32, 224, ("gelu", 16)),
        (1664, 48, 224, ("gelu", 16)),
    ],
    ids=["B/16", "L/14", "L/14 336", "H/14", "bigG/14"],
)
def test_published_sizes_are_recognised_by_their_shapes(tmp_path, width, layers, side, expected):
    """With the widths, layers, heads and activations in their config.json files."""
    patch = 16 if width == 768 else 14
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, width),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        f"vision_model.encoder.layers.{layers - 1}.layer_norm1.weight": (width,),
        "visual_projection.weight": (512, width),
    }
    shapes |= {f"vision_model.encoder.layers.{n}.layer_norm2.weight": (1,) for n in range(layers)}
    # One number per tensor instead of all of them: only the shapes matter here.
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save(tensors, tmp_path / "clip.pt")
    config = encoders._vision_config(encoders.CheckpointFile(tmp_path / "clip.pt"))
    assert (config["hidden_act"], config["num_attention_heads"]) == expected
    assert (config["image_size"], config["num_hidden_layers"]) == (side, layers)

"""The options of LoRA: which layers get which rank, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.data.examples import Example
from trainer.methods.lora import LoRA
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig

PHOTO = Example(Path("a.png"), ("a photo of <rex>",), is_prior=False)


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of <rex>"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )


def ranks(options: LoRA, model) -> dict[str, int]:
    return {layer.path: options.rank_of(layer) for layer in model.lora_layers()}


def test_ranks_by_kind_and_part(tiny_model):
    options = LoRA(rank=6, conv_rank=3, text_encoder_rank=2, train_text_encoder=True)
    found = ranks(options, tiny_model)
    assert found["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] == 6
    assert found["mid_block.attentions.0.proj_in"] == 6
    assert found["mid_block.resnets.0.conv1"] == found["mid_block.resnets.0.time_emb_proj"] == 3
    assert {rank for path, rank in found.items() if "self_attn" in path} == {2}
    plain = ranks(LoRA(rank=6), tiny_model)
    assert plain["mid_block.resnets.0.conv1"] == plain["conv_in"] == 0
    assert {rank for path, rank in plain.items() if "self_attn" in path} == {0}
    same = ranks(LoRA(rank=6, train_text_encoder=True), tiny_model)
    assert {rank for path, rank in same.items() if "self_attn" in path} == {6}


def test_a_rank_is_at_most_that_of_the_weight(tiny_model):
    found = ranks(LoRA(rank=1000, conv_rank=1000), tiny_model)
    for layer in tiny_model.lora_layers():
        if layer.part == "unet":
            weight = torch.empty(layer.shape).flatten(1)
            assert found[layer.path] == min(weight.shape)


def test_layers_are_chosen_by_words_in_their_names(tiny_model):
    found = ranks(LoRA(layers=" attn2 , ff.net"), tiny_model)
    for path, rank in found.items():
        is_chosen = "encoder.layers" not in path and ("attn2" in path or "ff.net" in path)
        assert (rank > 0) == is_chosen, path


def test_words_that_no_layer_has_are_refused(tiny_model, config):
    with pytest.raises(ValueError) as caught:
        LoRA(layers="attn9").attach(tiny_model, config, [])
    layers = tiny_model.lora_layers()
    assert str(caught.value) == (
        "layers is 'attn9', but no layer to train has a name that contains one of these words. "
        f"Names are such as {layers[0].path!r} and {layers[-1].path!r}."
    )


def test_only_the_adapters_become_trainable(tiny_model, config):
    options = LoRA(train_text_encoder=True, text_encoder_learning_rate=1e-5,
                   text_encoder_stop_step=7)  # fmt: skip
    trainable = options.attach(tiny_model, config, [])
    assert [(part.name, part.learning_rate, part.stop_step) for part in trainable.parts] == [
        ("unet", 1e-4, None), ("text_encoder", 1e-5, 7),
    ]  # fmt: skip
    adapters = {id(p) for part in trainable.parts for p in part.parameters}
    modules = (tiny_model.unet, tiny_model.text_encoders, tiny_model.vae)
    learning = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    assert learning == adapters
    assert trainable.trains_text_encoder
    assert options.trained_parts == frozenset()


def test_a_new_word_is_learned_beside_the_lora(tiny_model, config):
    options = LoRA(placeholder="<rex>", initializer="dog", embedding_learning_rate=1e-2)
    trainable = options.attach(tiny_model, config, [PHOTO])
    assert [(part.name, part.learning_rate) for part in trainable.parts] == [
        ("unet", 1e-4), ("embedding", 1e-2),
    ]  # fmt: skip
    assert [file.kind for file in trainable.files] == ["lora", "embedding"]
    assert trainable.trains_text_encoder
    with pytest.raises(ValueError, match="'<cat>' appears in no caption"):
        LoRA(placeholder="<cat>", initializer="cat").attach(tiny_model, config, [PHOTO])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more, got 0."),
        ({"text_encoder_rank": 0}, "text_encoder_rank must be 1 or more, got 0."),
        ({"conv_rank": -1}, "conv_rank must be 0 or more, got -1."),
        (
            {"rank": 4, "min_rank": 5},
            "min_rank is 5, but the rank is only 4. Choose a min_rank from 1 to 4.",
        ),
        ({"alpha": 0.0}, "alpha must be above 0, got 0.0."),
        ({"dropout": 1.0}, "dropout must be 0 or more and below 1, got 1.0."),
        ({"embedding_learning_rate": 0.0}, "embedding_learning_rate must be above 0, got 0.0."),
        (
            {"initializer": "dog"},
            "initializer and num_vectors describe a new word, but placeholder is empty. Set "
            "placeholder, such as '<my-dog>', or leave them out.",
        ),
        (
            {"placeholder": "<rex>"},
            "The initializer is empty. Name the subject in one or more common words, such as "
            "'dog'.",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        LoRA(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (
            {}, {"weights": "24 bit", "precision": "bf16"},
            "weights is 24 bit, but a LoRA itself is always trained in fp32; it is small. Set "
            "weights to fp32. The base model is kept in the precision of the run.",
        ),
        (
            {"placeholder": "<rex>", "initializer": "dog"}, {"embedding": Path("a.safetensors")},
            "placeholder names a new word, but the run has an embedding with a word already. Leave "
            "out placeholder, or the embedding.",
        ),
        (
            {"train_embedding": True}, {},
            "train_embedding is on, but the run has no embedding. Set embedding to the file of a "
            "textual inversion, or switch train_embedding off.",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_it_are_refused(config, options, changes, message):
    LoRA(**options | {"train_embedding": False}).check(config)
    with pytest.raises(ValueError) as caught:
        LoRA(**options).check(config.replace(changes))
    assert str(caught.value) == message


def test_prodigy_has_one_rate_for_all(config):
    config = config.replace({"optimizer": {"name": "Prodigy", "learning_rate": 1.0}})
    LoRA().check(config)
    options = LoRA(placeholder="<rex>", initializer="dog", embedding_learning_rate=1e-3)
    with pytest.raises(ValueError, match="embedding_learning_rate"):
        options.check(replace(config))


def test_xl_has_a_second_text_encoder(xl_model, tiny_model, config):
    options = LoRA(train_text_encoder_2=True, text_encoder_2_learning_rate=3e-5)
    parts = options.attach(xl_model, config, []).parts
    assert [(part.name, part.learning_rate) for part in parts] == [
        ("unet", 1e-4), ("text_encoder_2", 3e-5),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="has only one text encoder"):
        options.attach(tiny_model, config, [])

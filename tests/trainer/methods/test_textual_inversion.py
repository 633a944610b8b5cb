"""Textual inversion: its initial vectors, what it trains and leaves alone, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer import families
from trainer.data.examples import Example, find_examples
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TEMPLATES, TextualInversion, TrainableEmbedding
from trainer.observer import Observer
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    TrainingConfig,
)

CPU = torch.device("cpu")
LONG = " ".join(["dog"] * 75)


@pytest.fixture
def config(tiny_checkpoint, draw_photos, tmp_path) -> TrainingConfig:
    """Three steps on two photos."""
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(
            photos=(draw_photos(tmp_path / "photos", 2),), prompt="a photo of sks dog"
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        output=OutputConfig(folder=tmp_path / "out", name="my-dog"),
        steps=3,
        batch_size=2,
    )


def method(**options: object) -> TextualInversion:
    return TextualInversion(**{"placeholder": "<tok>", "initializer": "dog", **options})


def attach(model, config, *, photos=(), **options):
    """The initial vectors [N, D], and the trainable."""
    trainable = method(**options).attach(model, config, photos)
    (part,) = trainable.parts
    (vectors,) = part.parameters
    return vectors.detach().clone(), trainable


def row(model, word: str) -> torch.Tensor:
    return model.token_tables()["clip_l"].weight[model.tokenizer.token_id(f"{word}</w>")]


def test_each_word_of_the_initializer_initializes_a_vector(tiny_model, config):
    vectors, _ = attach(tiny_model, config, initializer="white dog")
    assert torch.equal(vectors, torch.stack([row(tiny_model, "white"), row(tiny_model, "dog")]))


def test_further_vectors_start_near_the_words_but_never_as_copies(tiny_checkpoint, config):
    def initial(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        model = families.load(tiny_checkpoint, CPU)
        vectors, _ = attach(
            model, replace(config, seed=seed), initializer="white dog", num_vectors=5
        )
        return vectors, torch.stack([row(model, w) for w in ("white", "dog") * 3][:5])

    vectors, words = initial(0)
    distances = (vectors - words).norm(dim=1) / words.norm(dim=1)
    torch.testing.assert_close(distances, torch.tensor([0, 0, 0.1, 0.1, 0.1]))
    assert len({tuple(vector.tolist()) for vector in vectors}) == 5
    assert torch.equal(initial(0)[0], vectors)
    assert not torch.equal(initial(1)[0], vectors)


def test_only_the_new_vectors_are_trained(tiny_model, config):
    vectors, trainable = attach(tiny_model, config, num_vectors=3)
    assert vectors.shape == (3, 24)
    assert [part.decays for part in trainable.parts] == [False]
    assert not any(
        p.requires_grad for part in tiny_model.parts().values() for p in part.parameters()
    )
    assert not any(p.requires_grad for p in tiny_model.vae.parameters())


def test_everything_but_the_new_vectors_stays_bit_for_bit(config, monkeypatch):
    """Every row of the token embedding table, the U-Net and the VAE of the trained model."""
    models = []
    load = families.load
    monkeypatch.setattr(
        families,
        "load",
        lambda *args, **options: models.append(model := load(*args, **options)) or model,
    )
    result = train(config, method(), device=CPU)
    (model,) = models
    for part in ("unet", "text_encoder"):
        for name, tensor in model.file_tensors(part).items():
            assert torch.equal(tensor, model.source.tensor(name)), name
    fresh = load(config.base, CPU)
    for name, tensor in fresh.vae.state_dict().items():
        assert torch.equal(model.vae.state_dict()[name], tensor), name
    assert result.moved["embedding"][1] == 1


def test_the_file_holds_the_vectors_and_describes_them(config):
    result = train(config, method(num_vectors=2), device=CPU)
    assert list(result.files) == ["embedding"]
    assert {n: tuple(t.shape) for n, t in load_file(result.embedding).items()} == {
        "clip_l": (2, 24)
    }
    with safe_open(result.embedding, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["dreambooth.placeholder"] == metadata["modelspec.trigger_phrase"] == "<tok>"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["ss_steps"] == "3"
    assert '"initializer": "dog"' in metadata["dreambooth.method"]
    assert "dreambooth.constants" not in metadata


def test_embeddings_go_into_their_own_folder_without_overwriting_files(config, tmp_path):
    output = replace(config.output, embedding_folder=tmp_path / "embeddings")
    names = [
        train(replace(config, output=output), method(), device=CPU).embedding for _ in range(2)
    ]
    assert names == [
        tmp_path / "embeddings" / "my-dog.safetensors",
        tmp_path / "embeddings" / "my-dog_00001.safetensors",
    ]


def test_vectors_stay_within_the_vocabularys_lengths(tiny_model, config):
    _, trainable = attach(tiny_model, config, num_vectors=3)
    (vectors,) = trainable.parts[0].parameters
    lengths = tiny_model.token_tables()["clip_l"].weight.norm(dim=1).numpy()
    shortest, longest = (np.quantile(lengths, share) for share in (0.01, 0.99))
    with torch.no_grad():
        vectors[0] *= 1e-3
        vectors[2] *= 1e3
    before = vectors.detach().clone()
    trainable.after_step()
    torch.testing.assert_close(
        vectors.norm(dim=1).detach(),
        torch.tensor([shortest, before[1].norm(), longest], dtype=torch.float32),
    )
    torch.testing.assert_close(
        torch.nn.functional.normalize(vectors.detach()), torch.nn.functional.normalize(before)
    )


def test_directional_vectors_have_the_mean_length_and_turn(config, tiny_checkpoint):
    table = families.load(tiny_checkpoint, CPU).token_tables()["clip_l"].weight.detach()
    mean = table.norm(dim=1).mean().item()
    trained = train(config, method(num_vectors=2, directional=True), device=CPU)
    vectors = next(iter(load_file(trained.embedding).values()))
    assert vectors.norm(dim=1).tolist() == pytest.approx([mean, mean], rel=1e-5)
    start, _ = attach(families.load(tiny_checkpoint, CPU), config, num_vectors=2)
    turned = torch.acos(torch.cosine_similarity(vectors, start))
    step = 1e-2 * table.shape[1] ** 0.5 / mean
    assert (turned > 0.1 * step).all()
    assert (turned < 3.001 * step).all()


@pytest.mark.parametrize("changes", [{}, {"gradient_release": True}, {"precision": "fp16"}])
def test_a_directional_run_that_is_resumed_ends_with_the_same_vectors(config, tmp_path, changes):
    def trained(folder: str, **output: object) -> dict[str, torch.Tensor]:
        run = config.replace({**changes, "output": {"folder": tmp_path / folder, **output}})
        options = method(num_vectors=2, directional=True)
        if output:
            short = replace(run, steps=2)
            train(short, options, device=CPU, runs=tmp_path / "runs")
            run = replace(run, steps=3)
        embedding = train(run, options, device=CPU, runs=tmp_path / "runs").embedding
        return load_file(embedding)

    whole, resumed = trained("whole"), trained("resumed", keep_state=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_directional_refuses_an_optimizer_that_it_would_not_use(config):
    other = config.replace({"optimizer": {"name": "Lion"}})
    with pytest.raises(ValueError) as caught:
        method(directional=True).check(other)
    assert str(caught.value) == (
        "directional is on, which takes steps of its own, but optimizer.name is Lion. Set "
        "optimizer.name to AdamW, or switch directional off."
    )


def test_photos_without_a_caption_get_the_templates(tmp_path):
    own = Example(tmp_path / "a.png", ("<tok> in the snow",))
    plain = Example(tmp_path / "b.png", ("a photo of sks dog",))
    captioned = method(templates="face").caption([own, plain], "a photo of sks dog")
    assert captioned[0] == own
    assert captioned[1].captions == tuple(t.format("<tok>") for t in TEMPLATES["face"])


def test_every_template_has_one_place_for_the_placeholder():
    for name, templates in TEMPLATES.items():
        assert all(template.count("{}") == 1 for template in templates), name
        assert len(set(templates)) == len(templates), name


def test_dreambooth_can_continue_to_train_the_vectors_or_leave_them(config):
    first = train(config, method(), device=CPU)
    dataset = replace(config.dataset, prompt="a photo of <tok>")
    second = replace(config, dataset=dataset, embedding=first.embedding)
    old = load_file(first.embedding)["clip_l"]

    stayed = train(second, FullFineTune(train_text_encoder=True), device=CPU)
    assert list(stayed.files) == ["checkpoint"]
    table = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert load_file(stayed.checkpoint)[table].shape == (49408, 24)

    both = train(second, FullFineTune(train_embedding=True), device=CPU)
    assert list(both.files) == ["checkpoint", "embedding"]
    assert both.embedding.name == "my-dog-embedding.safetensors"
    assert not torch.equal(load_file(both.embedding)["clip_l"], old)
    assert sorted(both.moved) == ["embedding", "unet"]


def test_the_embedding_changes_what_dreambooth_learns(config):
    """The same run with another vector for the placeholder has different losses. The vector differs
    in direction, because the text encoder's LayerNorm removes offset and scale."""
    losses = []
    for number in (0, 1):
        vector = torch.eye(24)[number : number + 1]
        path = config.output.folder.parent / f"{number}.safetensors"
        save_file({"clip_l": vector}, path, {"dreambooth.placeholder": "<tok>"})
        dataset = replace(config.dataset, prompt="a photo of <tok>")
        result = train(replace(config, dataset=dataset, embedding=path), FullFineTune(), device=CPU)
        losses.append(result.reports[0].loss)
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"placeholder": "dog"},
            "The placeholder 'dog' is already a word of CLIP's vocabulary, and would change that "
            "word's meaning in every prompt. Use a new word, such as '<dog>'.",
        ),
        (
            {"placeholder": "my dog"},
            "The placeholder must be one word without spaces, got 'my dog'. Use one such as "
            "'<my-dog>'.",
        ),
        (
            {"initializer": " "},
            "The initializer is empty. Name the subject in one or more common words, such as "
            "'dog'.",
        ),
        ({"num_vectors": 0}, "num_vectors must be 1 or more, got 0."),
        (
            {"templates": "cars"},
            "templates must be one of captions, object, style, face, got 'cars'.",
        ),
    ],
)
def test_refuses_invalid_options(options, message):
    with pytest.raises(ValueError) as caught:
        method(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"initializer": "my labradoodle"},
            "The initializer cannot be used: 'labradoodle' is not one token of CLIP's vocabulary "
            "but 2 (labra, doodle). Use a more common word.",
        ),
        (
            {"initializer": "white dog", "num_vectors": 1},
            "The initializer 'white dog' has 2 words, but num_vectors is 1. Set num_vectors to 2 "
            "or more, or use fewer words.",
        ),
        (
            {"num_vectors": 76},
            "num_vectors is 76, but a prompt has room for only 75 tokens. Set it to 8 or less, to "
            "leave room for the rest of the prompt.",
        ),
    ],
)
def test_refuses_initializers_that_do_not_fit_the_model(tiny_model, config, options, message):
    with pytest.raises(ValueError) as caught:
        attach(tiny_model, config, **options)
    assert str(caught.value) == message


def test_refuses_captions_without_room_for_the_vectors(tiny_model, config):
    caption = f"{LONG[:-8]} <tok>"
    photo = Example(Path("a.png"), (caption,))
    with pytest.raises(ValueError) as caught:
        attach(tiny_model, config, photos=[photo], num_vectors=3)
    assert str(caught.value) == (
        "The caption of 'a.png' has no room for all 3 vectors of '<tok>': "
        f"{caption!r}. Shorten the caption, or lower num_vectors."
    )


def test_refuses_captions_without_the_placeholder(config):
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    with pytest.raises(ValueError) as caught:
        method(templates="captions").caption(photos, config.dataset.prompt)
    assert str(caught.value) == (
        "The caption of '0.png' lacks the placeholder '<tok>': 'a photo of sks dog'. Add it to the "
        "caption, or choose other templates (object, style, face)."
    )


def test_refuses_class_images(config):
    prior = PriorConfig(weight=1.0, prompt="a dog")
    with pytest.raises(ValueError) as caught:
        method().check(replace(config, prior=prior))
    assert str(caught.value) == (
        "prior.weight is 1, but textual inversion does not change the model, so class images have "
        "nothing to preserve. Set prior.weight to 0."
    )


def test_refuses_a_teacher(config):
    prior = PriorConfig(teacher_weight=1.0, prompt="a dog")
    with pytest.raises(ValueError) as caught:
        method().check(replace(config, prior=prior))
    assert str(caught.value) == (
        "prior.teacher_weight is 1, but textual inversion does not change the model, so there is "
        "nothing to preserve. Set prior.teacher_weight to 0."
    )


def test_an_embedding_file_names_its_placeholder_whichever_method_trains_it(tiny_model, config):
    attach(tiny_model, config)
    embedding = TrainableEmbedding(tiny_model, "<tok>", config, name_suffix="-embedding")
    assert embedding.file.output.name == "my-dog-embedding"
    assert embedding.file.metadata["dreambooth.placeholder"] == "<tok>"


def test_a_stopped_and_resumed_run_ends_like_an_uninterrupted_one(config, tmp_path):
    class Stop(Observer):
        def on_step(self, report):
            if report.step == 2:
                raise KeyboardInterrupt

    whole = train(config, method(num_vectors=2), device=CPU, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, method(num_vectors=2), device=CPU, runs=tmp_path / "parts", observer=Stop())
    parts = train(config, method(num_vectors=2), device=CPU, runs=tmp_path / "parts")
    assert [r.loss for r in parts.reports] == [r.loss for r in whole.reports]
    assert torch.equal(load_file(parts.embedding)["clip_l"], load_file(whole.embedding)["clip_l"])
    again = train(config, method(num_vectors=2), device=CPU, runs=tmp_path / "parts")
    assert again.reused
    assert again.embedding == parts.embedding.resolve()


def test_gradient_checkpointing_changes_nothing_but_memory(config):
    results = [
        train(replace(config, gradient_checkpointing=on), method(), device=CPU)
        for on in (False, True)
    ]
    plain, sparing = (load_file(result.embedding)["clip_l"] for result in results)
    torch.testing.assert_close(sparing, plain)

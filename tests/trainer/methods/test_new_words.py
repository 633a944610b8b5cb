"""New words. tests/trainer/methods/test_textual_inversion.py has the vectors and their messages."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.data.examples import Example
from trainer.methods.new_words import NewWord, TrainableEmbedding, require_placeholder_in_use
from trainer.settings.config import DatasetConfig, TrainingConfig

PHOTO = Example(Path("a.png"), ("a photo of <dog>",), is_prior=False)


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    return TrainingConfig(
        base=tiny_checkpoint, dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of <dog>")
    )


def test_a_word_begins_with_the_vectors_of_common_words(tiny_model):
    NewWord("<dog>", "dog").add_to(tiny_model, [PHOTO], seed=0)
    (table,) = tiny_model.token_tables().values()
    (vectors,) = tiny_model.learned_vectors["<dog>"].values()
    assert torch.equal(vectors, table.weight[tiny_model.tokenizer.word_ids("dog")])


def test_its_learning_rate_is_that_of_the_run_unless_it_has_one(tiny_model, config):
    NewWord("<dog>", "dog").add_to(tiny_model, [PHOTO], seed=0)
    rates = [
        TrainableEmbedding(tiny_model, "<dog>", config, learning_rate=rate).part.learning_rate
        for rate in (None, 0.5)
    ]
    assert rates == [config.optimizer.learning_rate, 0.5]


def test_its_file_goes_to_the_folder_of_embeddings(tiny_model, config, tmp_path):
    output = replace(config.output, embedding_folder=tmp_path, name="pets/rex")
    NewWord("<dog>", "dog").add_to(tiny_model, [PHOTO], seed=0)
    file = TrainableEmbedding(
        tiny_model, "<dog>", replace(config, output=output), name_suffix="-embedding"
    ).file
    assert (file.output.folder, file.output.name) == (tmp_path / "pets", "rex-embedding")
    assert file.metadata["dreambooth.placeholder"] == "<dog>"


def test_a_placeholder_in_no_caption_is_refused():
    require_placeholder_in_use("<dog>", [replace(PHOTO, captions=("a cat",)), PHOTO])
    with pytest.raises(ValueError) as caught:
        require_placeholder_in_use("<cat>", [PHOTO])
    assert str(caught.value) == (
        "The embedding's placeholder '<cat>' appears in no caption, so the embedding would have no "
        "effect. Add it to dataset.prompt, for example 'a photo of <cat>' (now 'a photo of "
        "<dog>')."
    )

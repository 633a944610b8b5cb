"""The words with which people look for what the nodes do find them in ComfyUI's search box."""

import pytest

from tests.schemas import nodes

NEAR_START = 30
"""ComfyUI's search looks for each word in the first characters of a name or an alias."""
TRAIN, INVERSION = "DreamBoothTrain", "DreamBoothTextualInversionTrain"
FOUND = [
    *((f"{verb} {what}", TRAIN) for verb in ("train", "finetune", "fine-tune", "fine tune")
      for what in ("face", "person", "character", "subject", "object", "pet", "model",
                   "checkpoint")),
    *((words, TRAIN) for words in ("train photos", "face finetune", "teach", "dreambooth")),
    *((words, INVERSION) for words in ("train style", "train embedding", "finetune embedding",
      "learn word", "teach word", "train face embedding", "textual inversion")),
    *((words, TRAIN) for words in ("train lora", "lora training", "finetune lora",
      "fine-tune lora")),
    ("apply lora", "DreamBoothApplyLoRA"),
    ("load lora", "DreamBoothApplyLoRA"),
    ("compare lora", "DreamBoothCompareSettings"),
    ("stable diffusion 1.5", "DreamBoothLoadBaseModel"),
    ("merged model", "DreamBoothModelFromGraph"),
    ("training photos", "DreamBoothLoadInstanceImages"),
    ("dataset folder", "DreamBoothLoadInstanceImages"),
    ("captions", "DreamBoothLoadInstanceImages"),
    ("regularization images", "DreamBoothGenerateClassPriors"),
    ("training settings", "DreamBoothOptimizerSettings"),
    ("low vram", "DreamBoothOptimizerSettings"),
    ("learning rate", "DreamBoothOptimizerSettings"),
    ("training preview", "DreamBoothPreviewSettings"),
    ("test model", "DreamBoothSampleWithScheduler"),
    ("generate images", "DreamBoothSampleWithScheduler"),
    ("compare models", "DreamBoothCompareSettings"),
    ("xy plot", "DreamBoothCompareSettings"),
    ("clip score", "DreamBoothScoreImages"),
    ("extract lora", "DreamBoothExtractLoRA"),
    ("checkpoint to lora", "DreamBoothExtractLoRA"),
    ("merge lora", "DreamBoothSaveCheckpoint"),
    ("bake lora", "DreamBoothSaveCheckpoint"),
    ("save checkpoint", "DreamBoothSaveCheckpoint"),
    ("load finetuned", "DreamBoothUseTrainedModel"),
    ("trained model", "DreamBoothUseTrainedModel"),
]  # fmt: skip
"""What is written into the search box, and a node that it finds."""


def is_found(words: str, text: str) -> bool:
    """Whether a name or an alias has all the words near its start, in any order."""
    start = _plain(text)[: NEAR_START + 8]
    return all(0 <= start.find(_plain(word)) <= NEAR_START for word in words.split())


def _plain(text: str) -> str:
    return text.lower().replace("-", "")


@pytest.mark.parametrize(("words", "node"), FOUND)
def test_these_words_find_the_node(words, node):
    found = nodes()[node]
    texts = [found.id, found.name, *found.search_aliases]
    assert any(is_found(words, text) for text in texts), texts


def test_only_the_node_that_trains_a_lora_promises_it():
    """Others take or compare LoRAs."""
    found = [
        node.id
        for node in nodes().values()
        if any(is_found("train lora", text) for text in [node.name, *node.search_aliases])
    ]
    assert found == [TRAIN]

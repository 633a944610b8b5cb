"""Recommended settings for each kind of subject; "method" holds those of the training method.

The first two are the article's settings for objects and faces at 512 pixels. The third is its
DreamBooth stage after 2000 steps of textual inversion. Those for Stable Diffusion XL have the
learning rate of OneTrainer's preset for fine-tuning it (3e-6, text encoders not trained), the
article's class images for faces, and as many photos in all as the article's for objects."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "object": {"batch_size": 4, "steps": 400, "optimizer": {"learning_rate": 2e-6}},
    "face": {
        "batch_size": 2,
        "steps": 1200,
        "optimizer": {"learning_rate": 1e-6},
        "prior": {"weight": 1.0},
        "method": {"train_text_encoder": True},
    },
    "textual inversion + DreamBooth": {
        "batch_size": 4,
        "steps": 500,
        "optimizer": {"learning_rate": 1e-6},
    },
    "object XL": {"batch_size": 2, "steps": 800, "optimizer": {"learning_rate": 3e-6}},
    "face XL": {
        "batch_size": 2,
        "steps": 1200,
        "optimizer": {"learning_rate": 3e-6},
        "prior": {"weight": 1.0},
    },
    # The toy model is thousands of times smaller and needs a learning rate 100 times higher.
    "toy": {
        "batch_size": 4,
        "steps": 300,
        "optimizer": {"learning_rate": 2e-4},
        "prior": {
            "weight": 1.0,
            "num_images": 60,
            "sampling": {"steps": 20, "guidance_scale": 4, "batch_size": 12},
        },
        "method": {"train_text_encoder": True},
    },
}


LORA_PRESETS: dict[str, dict[str, Any]] = {
    "object": {"batch_size": 4, "steps": 400, "optimizer": {"learning_rate": 1e-4}},
    "face": {
        "batch_size": 2,
        "steps": 1200,
        "optimizer": {"learning_rate": 1e-4},
        "prior": {"weight": 1.0},
        "method": {"train_text_encoder": True, "text_encoder_learning_rate": 5e-5},
    },
    "object XL": {"batch_size": 2, "steps": 800, "optimizer": {"learning_rate": 1e-4}},
    "face XL": {
        "batch_size": 2,
        "steps": 1200,
        "optimizer": {"learning_rate": 1e-4},
        "prior": {"weight": 1.0},
    },
    "toy": {
        "batch_size": 4,
        "steps": 300,
        "optimizer": {"learning_rate": 1e-3},
        "prior": PRESETS["toy"]["prior"],
        "method": {"train_text_encoder": True},
    },
}
"""Presets for LoRA: the photos of `PRESETS`, with the learning rate of diffusers' examples and of
most other programs (1e-4)."""

INVERSION_PRESETS: dict[str, dict[str, Any]] = {
    "textual inversion": {
        "batch_size": 4,
        "steps": 2000,
        "optimizer": {"learning_rate": 5e-4},
    },
    # The toy model knows few of the words in the templates.
    "toy": {
        "batch_size": 4,
        "steps": 300,
        "optimizer": {"learning_rate": 3e-3},
        "method": {"templates": "captions"},
    },
}
"""Presets for textual inversion; `PRESETS` are for DreamBooth."""

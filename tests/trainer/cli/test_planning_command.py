"""`python -m trainer plan`."""

from __future__ import annotations

import logging

from trainer.__main__ import main
from trainer.cli.planning_command import NOTE
from trainer.planning import plan


def test_the_table_of_a_file_is_shown(tiny_checkpoint, caplog, monkeypatch):
    monkeypatch.setattr(plan, "FULL_WIDTH", 32)
    caplog.set_level(logging.INFO)
    assert main(["plan", "--base", str(tiny_checkpoint)]) == 0
    assert caplog.messages[0] == (
        "| card (usable) | tiny.safetensors | + text encoder | + text encoder + class images | "
        "tiny.safetensors, LoRA |"
    )
    assert caplog.messages[2].startswith("| 4 GB (3.0 GB) | 0.0 GB: fp32, AdamW, b4 |")
    assert caplog.messages[-1] == NOTE


def test_given_settings_stay(tiny_checkpoint, caplog, monkeypatch):
    monkeypatch.setattr(plan, "FULL_WIDTH", 32)
    caplog.set_level(logging.INFO)
    flags = ["--optimizer", "Lion", "--batch-size", "3", "--gradient-checkpointing"]
    assert main(["plan", "--base", str(tiny_checkpoint), *flags]) == 0
    assert ": fp32, Lion, b3 recomputed |" in caplog.messages[2]

"""The page with the measurements, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

HEAD = """\
# Memory and speed on a GPU

`make gpu` (`python -m benchmarks.gpu`) writes this page. It needs an NVIDIA card and takes at most
8 minutes. First come the tests marked `gpu`, which compare the card's results with the CPU's, then
the figures, the most important first. When the time is up, the remaining stages are left out;
`--list` shows the stages, and `--stages` runs some of them. Each card has its own section, and
measuring a card again replaces its section. With `--reference FILE`, diffusers'
`train_dreambooth.py` is measured too.
"""
NOTHING = """
**No figures yet.** This program has not been run on a GPU. Until it has, this project claims
nothing about memory or speed on one. To make the figures, run `make gpu` on a machine with an
NVIDIA card.
"""
HOW = """
## How it is measured

The model has the shape of Stable Diffusion 1.5 and random weights, which take as much time and
memory as trained ones. Images are 512 x 512 pixels. The steps are those of the trainer's own
session, on latents that were encoded before. Each setting runs a few warm-up steps, then up to five
intervals of about half a second, with the device synchronized before and after each. "Steps/s" is
the median of the intervals, with the lowest and highest in brackets. "Photos/s" does not count
class images; there is one for each photo.

"Allocated" is the peak memory of tensors, including loading the model. "Reserved" is the memory
that PyTorch held for them: on a card with enough memory, more than it needs. A GB is 2^30 bytes, as
in a card's specification. Trained weights are fp32 in every precision, unless "24 bit" is among the
options. Convolutions may use TF32, and matrix products in fp32 do not: these are PyTorch's
defaults.

"Launches" are the kernels that a step starts, "syncs" how often it waits for the device, both as
PyTorch's profiler counts them. "Of peak" is the share of NVIDIA's figure for matrix products in
fp16 and bf16, for the operations of the U-Net.
"""
REFERENCE = (
    "With bf16, AdamW8bit and gradient checkpointing. Memory is the peak of allocated memory. "
    "The script encodes the photos at every step, ours once before the first."
)
MISSING = "–"
FACTS = {"card": "card", "memory": "its memory", "capability": "compute capability"}
"""The names of some facts on the page. Others keep their own."""
ALIGNED_LEFT = (
    "precision", "optimizer", "options", "training", "part", "test", "step", "model", "setting",
)  # fmt: skip


def to_text(cards: Mapping[str, Any]) -> str:
    """The page, from each card's facts and stages as `results.py` stores them."""
    if not cards:
        return HEAD + NOTHING
    sections = [_section(card["facts"], list(card["stages"].values())) for card in cards.values()]
    return "\n".join([HEAD + HOW, *sections])


def _section(facts: Mapping[str, str], stages: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({stage["date"] for stage in stages})
    measured = {"measured on": " and ".join(dates[:1] + dates[1:][-1:])} if dates else {}
    rows = [[FACTS.get(name, name), value] for name, value in {**facts, **measured}.items()]
    parts = [f"## {facts['card']}", _table(["", ""], rows)]
    for title, table in (
        ("Tests", _tests(_rows(stages, "tests"))),
        ("Training", _trainings(_rows(stages, "training"))),
        ("Memory goals", _goals(_rows(stages, "goal"))),
        ("Launches and syncs", _launches(_rows(stages, "launches"))),
        ("8-bit AdamW", _optimizers(_rows(stages, "optimizer"))),
        ("From photos to a file", _runs(_rows(stages, "run"))),
        ("Two GPUs", _processes(_rows(stages, "processes"))),
        ("diffusers' train_dreambooth.py", _references(stages)),
        ("What is missing", _missing(stages)),
    ):
        if table:
            parts += [f"### {title}", table]
    return "\n\n".join(parts) + "\n"


def _rows(stages: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [row for stage in stages if stage["kind"] == kind for row in stage["rows"]]


def _tests(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
        lines += [f"{counts}.", *(f"- {_escaped(test)}" for test in row["failed"])]
    return "\n".join(lines)


def _trainings(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["precision", "optimizer", "options", "training", "batch", "allocated", "reserved",
            "steps/s", "photos/s"]  # fmt: skip
    table = _table(head, [[*_settings(row), *_figures(row)] for row in rows])
    besides = [row["besides"] for row in rows if row.get("besides")]
    if not besides:
        return table
    top = f"In addition to PyTorch's reserved memory, up to {max(besides):.2f} GB were in use."
    return f"{table}\n\n{top}"


def _settings(row: Mapping[str, Any]) -> list[str]:
    options = {"gradient_checkpointing": "checkpointing", "channels_last": "channels last",
               "gradient_release": "gradient release"}  # fmt: skip
    chosen = [text for name, text in options.items() if row.get(name)]
    if row.get("weights", "fp32") != "fp32":
        chosen.append(row["weights"])
    if row.get("frozen_weights", "precision") != "precision":
        chosen.append(f"{row['frozen_weights']} base")
    return [row["precision"], row["optimizer"], ", ".join(chosen), row["trains"],
            str(row["batch_size"])]  # fmt: skip


def _figures(row: Mapping[str, Any]) -> list[str]:
    """Allocated and reserved memory, and steps and photos per second."""
    if "is_out_of_memory" in row or "error" in row:
        failed = "out of memory" if "is_out_of_memory" in row else "failed"
        return [failed, MISSING, MISSING, MISSING]
    rates = row["steps_per_second"]
    if not rates:
        return [_gb(row["allocated"]), _gb(row["reserved"]), MISSING, MISSING]
    median = statistics.median(rates)
    steps = f"{median:.2f} ({min(rates):.2f} to {max(rates):.2f})"
    return [_gb(row["allocated"]), _gb(row["reserved"]), steps,
            f"{median * row['batch_size']:.1f}"]  # fmt: skip


def _goals(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["training", "optimizer", "options", "goal", "allocated", "reserved", "steps/s",
            "of peak"]  # fmt: skip
    lines = []
    for row in rows:
        _, optimizer, options, trains, _ = _settings(row)
        share = row.get("share")
        lines.append([trains, optimizer, options, _gb(row["goal"]), *_figures(row)[:3],
                      MISSING if share is None else f"{share:.0%}"])  # fmt: skip
    return _table(head, lines)


def _launches(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["training", "optimizer", "options", "launches", "syncs"]
    lines = []
    for row in rows:
        _, optimizer, options, trains, _ = _settings(row)
        counts = [f"{row['launches']:.0f}", f"{row['syncs']:.1f}"] if "launches" in row else []
        lines.append([trains, optimizer, options, *(counts or ["failed", MISSING])])
    return _table(head, lines)


def _optimizers(rows: Sequence[Mapping[str, Any]]) -> str:
    """The milliseconds of an optimizer step on the weights of the U-Net."""
    lines = []
    for row in rows:
        text = "failed"
        if times := row.get("milliseconds"):
            text = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        lines.append([row["what"], text])
    return _table(["step", "milliseconds"], lines)


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
    texts = []
    for row in rows:
        parts = [[part, f"{seconds:.1f}"] for part, seconds in row["seconds"].items()]
        parts.append(["all", f"{sum(row['seconds'].values()):.1f}"])
        texts.append(
            f"{row['what']}, {row['steps']} steps, into a file of {_gb(row['file'])}. Peak "
            f"memory: {_gb(row['allocated'])} allocated, {_gb(row['reserved'])} reserved; the run "
            f"itself reports {_gb(row['reported'])}.\n\n{_table(['part', 'seconds'], parts)}"
        )
    return "\n\n".join(texts)


def _processes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Losses and weights are relative differences from the run on one GPU."""
    head = ["model", "setting", "losses differ by", "weights by", "s per step, one GPU", "two",
            "memory, one GPU", "each of two"]  # fmt: skip
    lines = [
        [row["model"], row["what"], f"{row['losses']:.1e}", f"{row['weights']:.1e}",
         f"{row['seconds']:.2f}", f"{row['seconds_together']:.2f}",
         _gb(row["megabytes"] / 1024), _gb(row["megabytes_together"] / 1024)]
        for row in rows
    ]  # fmt: skip
    return _table(head, lines)


def _references(stages: Sequence[Mapping[str, Any]]) -> str:
    """Each of the script's rows beside ours with the same settings, if there is one."""
    ours = {tuple(_settings(row)): row for row in _rows(stages, "training")}
    head = ["training", "batch", "its memory", "ours", "its steps/s", "ours", "ours/its"]
    lines = []
    for row in _rows(stages, "reference"):
        mine = ours.get(tuple(_settings(row)), {"error": ""})
        speeds = [_median(mine), _median(row)]
        ratio = f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else MISSING
        memory, my_memory = _figures(row), _figures(mine) if "trains" in mine else [MISSING] * 4
        lines.append([row["trains"], str(row["batch_size"]), memory[0], my_memory[0], memory[2],
                      my_memory[2], ratio])  # fmt: skip
    return f"{REFERENCE}\n\n{_table(head, lines)}" if lines else ""


def _median(row: Mapping[str, Any]) -> float:
    return statistics.median(row["steps_per_second"]) if row.get("steps_per_second") else 0.0


def _missing(stages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(_why(stage) for stage in stages if stage["status"] != "done")


def _why(stage: Mapping[str, Any]) -> str:
    text = f"- {stage['what']}: {stage['status']}"
    return text + (f" ({_escaped(stage['reason'])})" if stage["reason"] else "")


def _gb(amount: float | None) -> str:
    return MISSING if amount is None else f"{amount:.2f} GB"


def _escaped(text: str) -> str:
    """On one line, with Markdown's special characters escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or "" if there are no rows."""
    if not rows:
        return ""
    rules = ["---" if name in ALIGNED_LEFT or not name else "---:" for name in head]
    return "\n".join(_lines([head, rules, *rows]))


def _lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in rows)

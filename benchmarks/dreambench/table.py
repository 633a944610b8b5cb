"""The paper's numbers beside ours, as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .dataset import Subject
from .scores import Measures

COLUMNS = ("DINO", "CLIP-I", "CLIP-T", "PRES")
PHOTOS_COLUMNS = {"DINO": "DINO, photos", "CLIP-I": "CLIP-I, photos"}
"""The measures of the photos among themselves, by column."""
SUBJECT_COLUMNS = (*COLUMNS, "diversity")
NUM_SUBJECTS, NUM_PROMPTS, NUM_IMAGES = 30, 25, 4
"""The paper's numbers."""
PAPER: dict[str, Measures] = {
    "real images": {"DINO": 0.774, "CLIP-I": 0.885},
    "DreamBooth (Imagen)": {"DINO": 0.696, "CLIP-I": 0.812, "CLIP-T": 0.306},
    "DreamBooth (Stable Diffusion)": {"DINO": 0.668, "CLIP-I": 0.803, "CLIP-T": 0.305},
    "Textual Inversion (Stable Diffusion)": {"DINO": 0.569, "CLIP-I": 0.780, "CLIP-T": 0.255},
    "Imagen, 15 subjects, prior preservation": {
        "DINO": 0.684, "CLIP-I": 0.815, "CLIP-T": 0.308, "PRES": 0.493,
    },
    "Imagen, 15 subjects, without": {
        "DINO": 0.712, "CLIP-I": 0.828, "CLIP-T": 0.306, "PRES": 0.664,
    },
}  # fmt: skip
"""The paper's tables 1 and 3."""
MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Results:
    """The measurements of all subjects."""

    label: str
    """The name of our row."""
    subjects: Sequence[Subject]
    """The requested subjects."""
    measures: Mapping[str, Measures]
    """By subject, of those measured so far."""
    num_prompts: int
    num_images: int
    remarks: Sequence[str]
    """How the encoders differ from the paper's."""

    def means(self) -> Measures:
        """The mean of each measure over the subjects that have it."""
        names = dict.fromkeys(name for found in self.measures.values() for name in found)
        return {
            name: statistics.fmean(found[name] for found in self.measures.values() if name in found)
            for name in names
        }

    def departures(self) -> list[str]:
        """How this differs from the paper's protocol."""
        wanted = {
            "subjects": (len(self.measures), NUM_SUBJECTS),
            "prompts": (self.num_prompts, NUM_PROMPTS),
            "images per prompt": (self.num_images, NUM_IMAGES),
        }
        return [
            f"{what} {ours} instead of {papers}"
            for what, (ours, papers) in wanted.items()
            if ours != papers
        ]


def to_text(results: Results) -> str:
    """A Markdown table that is readable as plain text."""
    means = results.means()
    of_photos = {ours: means[name] for ours, name in PHOTOS_COLUMNS.items() if name in means}
    rows = [_row(f"paper: {name}", found, COLUMNS) for name, found in PAPER.items()]
    rows += [_row("ours: the photos among themselves", of_photos, COLUMNS)]
    rows += [_row(f"ours: {results.label}", means, COLUMNS)]
    by_subject = [
        _row(f"{subject.name} ({subject.class_name})", results.measures[subject.name],
             SUBJECT_COLUMNS)
        for subject in results.subjects
        if subject.name in results.measures
    ]  # fmt: skip
    by_subject.append(_row("mean", means, SUBJECT_COLUMNS))
    parts = [
        _aligned([["", *COLUMNS], *rows]),
        *_warnings(results),
        *results.remarks,
        "Lower is better for PRES, higher for the others. Our diversity is 1 minus the mean "
        "cosine of DINO over images of one prompt. The paper's DIV uses LPIPS and cannot be "
        "compared with it.",
        _aligned([["", *SUBJECT_COLUMNS], *by_subject]),
    ]
    return "\n\n".join(parts) + "\n"


def to_json(results: Results) -> dict[str, object]:
    """The same in full precision."""
    return {
        "label": results.label,
        "paper": PAPER,
        "ours": results.means(),
        "subjects": dict(results.measures),
        "departures": results.departures(),
        "unfinished": [s.name for s in results.subjects if s.name not in results.measures],
        "remarks": list(results.remarks),
    }


def _warnings(results: Results) -> list[str]:
    warnings = []
    if departures := results.departures():
        warnings.append(
            "**Not the paper's protocol**, so these numbers cannot be compared with the paper's: "
            f"{', '.join(departures)}."
        )
    if len(results.measures) < len(results.subjects):
        warnings.append(
            f"**Not finished**: {len(results.measures)} of {len(results.subjects)} requested "
            "subjects have been measured so far."
        )
    return warnings


def _row(label: str, found: Measures, columns: Sequence[str]) -> list[str]:
    return [label, *(f"{found[name]:.3f}" if name in found else MISSING for name in columns)]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns, the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])

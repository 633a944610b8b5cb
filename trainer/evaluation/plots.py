"""Pictures about a run: images laid out in a labelled grid, and the losses as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..observer import ScoreReport, StepReport
from . import best_step

GAP = 8
"""Pixels between images and around titles."""
FONT_SIZE = 14
MIN_WIDTH = 128
"""Smaller images are shown enlarged, so that titles above them stay legible."""
MIN_TITLE = 180
"""Pixels that the titles of rows may take at least before they are broken into lines."""


def grid(
    images: Sequence[np.ndarray],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    captions: Sequence[str] = (),
) -> Image.Image:
    """Images [H, W, 3] uint8 of one size, row by row, each column with its title above and each row
    with its title to the left, on white; if there are captions, each image's stands below it."""
    shapes = {image.shape for image in images}
    if len(images) != len(columns) * len(rows) or len(shapes) != 1:
        raise ValueError(
            f"A grid of {len(columns)} columns and {len(rows)} rows takes "
            f"{len(columns) * len(rows)} images of one size, got {len(images)} images of "
            f"{len(shapes)} sizes. Give every row one image for each column."
        )
    scale = -(-MIN_WIDTH // images[0].shape[1])
    height, width = (side * scale for side in images[0].shape[:2])
    above = [_wrap(title, width) for title in columns]
    left = [_wrap(title, max(width, MIN_TITLE)) for title in rows]
    below = [_wrap(caption, width) for caption in captions] or [""] * len(images)
    top = GAP + max(_text_size(title)[1] for title in above) + GAP
    start = GAP + max(_text_size(title)[0] for title in left) + GAP
    caption_height = max(_text_size(caption)[1] for caption in below)
    row_height = GAP + max([height + caption_height, *(_text_size(title)[1] for title in left)])
    size = (start + len(columns) * (width + GAP), top + len(rows) * row_height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(above):
        _write(draw, (start + column * (width + GAP), GAP), title)
    for row, title in enumerate(left):
        _write(draw, (GAP, top + row * row_height), title)
    for index, (array, caption) in enumerate(zip(images, below, strict=True)):
        row, column = divmod(index, len(columns))
        x, y = start + column * (width + GAP), top + row * row_height
        image = Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(image, (x, y))
        _write(draw, (x, y + height), caption)
    return sheet


def loss_curve(
    reports: Sequence[StepReport],
    scores: Sequence[ScoreReport] = (),
    *,
    show_learning_rates: bool = False,
) -> Image.Image:
    """The losses over at least one step: each value faint, their running mean on top. Below them,
    if there are scores, what was learned and kept, the best step and where overfitting begins."""
    figure = _figure(height=7.5 if scores else 4.5)
    panels: Any = figure.subplots(2 if scores else 1, sharex=True, squeeze=False)[:, 0]
    axes = panels[0]
    axes.set(xlabel="" if scores else "step", ylabel="loss")
    steps = [report.step for report in reports]
    curves = {"photos": [report.instance_loss for report in reports]}
    if reports[0].prior_loss is not None:
        curves["class images"] = [report.prior_loss or 0.0 for report in reports]
    for color, (label, losses) in zip(("C0", "C1"), curves.items(), strict=False):
        axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(losses), color=color, label=label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    if show_learning_rates:
        _add_learning_rates(axes, reports)
    if scores:
        _plot_scores(panels[1], scores)
    return _drawn(figure)


def _add_learning_rates(axes: Any, reports: Sequence[StepReport]) -> None:
    rates = axes.twinx()
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(scilimits=(0, 0))
    axes.set_zorder(rates.get_zorder() + 1)  # The losses and their legend stay in front.
    axes.patch.set_visible(False)
    steps = [report.step for report in reports]
    for part in reports[0].learning_rates:
        values = [report.learning_rates[part] for report in reports]
        rates.plot(steps, values, color="0.5", linestyle="--", linewidth=0.8)


def _plot_scores(axes: Any, scores: Sequence[ScoreReport]) -> None:
    curves: dict[str, list[Any]] = {
        "subject learned": [report.learned for report in scores],
        "prompts kept": [report.prompts_kept for report in scores],
        "class kept": [report.class_kept for report in scores],
        "balance": [report.balance for report in scores],
    }
    steps = [report.step for report in scores]
    for color, (label, values) in zip(("C0", "C2", "C1", "black"), curves.items(), strict=True):
        if values[0] is not None:  # what the judge can tell, it tells of all steps
            axes.plot(steps, values, color=color, marker=".", label=label)
    if top := best_step.best(scores):
        axes.axvline(top.step, color="black", linestyle=":", label=f"best step: {top.step}")
    if past := best_step.overfitting(scores):
        axes.axvspan(past.step, steps[-1], color="C3", alpha=0.12, label="overfitting")
    axes.set(xlabel="step", ylabel="between base model and photos", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    # Above: inside, any place may have curves.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, fontsize=8, frameon=False)


def score_chart(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Image.Image:
    """A bar for each measure of each titled row, from the top down, with its number at its end."""
    measures = list(dict.fromkeys(name for _, scores in rows for name in scores))
    figure = _figure(height=max(2.0, 0.6 + 0.25 * len(rows) * (len(measures) + 1)))
    axes = figure.add_subplot()
    for place, name in enumerate(measures):
        shown = [(y, scores[name]) for y, (_, scores) in enumerate(rows) if name in scores]
        heights = [y + (place + 0.5) / (len(measures) + 1) - 0.5 for y, _ in shown]
        bars = axes.barh(heights, [value for _, value in shown], 1 / (len(measures) + 1),
                         label=name, align="edge")  # fmt: skip
        axes.bar_label(bars, fmt=" %.3f", fontsize=8)
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return _drawn(figure)


def _figure(*, height: float) -> Any:
    """A figure of 800 pixels' width and so many hundreds of pixels' height."""
    # Imported here, so that ComfyUI's start does not pay for it. The objects themselves rather than
    # pyplot, whose figures belong to the process.
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), dpi=100, layout="constrained")


def _drawn(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Each value's mean with its neighbours, about a twentieth of all."""
    window = np.ones(2 * (len(values) // 40) + 1)
    # Fewer neighbours at the ends: their number is summed up in the same way.
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    means: np.ndarray = np.convolve(values, window, mode="same") / weights
    return means


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=FONT_SIZE)


def _wrap(title: str, width: int) -> str:
    """The title with its own lines broken so that they fit into `width` pixels, as far as its words
    allow."""
    lines: list[str] = []
    for line in title.splitlines():
        lines.append("")
        for word in line.split():
            longer = f"{lines[-1]} {word}".strip()
            if not lines[-1] or _text_size(longer)[0] <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    return "\n".join(lines)


def _text_size(text: str) -> tuple[int, int]:
    """Width and height in pixels."""
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=_font())
    return round(box[2]), round(box[3])


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    draw.multiline_text(place, text, fill="black", font=_font())

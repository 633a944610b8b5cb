"""Figures about a run: labelled grids of images, loss curves and bar charts of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..observer import ScoreReport, StepReport
from . import best_step

GAP = 8
"""Pixels between images and around titles."""
FONT_SIZE = 14
MIN_WIDTH = 128
"""Narrower images are enlarged, so that the titles above them stay legible."""
MIN_TITLE_WIDTH = 180
"""Row titles are not wrapped below this width, in pixels."""


def grid(
    images: Sequence[np.ndarray],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    captions: Sequence[str] = (),
) -> Image.Image:
    """Arrange images [H, W, 3] uint8 of one size row by row on white, with column titles above, row
    titles to the left and, if given, a caption below each image. Raises ValueError unless there is
    one image for each cell."""
    shapes = {image.shape for image in images}
    if len(images) != len(columns) * len(rows) or len(shapes) != 1:
        raise ValueError(
            f"A grid of {len(columns)} columns and {len(rows)} rows needs "
            f"{len(columns) * len(rows)} images of one size, got {len(images)} images of "
            f"{len(shapes)} sizes. Provide one image for each column of each row."
        )
    layout = _GridLayout.plan(images[0], columns, rows, captions)
    sheet = Image.new("RGB", layout.size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(layout.columns):
        _write(draw, (layout.x(column), GAP), title)
    for row, title in enumerate(layout.rows):
        _write(draw, (GAP, layout.y(row)), title)
    captions = layout.captions or [""] * len(images)
    for index, (array, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, len(columns))
        x, y = layout.x(column), layout.y(row)
        image = Image.fromarray(array).resize(layout.image_size, Image.Resampling.NEAREST)
        sheet.paste(image, (x, y))
        _write(draw, (x, y + layout.image_size[1]), caption)
    return sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class _GridLayout:
    """Texts of a grid, wrapped to fit, and the places of its parts in pixels."""

    image_size: tuple[int, int]
    """Width and height at which images are shown."""
    columns: Sequence[str]
    rows: Sequence[str]
    captions: Sequence[str]
    left: int
    """Left edge of the first column of images."""
    top: int
    """Top edge of the first row of images."""
    row_height: int

    @staticmethod
    def plan(
        image: np.ndarray, columns: Sequence[str], rows: Sequence[str], captions: Sequence[str]
    ) -> _GridLayout:
        scale = -(-MIN_WIDTH // image.shape[1])  # rounded up
        height, width = (side * scale for side in image.shape[:2])
        columns = [_wrap(title, width) for title in columns]
        rows = [_wrap(title, max(width, MIN_TITLE_WIDTH)) for title in rows]
        captions = [_wrap(caption, width) for caption in captions]
        return _GridLayout(
            image_size=(width, height),
            columns=columns,
            rows=rows,
            captions=captions,
            left=GAP + _max_width(rows) + GAP,
            top=GAP + _max_height(columns) + GAP,
            row_height=GAP + max(height + _max_height(captions), _max_height(rows)),
        )

    def x(self, column: int) -> int:
        """Left edge of a column of images."""
        return self.left + column * (self.image_size[0] + GAP)

    def y(self, row: int) -> int:
        """Top edge of a row of images."""
        return self.top + row * self.row_height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole grid."""
        return self.x(len(self.columns)), self.y(len(self.rows))


def loss_curve(
    reports: Sequence[StepReport],
    scores: Sequence[ScoreReport] = (),
    *,
    show_learning_rates: bool = False,
) -> Image.Image:
    """Plot the losses of one or more steps: single values faint, their running mean on top. If
    there are scores, a second panel shows them with the best step and where overfitting begins."""
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
    return _render(figure)


def _add_learning_rates(axes: Any, reports: Sequence[StepReport]) -> None:
    rates = axes.twinx()
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(scilimits=(0, 0))
    axes.set_zorder(rates.get_zorder() + 1)  # keeps the losses and their legend in front
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
        if values[0] is not None:  # a score is available for all steps or for none
            axes.plot(steps, values, color=color, marker=".", label=label)
    if top := best_step.best(scores):
        axes.axvline(top.step, color="black", linestyle=":", label=f"best step: {top.step}")
    if past := best_step.overfitting(scores):
        axes.axvspan(past.step, steps[-1], color="C3", alpha=0.12, label="overfitting")
    axes.set(xlabel="step", ylabel="share (0 to 1)", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    # Above the plot, because inside it would cover curves.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, fontsize=8, frameon=False)


def score_chart(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Image.Image:
    """Bar chart of titled scores, from top to bottom, with each bar's value at its end."""
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
    return _render(figure)


def _figure(*, height: float) -> Any:
    """A figure 800 pixels wide; `height` is in hundreds of pixels."""
    # Imported here to keep ComfyUI's start-up fast. Without pyplot, which keeps global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), dpi=100, layout="constrained")


def _render(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def running_mean(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and its neighbours, over a window of about 5 % of all values."""
    window = np.ones(2 * (len(values) // 40) + 1)
    # At the ends the window holds fewer values.
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    means: np.ndarray = np.convolve(values, window, mode="same") / weights
    return means


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=FONT_SIZE)


def _wrap(text: str, width: int) -> str:
    """Break the lines of a text between words so that they fit into `width` pixels, if possible."""
    lines: list[str] = []
    for line in text.splitlines():
        lines.append("")
        for word in line.split():
            longer = f"{lines[-1]} {word}".strip()
            if not lines[-1] or _text_size(longer)[0] <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    return "\n".join(lines)


def _text_size(text: str) -> tuple[int, int]:
    """Width and height of a text in pixels."""
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=_font())
    return round(box[2]), round(box[3])


def _max_width(texts: Sequence[str]) -> int:
    return max((_text_size(text)[0] for text in texts), default=0)


def _max_height(texts: Sequence[str]) -> int:
    return max((_text_size(text)[1] for text in texts), default=0)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    draw.multiline_text(place, text, fill="black", font=_font())

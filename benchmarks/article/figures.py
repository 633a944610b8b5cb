"""FIGURES: the numbers of an experiment as a chart, and its images as a labelled sheet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trainer.evaluation.plots import grid
from trainer.toy.world import BACKGROUNDS

from .experiments import (
    MEASURES,
    MODELS,
    RATES,
    SAMPLING_STEPS,
    SCHEDULERS,
    STEPS,
    Experiment,
    rate_name,
)
from .scores import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[int, Measures]]
"""The results of one experiment, by label and seed."""
Pictures = Mapping[str, Sequence[np.ndarray]]
"""The images of one seed, by label."""


def dots(experiment: Experiment, results: Results) -> Figure:
    """A panel for each measure: a dot for each seed and a bar at their mean."""
    labels, measures = list(experiment.points), experiment.measures
    figure = _figure(2.6 + 1.75 * len(measures), 0.9 + 0.42 * len(labels))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        for row, label in enumerate(labels):
            values = [found[measure] for found in results[label].values()]
            if values:
                mean = statistics.mean(values)
                panel.plot([mean, mean], [row - 0.3, row + 0.3], color="C0", linewidth=2.5)
                panel.plot(values, [row] * len(values), "o", color="C1", markersize=5, alpha=0.7)
        panel.set_title(_wrapped(MEASURES[measure].title), fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="x", labelsize=8)
        panel.locator_params(axis="x", nbins=4)
        if MEASURES[measure].is_share:
            panel.set_xlim(-0.05, 1.05)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def heat_map(experiment: Experiment, results: Results) -> Figure:
    """Learning rate against steps: mean and standard deviation of three shares."""
    measures = ("balance", "subject", "class kept")
    figure = _figure(12, 3.6)
    panels = figure.subplots(1, len(measures), sharey=True)
    for panel, measure in zip(panels, measures, strict=True):
        cells = [
            [
                [found[measure] for found in results[f"{rate_name(rate)}, {steps} steps"].values()]
                for steps in STEPS
            ]
            for rate in RATES
        ]
        means = [[statistics.mean(cell) if cell else np.nan for cell in row] for row in cells]
        shown = panel.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, column in np.ndindex(len(RATES), len(STEPS)):
            _annotate(panel, row, column, cells[row][column])
        panel.set_title(MEASURES[measure].title)
        panel.set_xticks(range(len(STEPS)), STEPS)
        panel.set_xlabel("steps")
    panels[0].set_yticks(range(len(RATES)), [rate_name(rate) for rate in RATES])
    panels[0].set_ylabel("learning rate")
    figure.colorbar(shown, ax=list(panels))
    return figure


def _annotate(panel: Axes, row: int, column: int, values: Sequence[float]) -> None:
    if not values:
        return
    text = f"{statistics.mean(values):.2f}"
    if len(values) > 1:
        text += f"\n± {statistics.stdev(values):.2f}"
    color = "black" if statistics.mean(values) > 0.6 else "white"
    panel.text(column, row, text, ha="center", va="center", color=color, fontsize=9)


def schedulers(experiment: Experiment, results: Results) -> Figure:
    """Noise and likeness against inference steps: the mean, and the seeds' range as a band."""
    figure = _figure(13, 5.6)
    panels = figure.subplots(2, len(MODELS), sharex=True, sharey="row")
    for row, measure in zip(panels, ("noise", "likeness"), strict=True):
        for panel, model in zip(row, MODELS, strict=True):
            for scheduler in SCHEDULERS:
                _curve(panel, scheduler, {
                    steps: [
                        found[measure]
                        for found in results[f"{model}, {scheduler}, {steps} steps"].values()
                    ]
                    for steps in SAMPLING_STEPS
                })  # fmt: skip
            panel.set_xscale("log")
            panel.set_xticks(SAMPLING_STEPS, SAMPLING_STEPS)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        row[0].set_ylabel(MEASURES[measure].title)
    for panel, model in zip(panels[0], MODELS, strict=True):
        panel.set_title(f"{model} model")
    for panel in panels[1]:
        panel.set_xlabel("inference steps")
    panels[0][0].legend()
    return figure


def _curve(panel: Axes, label: str, values: Mapping[int, Sequence[float]]) -> None:
    steps = [number for number in values if values[number]]
    if steps:
        (line,) = panel.plot(
            steps, [statistics.mean(values[s]) for s in steps], "o-", label=label, markersize=4
        )
        lowest, highest = ([end(values[s]) for s in steps] for end in (min, max))
        panel.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.15)


FIGURES: dict[str, Callable[[Experiment, Results], Figure]] = {
    "dots": dots,
    "heat map": heat_map,
    "schedulers": schedulers,
}


def sheet(experiment: Experiment, pictures: Pictures) -> Image.Image:
    """The images of one seed, so that the models of an experiment can be compared by eye."""
    return _SHEETS[experiment.figure](pictures)


def _models_by_prompts(pictures: Pictures) -> Image.Image:
    columns = ["the subject", *BACKGROUNDS.values(), *["the class"] * 4]
    images = [image for row in pictures.values() for image in row]
    return grid(images, columns=columns, rows=[label.replace(", ", ",\n") for label in pictures])


def _rates_by_steps(pictures: Pictures) -> Image.Image:
    """For each model, one image of the subject at night and one of the class."""
    night, of_class = 1 + list(BACKGROUNDS).index("night"), 1 + len(BACKGROUNDS)
    images = [
        pictures[f"{rate_name(rate)}, {steps} steps"][index]
        for rate in RATES
        for index in (night, of_class)
        for steps in STEPS
    ]
    columns = [
        f"{what}, {steps} steps" for what in ("subject at night", "class") for steps in STEPS
    ]
    return grid(images, columns=columns, rows=[rate_name(rate) for rate in RATES])


def _schedulers_by_steps(pictures: Pictures) -> Image.Image:
    rows = [(model, scheduler) for model in MODELS for scheduler in SCHEDULERS]
    images = [
        pictures[f"{model}, {scheduler}, {steps} steps"][index]
        for model, scheduler in rows
        for index in (0, 1)
        for steps in SAMPLING_STEPS
    ]
    columns = [
        f"{what}{steps} steps" for what in ("", "on the beach, ") for steps in SAMPLING_STEPS
    ]
    return grid(images, columns=columns, rows=[f"{model},\n{name}" for model, name in rows])


_SHEETS: dict[str, Callable[[Pictures], Image.Image]] = {
    "dots": _models_by_prompts,
    "heat map": _rates_by_steps,
    "schedulers": _schedulers_by_steps,
}


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, whose figures are global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _wrapped(title: str) -> str:
    """The title on two lines if it is long."""
    return title if len(title) <= 16 else title.replace(", ", ",\n").replace(" of ", "\nof ")

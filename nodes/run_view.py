"""What the panel on a training node shows of a run. Independent of ComfyUI.

`web/view.js` declares the same keys; a test compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from ..trainer.evaluation import best_step
from ..trainer.observer import ScoreReport, StepReport
from .node_view import NodeView

EVENT = "dreambooth.live"
"""The websocket message with the changes of a view, sent to all pages."""
UI_KEY = "dreambooth"
"""The key of the node's `ui` output that contains the whole view."""
LIVE_ROUTE = "/dreambooth/live"
PREVIEW_ROUTE, SAVE_ROUTE = "/dreambooth/preview", "/dreambooth/save"
MAX_POINTS = 400
"""Points of the curves: more could not be told apart on a node."""
SMOOTHING = 20
"""The losses are averaged over about this part of the run: a twentieth."""
DIGITS = 5

State = Literal["preparing", "training", "finished", "found", "stopped", "failed"]
"""found: an earlier run was finished already, and its result is reused."""
Point = tuple[int, float, "float | None"]
"""A step and its smoothed losses of photos and class images, None without class images."""


class Score(TypedDict):
    """Shares from 0 to 1, None if not scored."""

    step: int
    learned: float
    prompts_kept: float | None
    class_kept: float | None


class Preview(TypedDict):
    """The previews of one step; 0 is the base model."""

    step: int
    stamp: int
    """When they were drawn, so that browsers do not show older ones of the same name."""
    prompts: list[str]
    files: list[str]
    """Names in `View.folder`."""


class View(TypedDict):
    """Everything that the panel shows of one run."""

    node: str
    """The node's id; in a subgraph it begins with the ids of the nodes around it, as in "10:3"."""
    prompt: str
    """ComfyUI's id of the queued workflow."""
    workflow: str | None
    """The id in the workflow's file. None: it was queued without one."""
    version: int
    """Counts the changes that were sent."""
    run: str | None
    """The name of the run's folder. None: not known yet."""
    folder: str
    """The folder of the previews below ComfyUI's output folder."""
    state: State
    activity: str
    """What is being done besides training steps, such as "Encoding photos 3/6"."""
    step: int
    total: int
    seconds_left: float | None
    steps_per_second: float | None
    megabytes_taken: float | None
    megabytes_free: float | None
    points: list[Point]
    scores: list[Score]
    best: int | None
    """The step with the best scores."""
    overfitting: int | None
    """The step from which on the run overfits."""
    can_preview: bool
    """Whether there are prompts to draw previews of."""
    previews: list[Preview]
    """By step, the base model's first."""
    file: str | None
    """The name of the newest written file in ComfyUI's menus."""
    lines: list[str]
    """The latest warnings and notes."""
    message: str
    """Why the run ended early or failed, and what to do."""


class LossCurve:
    """Smoothed losses, thinned to at most `MAX_POINTS`."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.every = 1
        """Steps between points."""
        self._means: dict[str, float] = {}

    def add(self, report: StepReport) -> None:
        photos = self._smooth("photos", report.instance_loss, report)
        prior = report.prior_loss
        of_class = None if prior is None else self._smooth("class", prior, report)
        is_last = report.step == report.total_steps
        if report.step % self.every and not is_last:
            return
        self.points.append((report.step, photos, of_class))
        if len(self.points) > MAX_POINTS:
            self.every *= 2
            self.points = [p for p in self.points if p[0] % self.every == 0 or is_last]

    def _smooth(self, name: str, loss: float, report: StepReport) -> float:
        """The exponential moving average, which is a plain mean for the first steps."""
        window = max(1, report.total_steps // SMOOTHING)
        share = 1 / min(report.step, window)
        mean = self._means.get(name, loss)
        self._means[name] = mean + share * (loss - mean)
        return round(self._means[name], DIGITS)


class RunView(NodeView):
    """The values of a `View`."""

    def __init__(self, node: str, prompt: str, workflow: str | None) -> None:
        self._curve = LossCurve()
        self._sent: Mapping[str, Any] = {}
        self._sent_points = (0, 0)
        values = View(
            node=node, prompt=prompt, workflow=workflow, version=0, run=None, folder="",
            state="preparing", activity="", step=0, total=0, seconds_left=None,
            steps_per_second=None, megabytes_taken=None, megabytes_free=None, points=[],
            scores=[], best=None, overfitting=None, can_preview=False, previews=[], file=None,
            lines=[], message="",
        )  # fmt: skip
        super().__init__(values)

    def add_reports(self, reports: Sequence[StepReport]) -> None:
        with self._lock:
            for report in reports:
                self._curve.add(report)
            if reports:
                self._values["step"] = reports[-1].step
                self._values["total"] = reports[-1].total_steps

    def set_scores(self, scores: Sequence[ScoreReport]) -> None:
        """Replace all scores."""
        best, overfitting = best_step.best(scores), best_step.overfitting(scores)
        self.update(
            scores=[_score(report) for report in scores],
            best=best.step if best else None,
            overfitting=overfitting.step if overfitting else None,
        )

    def add_preview(self, preview: Preview) -> None:
        """Add the previews of a step, in place of earlier ones."""
        with self._lock:
            others = [each for each in self._values["previews"] if each["step"] != preview["step"]]
            self._values["previews"] = sorted([*others, preview], key=lambda each: each["step"])

    def whole(self) -> View:
        with self._lock:
            values = {**self._values, "points": list(self._curve.points)}
            return View(**values)  # type: ignore[typeddict-item]

    def changes(self) -> dict[str, Any]:
        """What has changed since the last call, and the keys that identify the view. `new_points`
        are to be appended; `points` replaces all."""
        with self._lock:
            self._values["version"] += 1
            values = {key: value for key, value in self._values.items() if key != "points"}
            changed = {k: v for k, v in values.items() if k not in self._sent or self._sent[k] != v}
            changed |= {key: values[key] for key in ("node", "prompt", "workflow")}
            self._sent = values
            return changed | self._changed_points()

    def _changed_points(self) -> dict[str, Any]:
        every, count = self._sent_points
        points = list(self._curve.points)
        self._sent_points = self._curve.every, len(points)
        if every != self._curve.every:
            return {"points": points}
        return {"new_points": points[count:]} if points[count:] else {}


def _score(report: ScoreReport) -> Score:
    def rounded(share: float | None) -> float | None:
        return None if share is None else round(share, DIGITS)

    return Score(
        step=report.step,
        learned=round(report.learned, DIGITS),
        prompts_kept=rounded(report.prompts_kept),
        class_kept=rounded(report.class_kept),
    )

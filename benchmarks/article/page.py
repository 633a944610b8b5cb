"""Writes docs/experiments.md with claims, verdicts, tables and figures, from the scores alone."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.storage.versions import versions

from .experiments import EXPERIMENTS, MEASURES, Comparison, Experiment
from .figures import FIGURES, Results, sheet
from .scores import NUM_CLASS_IMAGES, NUM_UNSEEN, PREFIXES, SAMPLING, Measures, Point, ScoreBook
from .verdicts import OPEN, SEEDS_NEEDED, Finding, compare, spread, summary

PAGE, PICTURES = "experiments.md", "experiments"
NOT_RUN = "Not run yet."


def write_page(
    docs: Path,
    book: ScoreBook,
    seeds: Sequence[int],
    letters: Collection[str] = EXPERIMENTS,
    *,
    is_quick: bool,
) -> None:
    """Write the page and its images into the folder `docs`. An experiment that is not one of
    `letters`, or that the book has no scores of, keeps what the page says of it, and its images."""
    scores, before = book.read(), Page.read(docs / PAGE)
    measured: list[str] = []

    def results_of(points: Mapping[str, Point]) -> Results:
        return {
            label: {
                seed: scores[key]
                for seed in seeds
                if (key := point.key(seed, is_quick=is_quick)) in scores
            }
            for label, point in points.items()
        }

    (docs / PICTURES).mkdir(parents=True, exist_ok=True)
    rows, sections = [], []
    for letter, experiment in EXPERIMENTS.items():
        results = results_of(experiment.points)
        is_meant = letter in letters and any(results.values())
        if not is_meant and letter in before.sections:
            rows.append(before.rows[letter])
            sections.append(before.sections[letter])
            continue
        measured.append(letter)
        findings = [_find(comparison, experiment, results) for comparison in experiment.comparisons]
        verdict = summary([finding.verdict for finding in findings])
        rows.append(_overview(letter, experiment, verdict, _progress(results, len(seeds))))
        sections.append(_section(letter, experiment, results, findings))
        if experiment.afterwards and any(results.values()):
            sections[-1] += _seen_afterwards(experiment, results)
        if any(results.values()):
            FIGURES[experiment.figure](experiment, results).savefig(
                docs / PICTURES / f"{letter}.png"
            )
        seed = _seed_of_all(results, seeds)
        if seed is not None:
            keys = {
                label: point.key(seed, is_quick=is_quick)
                for label, point in experiment.points.items()
            }
            pictures = {label: book.picture(key) for label, key in keys.items()}
            file = docs / PICTURES / f"{letter}_pictures.png"
            sheet(experiment, pictures).save(file, optimize=True)
            sections[-1] += f"\n![Images of seed {seed}]({PICTURES}/{file.name})\n"
    wanted = {
        point.key(seed, is_quick=is_quick)
        for letter in measured
        for point in EXPERIMENTS[letter].points.values()
        for seed in seeds
    }
    found = [measures for key, measures in scores.items() if key in wanted]
    unfinished = "" if len(found) == len(wanted) else _UNFINISHED.format(len(found), len(wanted))
    has_kept = len(measured) < len(EXPERIMENTS)
    newest = _took(found, measured if has_kept else ())
    same = newest.partition(" took ")[0] + " took "
    took = [*(line for line in before.took if has_kept and not line.startswith(same)), newest]
    text = "\n".join([_INTRODUCTION, *rows, unfinished, _method(), *took, *sections])
    (docs / PAGE).write_text(text, "utf-8")


@dataclass(frozen=True)
class Page:
    """What a page says already."""

    rows: Mapping[str, str]
    """Of the overview, by experiment."""
    sections: Mapping[str, str]
    """Those with results, by experiment."""
    took: Sequence[str]
    """How long the experiments took."""

    @staticmethod
    def read(path: Path) -> Page:
        text = path.read_text("utf-8") if path.exists() else ""
        parts = re.split(r"^(?=## \w\. )", text, flags=re.MULTILINE)[1:]
        return Page(
            rows={row[3]: row for row in text.splitlines() if row.startswith("| [")},
            sections={part[3]: part.rstrip("\n") + "\n" for part in parts if NOT_RUN not in part},
            took=re.findall(r"^Training.* took .*\n", text, flags=re.MULTILINE),
        )


def _seed_of_all(results: Results, seeds: Sequence[int]) -> int | None:
    """The first seed with which every model has been measured."""
    return next((seed for seed in seeds if all(seed in found for found in results.values())), None)


def _find(comparison: Comparison, experiment: Experiment, results: Results) -> Finding:
    labels = {point: label for label, point in experiment.points.items()}
    groups = [
        [
            {seed: found[comparison.measure] for seed, found in results[labels[point]].items()}
            for point in group
        ]
        for group in (comparison.more, comparison.less)
    ]
    return compare(
        *groups,
        expected=comparison.expected,
        resolution=MEASURES[comparison.measure].resolution,
        join=comparison.join,
    )


def _progress(results: Results, num_seeds: int) -> str:
    """How many of the measurements exist."""
    done, wanted = sum(map(len, results.values())), len(results) * num_seeds
    return "all" if done == wanted else f"{done} of {wanted}"


def _overview(letter: str, experiment: Experiment, verdict: str, progress: str) -> str:
    link = f"[{letter}. {experiment.title}](#{_anchor(letter, experiment)})"
    return f"| {link} | {verdict.lower()} | {progress} |"


def _anchor(letter: str, experiment: Experiment) -> str:
    """The anchor that GitHub makes of a heading."""
    words = f"{letter}. {experiment.title}".lower()
    kept = "".join(c for c in words if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _section(
    letter: str, experiment: Experiment, results: Results, findings: Sequence[Finding]
) -> str:
    lines = [
        f"## {letter}. {experiment.title}",
        "",
        f"{experiment.source}: {experiment.claim}",
        "",
        f"Here: {experiment.setting}",
        "",
        f"**{_sentence(experiment, findings)}**",
        "",
        *([experiment.remark, ""] if experiment.remark else []),
    ]
    if not any(results.values()):
        return "\n".join([*lines, NOT_RUN, ""])
    lines += [
        "| part of the claim | measure | difference | bar | seeds | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for comparison, finding in zip(experiment.comparisons, findings, strict=True):
        lines.append(_comparison_row(comparison, finding))
    titles = [MEASURES[name].title for name in experiment.measures]
    lines += [
        "",
        "| " + " | ".join(["", *titles, "seeds"]) + " |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for label, found in results.items():
        cells = [
            spread([measures[name] for measures in found.values()], MEASURES[name].digits)
            for name in experiment.measures
        ]
        lines.append("| " + " | ".join([label, *cells, str(len(found))]) + " |")
    return "\n".join([*lines, "", f"![{experiment.title}]({PICTURES}/{letter}.png)", ""])


def _seen_afterwards(experiment: Experiment, results: Results) -> str:
    lines = [
        "",
        "These comparisons were chosen after the results were known, so they show how large "
        "effects are, but do not test the claim:",
        "",
        "| difference | measure | size | bar | seeds | beyond the bar |",
        "|---|---|---|---|---|---|",
    ]
    for comparison in experiment.afterwards:
        finding = _find(comparison, experiment, results)
        words = {"shown": "yes", "not shown": "no", "the opposite": "the opposite"}
        verdict = words.get(finding.verdict, finding.verdict)
        lines.append(_comparison_row(comparison, replace(finding, verdict=verdict)))
    return "\n".join([*lines, ""])


def _sentence(experiment: Experiment, findings: Sequence[Finding]) -> str:
    verdicts = [finding.verdict for finding in findings]
    parts = [
        f"{comparison.part} ({verdict})"
        for comparison, verdict in zip(experiment.comparisons, verdicts, strict=True)
        if verdict not in OPEN
    ]
    return ": ".join([summary(verdicts), *(["; ".join(parts)] if parts else [])]) + "."


def _comparison_row(comparison: Comparison, finding: Finding) -> str:
    measure = MEASURES[comparison.measure]
    numbers = ["–", "–"]
    if finding.num_seeds >= 2:
        numbers = [f"{finding.difference:+.{measure.digits}f}", f"{finding.bar:.{measure.digits}f}"]
    verdict = finding.verdict
    cells = [comparison.part, measure.title, *numbers, str(finding.num_seeds), verdict]
    return "| " + " | ".join(cells) + " |"


_INTRODUCTION = f"""# The source article's findings, repeated

“Training Stable Diffusion with DreamBooth using Diffusers” (Hugging Face, November 2022) explains
how to fine-tune Stable Diffusion on a subject. Its claims are repeated here on the
[included model](toy-model.md), which is small enough to train every setting with several seeds.
What holds for this model need not hold for Stable Diffusion, and the reverse.

`make experiments` runs what is missing, and writes this page. Which differences would show a claim
was decided before the first run. A difference counts if it exceeds the bar: twice the standard
deviation over the seeds, of the group that varies more, and at least the difference that one image
makes. “Shown” needs {SEEDS_NEEDED} seeds. A claim that two things are the same is shown if the
difference is below the bar, which is a weak statement with few seeds.

| experiment | verdict | measured |
|---|---|---|"""


def _method() -> str:
    return f"""## How it is measured

Every model generates {len(PREFIXES) * 6} images of the subject ({len(PREFIXES)} prefixes of the
prompt, each without surroundings and in five surroundings) and {NUM_CLASS_IMAGES} of “a photo of a
cup”, with {SAMPLING.scheduler}, {SAMPLING.steps} steps and guidance {SAMPLING.guidance_scale:g},
always from the same noise. A classifier, which was trained on drawings and not on the model's
images, says what they show.

- **subject shown**: share of the subject's images that show exactly this cup. A linear classifier
  on the toy encoder's features, also trained on drawings, recognises the subtle cup: 99 of 100 new
  drawings of it, 55 of 60 that went through the VAE, and by mistake 3 of 160 cups with one or two
  other traits.
- **surroundings right**: share of the images with surroundings in the prompt that show them;
  **both**: share that also show the subject.
- **class kept**: share of the images of “a cup” that show a cup, and not the subject.
- **coloured cups kept**: share of the images of “a red cup” and so on that show a cup of that
  colour, and not the subject.
- **balance**: harmonic mean of subject shown, surroundings right and class kept.
- **likeness**: mean cosine of the toy encoder's features between the subject's images and drawings
  of it that were not trained on.
- **diversity of the class**: 1 minus the mean cosine of those features over all pairs of “a cup”.
- **noise**: standard deviation of the noise in an image, in levels of 255 (with Immerkær's mask;
  slanted outlines add a little to it, in all images alike).
- **loss**: mean squared error of the predicted noise at ten timesteps, on {NUM_UNSEEN} drawings of
  the subject that were not trained on, on the photos themselves, and on other cups with the class
  prompt.

The tables show the mean, and the lowest and highest value of the seeds in brackets.
"""


_UNFINISHED = """
**Not finished: {} of {} measurements exist so far.** A dash marks the others below, and fewer than
three seeds are not evaluated.
"""


def _took(found: Sequence[Measures], letters: Sequence[str]) -> str:
    """`letters`: the experiments that are meant, if not all."""
    minutes = [
        sum(measures[name] for measures in found) / 60
        for name in ("training_seconds", "scoring_seconds")
    ]
    what = f"Training for {', '.join(letters)}" if letters else "Training"
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"{what} took {minutes[0]:.0f} minutes on one core ({_processor()}), sampling and "
        f"scoring {minutes[1]:.0f}. Versions: {packages}.\n"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

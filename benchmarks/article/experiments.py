"""EXPERIMENTS: for each claim of the article, the models to train, what to measure, and which
differences would show the claim. They were decided before the first run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .recipes import INVERSION_STEPS, PLACEHOLDER, Recipe
from .scores import NUM_CLASS_IMAGES, PREFIXES, Drawing, Point
from .subjects import CUP_IN_ONE_ROOM, SUBTLE_CUP
from .verdicts import Expectation


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How tables and verdicts treat one of the scores."""

    title: str
    digits: int
    resolution: float = 0.0
    """The smallest difference that one image makes."""

    @property
    def is_share(self) -> bool:
        return self.resolution > 0


MEASURES: dict[str, Measure] = {
    "subject": Measure(title="subject shown", digits=2, resolution=1 / 24),
    "background": Measure(title="surroundings right", digits=2, resolution=1 / 20),
    "followed": Measure(title="both", digits=2, resolution=1 / 20),
    "class kept": Measure(title="class kept", digits=2, resolution=1 / NUM_CLASS_IMAGES),
    "colored cups kept": Measure(title="coloured cups kept", digits=2, resolution=1 / 24),
    "recolored": Measure(title="colour right", digits=2, resolution=1 / 24),
    "balance": Measure(title="balance", digits=2, resolution=1 / 24),
    "likeness": Measure(title="likeness", digits=3),
    "class diversity": Measure(title="diversity of the class", digits=3),
    "noise": Measure(title="noise", digits=2),
    "loss, unseen": Measure(title="loss, unseen drawings", digits=4),
    "loss, photos": Measure(title="loss, photos", digits=4),
    "loss, other cups": Measure(title="loss, other cups", digits=4),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One part of a claim: a measure that should be higher in one group than in the other, the same
    in both, or no lower. The models of a group are joined by seed, usually into their mean."""

    part: str
    measure: str
    more: Sequence[Point]
    less: Sequence[Point]
    expected: Expectation = "more"
    join: Callable[[Sequence[float]], float] = statistics.mean


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One claim of the article, repeated."""

    title: str
    claim: str
    """In one sentence."""
    setting: str
    """What is done here, and how it differs from the article."""
    points: dict[str, Point]
    """By label."""
    measures: Sequence[str]
    comparisons: Sequence[Comparison]
    afterwards: Sequence[Comparison] = ()
    """Comparisons that were chosen after the results were known. They show how large an effect is,
    but test nothing."""
    figure: str = "dots"
    """The kind of figure, by its name in `figures.FIGURES`."""
    source: str = "The article"
    """Who makes the claim."""
    remark: str = ""
    """What the results show, and why the included model could not show more."""


PRESET = Recipe()
NO_CLASS_IMAGES = replace(PRESET, class_images=0)
UNET_ONLY = replace(PRESET, text_encoder=False)
UNET_ONLY_PLAIN = replace(UNET_ONLY, class_images=0)
SUBTLE = replace(PRESET, subject=SUBTLE_CUP)

# ------------------------------------------------------------- a, b, c: the settings that matter

RATES = (8e-5, 2e-4, 5e-4, 1.25e-3)
STEPS = (50, 100, 200, 400)


def rate_name(rate: float) -> str:
    """The learning rate in the usual notation: 1.25e-3."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _plain(rate: float = 2e-4, steps: int = 300) -> Recipe:
    """The article's runs of objects: the U-Net only, without class images."""
    return Recipe(
        learning_rate=rate, steps=steps, of=max(STEPS), class_images=0, text_encoder=False
    )


def _sweet_spot() -> Experiment:
    points = {(r, s): Point(recipe=_plain(r, s)) for r in RATES for s in STEPS}
    low, high = ([points[r, s] for r in rates for s in STEPS] for rates in (RATES[:2], RATES[2:]))
    return Experiment(
        title="Learning rate against steps",
        claim="The learning rate and the number of steps have a sweet spot: a low rate with more "
        "steps gives the better result. Too much of either gives the photos whatever the prompt, "
        "and too little does not give the subject.",
        setting="U-Net only, no class images, as in the article's runs of objects. Each rate is "
        "2.5 times the one before, like the article's two. The included model is smaller than "
        "Stable Diffusion and needs rates about a hundred times larger.",
        points={f"{rate_name(r)}, {s} steps": point for (r, s), point in points.items()},
        measures=("subject", "background", "class kept", "class diversity", "balance", "noise",
                  "loss, unseen"),
        comparisons=[
            Comparison(
                part="the best balance of the two lower rates is above that of the two higher",
                measure="balance", more=low, less=high, join=max,
            ),
            Comparison(
                part="at the highest rate, 50 steps keep more of the class than 400",
                measure="class kept", more=[points[RATES[3], 50]], less=[points[RATES[3], 400]],
            ),
            Comparison(
                part="at 2e-4, 50 steps keep more of the class than 400",
                measure="class kept", more=[points[2e-4, 50]], less=[points[2e-4, 400]],
            ),
            Comparison(
                part="at the lowest rate, 400 steps show more of the subject than 50",
                measure="subject", more=[points[RATES[0], 400]], less=[points[RATES[0], 50]],
            ),
            Comparison(
                part="400 steps are noisier at the highest rate than at the lowest",
                measure="noise", more=[points[RATES[3], 400]], less=[points[RATES[0], 400]],
            ),
        ],
        afterwards=[
            Comparison(
                part="the best balance of the three lower rates is above that of the highest",
                measure="balance", more=[*low, *high[:4]], less=high[4:], join=max,
            ),
            Comparison(
                part="surroundings are right more often at 2e-4 than at the highest rate",
                measure="background", more=low[4:], less=high[4:],
            ),
            Comparison(
                part="after 400 steps the highest rate leaves more loss on unseen drawings than "
                "the lowest",
                measure="loss, unseen", more=high[7:], less=low[3:4],
            ),
            Comparison(
                part="at the lowest rate, 50 steps keep the class more diverse than 400",
                measure="class diversity", more=low[:1], less=low[3:4],
            ),
        ],
        figure="heat map",
        remark="What the results show: each of the three lower rates has a sweet spot, at fewer "
        "steps the higher the rate, and the best balance is the same for all three. At 1.25e-3 "
        "every prompt gives smeared cups with a band, in which the classifier no longer "
        "recognises the subject. “Class kept” is misleadingly high there; the share of right "
        "surroundings, the loss and the images tell more. Images become smoother rather than "
        "noisy.",
    )  # fmt: skip


def _faces() -> Experiment:
    points = {
        "striking cup, class images": Point(recipe=PRESET),
        "striking cup, none": Point(recipe=NO_CLASS_IMAGES),
        "subtle cup, class images": Point(recipe=SUBTLE),
        "subtle cup, none": Point(recipe=replace(SUBTLE, class_images=0)),
    }
    striking, striking_none, subtle, subtle_none = points.values()
    return Experiment(
        title="Objects against faces, with and without class images",
        claim="Faces are harder than objects, and prior preservation matters for faces while it "
        "makes little difference for other subjects.",
        setting="A face differs from others of its class only in detail. The subtle cup stands "
        "for it: blue, with white stripes and an orange handle, all of which other cups have "
        "too. The striking cup is unlike anything in the model's world. Learning rate, steps and "
        "text encoder (trained) are the same for both.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "loss, unseen",
                  "loss, other cups", "class diversity"),
        comparisons=[
            Comparison(
                part="for the subtle cup, class images keep more of the class",
                measure="class kept", more=[subtle], less=[subtle_none],
            ),
            Comparison(
                part="for the subtle cup, class images give a better balance",
                measure="balance", more=[subtle], less=[subtle_none],
            ),
            Comparison(
                part="for the striking cup, the balance is the same with and without",
                measure="balance", more=[striking], less=[striking_none], expected="same",
            ),
            Comparison(
                part="the striking cup is shown more often than the subtle one",
                measure="subject", more=[striking], less=[subtle],
            ),
        ],
        afterwards=[
            Comparison(
                part="for the striking cup, class images keep more of the class",
                measure="class kept", more=[striking], less=[striking_none],
            ),
            Comparison(
                part="for the striking cup, class images leave less loss on other cups",
                measure="loss, other cups", more=[striking_none], less=[striking],
            ),
            Comparison(
                part="for the subtle cup, class images leave less loss on other cups",
                measure="loss, other cups", more=[subtle_none], less=[subtle],
            ),
            Comparison(
                part="for the subtle cup, class images keep the class more diverse",
                measure="class diversity", more=[subtle], less=[subtle_none],
            ),
        ],
        remark="What the results show: class images matter for both cups, and most visibly for "
        "the striking cup, which replaces the whole class without them. This is the reverse of "
        "the claim. By the loss on other cups, the subtle cup changes the class as much: they "
        "all become pale and striped. But they do not have all of its traits, so the classifier "
        "still counts them as other cups, and “class kept” hardly falls.",
    )  # fmt: skip


def _prior() -> Experiment:
    def recipe(number: int, weight: float) -> Recipe:
        return replace(PRESET, class_images=number, prior_weight=weight)

    points = {
        "no class images": Point(recipe=NO_CLASS_IMAGES),
        "6 images, weight 0.3": Point(recipe=recipe(6, 0.3)),
        "6 images, weight 1": Point(recipe=recipe(6, 1.0)),
        "60 images, weight 0.3": Point(recipe=recipe(60, 0.3)),
        "60 images, weight 1": Point(recipe=PRESET),
    }
    none, few_light, few, many_light, many = points.values()
    return Experiment(
        title="Prior preservation, by the number of class images and their weight",
        claim="Training on other images of the class beside the photos preserves the class.",
        setting="The base model generates the class images. The striking cup, text encoder "
        "trained.",
        points=points,
        measures=("subject", "followed", "class kept", "class diversity", "loss, other cups",
                  "loss, unseen"),
        comparisons=[
            Comparison(
                part="60 class images of weight 1 keep more of the class than none",
                measure="class kept", more=[many], less=[none],
            ),
            Comparison(
                part="they keep it more diverse",
                measure="class diversity", more=[many], less=[none],
            ),
            Comparison(
                part="60 keep it more diverse than 6, over both weights",
                measure="class diversity", more=[many, many_light], less=[few, few_light],
            ),
            Comparison(
                part="weight 1 keeps more of the class than 0.3, over both numbers",
                measure="class kept", more=[many, few], less=[many_light, few_light],
            ),
        ],
        afterwards=[
            Comparison(
                part="6 class images keep more of the class than none, over both weights",
                measure="class kept", more=[few, few_light], less=[none],
            ),
            Comparison(
                part="60 leave less loss on other cups than 6, over both weights",
                measure="loss, other cups", more=[few, few_light], less=[many, many_light],
            ),
        ],
        remark="What the results show: six class images are enough to keep the subject out of "
        "the class. The effect of sixty shows in the loss on cups that were not trained on, and "
        "in images other than those six.",
    )  # fmt: skip


# ----------------------------------------------------------- d: what sampling can make good again

SCHEDULERS = ("DDIM", "PNDM", "LMSDiscrete")
SAMPLING_STEPS = (5, 10, 25, 50, 100)
WELL_TRAINED, OVERFITTED, RUINED = "well trained", "overfitted", "ruined"
MODELS = {WELL_TRAINED: PRESET, OVERFITTED: _plain(5e-4, 400), RUINED: _plain(1.25e-3, 400)}
FEW_STEPS = SAMPLING_STEPS[:2]


def _schedulers() -> Experiment:
    points = {
        (model, scheduler, steps): Point(
            recipe=recipe, drawing=Drawing(scheduler=scheduler, steps=steps)
        )
        for model, recipe in MODELS.items()
        for scheduler in SCHEDULERS
        for steps in SAMPLING_STEPS
    }

    def of(model: str, scheduler: str, *steps: int) -> list[Point]:
        return [points[model, scheduler, number] for number in steps or SAMPLING_STEPS]

    return Experiment(
        title="Schedulers and inference steps",
        claim="Noisy images are a sign of overfitting; then DDIM is better than PNDM and "
        "LMSDiscrete, and about 100 inference steps turn noise into detail.",
        setting="The well-trained model uses the toy preset; the overfitted one had 400 steps at "
        "5e-4 without class images. Each setting generates six images from the same starting "
        "noise. 5 steps are below the article's range, where differences should be largest. As "
        "neither model showed anything, a third was added, with 400 steps at 1.25e-3, which "
        "generates cups in the wrong places whatever the prompt.",
        points={f"{m}, {s}, {n} steps": point for (m, s, n), point in points.items()},
        measures=("noise", "subject", "likeness"),
        comparisons=[
            Comparison(
                part="the overfitted model's images are noisier (DDIM, all steps)",
                measure="noise", more=of(OVERFITTED, "DDIM"), less=of(WELL_TRAINED, "DDIM"),
            ),
            Comparison(
                part="overfitted, LMSDiscrete is noisier than DDIM (all steps)",
                measure="noise", more=of(OVERFITTED, "LMSDiscrete"), less=of(OVERFITTED, "DDIM"),
            ),
            Comparison(
                part="overfitted, PNDM is noisier than DDIM (all steps)",
                measure="noise", more=of(OVERFITTED, "PNDM"), less=of(OVERFITTED, "DDIM"),
            ),
            Comparison(
                part="overfitted, at only 5 steps LMSDiscrete is noisier than DDIM",
                measure="noise",
                more=of(OVERFITTED, "LMSDiscrete", 5), less=of(OVERFITTED, "DDIM", 5),
            ),
            Comparison(
                part="overfitted, DDIM is noisier at 10 steps than at 100",
                measure="noise",
                more=of(OVERFITTED, "DDIM", 10), less=of(OVERFITTED, "DDIM", 100),
            ),
            Comparison(
                part="overfitted, DDIM's likeness is above LMSDiscrete's (all steps)",
                measure="likeness", more=of(OVERFITTED, "DDIM"), less=of(OVERFITTED, "LMSDiscrete"),
            ),
        ],
        afterwards=[
            *(
                Comparison(
                    part=f"ruined, {other} is noisier than DDIM {when}",
                    measure="noise",
                    more=of(RUINED, other, *steps), less=of(RUINED, "DDIM", *steps),
                )
                for other in ("LMSDiscrete", "PNDM")
                for when, steps in (("(all steps)", SAMPLING_STEPS), ("at 5 and 10", FEW_STEPS))
            ),
            Comparison(
                part="ruined, DDIM is noisier at 10 steps than at 100",
                measure="noise", more=of(RUINED, "DDIM", 10), less=of(RUINED, "DDIM", 100),
            ),
            Comparison(
                part="well trained, PNDM is noisier than DDIM at 5 and 10 steps",
                measure="noise",
                more=of(WELL_TRAINED, "PNDM", *FEW_STEPS),
                less=of(WELL_TRAINED, "DDIM", *FEW_STEPS),
            ),
            Comparison(
                part="well trained, DDIM's likeness is above PNDM's at 5 and 10 steps",
                measure="likeness",
                more=of(WELL_TRAINED, "DDIM", *FEW_STEPS),
                less=of(WELL_TRAINED, "PNDM", *FEW_STEPS),
            ),
        ],
        figure="schedulers",
        remark="What the results show: the claim cannot be shown here. Too much training makes "
        "the included model's images smoother, not noisier, so there is no noise for a scheduler "
        "or for more steps to remove. From 25 steps on, all three schedulers give the same "
        "images. The effect of too few steps shows on the well-trained model, mostly with PNDM.",
    )  # fmt: skip


# ------------------------------------------------------------------- e to i: what else is trained


def _text_encoder() -> Experiment:
    trained = {"striking": PRESET, "subtle": SUBTLE, "striking, no class images": NO_CLASS_IMAGES}
    frozen = {
        "striking": UNET_ONLY,
        "subtle": replace(SUBTLE, text_encoder=False),
        "striking, no class images": _plain(),
    }
    points = {
        f"{name}: {how}": Point(recipe=recipes[name])
        for name in trained
        for how, recipes in (("frozen", frozen), ("trained", trained))
    }
    comparisons = [
        Comparison(
            part=f"{name}: {what}", measure=measure,
            more=[points[f"{name}: trained"]], less=[points[f"{name}: frozen"]],
        )
        for name in trained
        for measure, what in (
            ("subject", "the subject is shown more often"),
            ("followed", "subject and surroundings come together more often"),
        )
    ]  # fmt: skip
    return Experiment(
        title="Text encoder frozen against trained",
        claim="Training the text encoder too has the largest effect on quality, especially for "
        "faces: results are more realistic and less overfitted, and follow more complex prompts.",
        setting="Three settings in which it could show: the striking cup, the subtle cup (which "
        "stands for a face), and a model without class images, which overfits. Of the 24 "
        "prompts, 18 begin differently from the photos' caption and 20 name surroundings.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "loss, unseen", "loss, photos"),
        comparisons=comparisons,
        remark="What the results show: frozen and trained differ less than two seeds do. The "
        "effect cannot be shown with prompts as simple as the included model understands. They "
        "only add a place, and with a frozen text encoder nearly all places are right already.",
    )


def _ema() -> Experiment:
    points = {
        "last weights": Point(recipe=_plain()),
        "running average": Point(recipe=replace(_plain(), of=0, ema=True)),
    }
    last, average = points.values()
    return Experiment(
        title="EMA of the weights",
        claim="With or without a running average of the weights, results are about the same.",
        setting="U-Net only, no class images, 300 steps at 2e-4; decay 0.999 after the usual "
        "warm-up. Both models come from the same steps.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "noise", "loss, unseen"),
        comparisons=[
            _same("the subject is shown as often", "subject", average, last),
            _same("the class is kept as well", "class kept", average, last),
            _same("the loss on unseen drawings is the same", "loss, unseen", average, last),
        ],
    )


def _same(part: str, measure: str, one: Point, other: Point) -> Comparison:
    return Comparison(part=part, measure=measure, more=[one], less=[other], expected="same")


def _words() -> Experiment:
    points = {
        "“sks cup”": Point(recipe=PRESET),
        "“a blue striped cup”": Point(recipe=replace(PRESET, words="a blue striped cup")),
    }
    rare, natural = points.values()
    return Experiment(
        title="A rare word against natural words",
        claim="A rare token such as sks is not needed: natural words that describe the subject "
        "work as well.",
        setting="The model knows no word for teal, magenta or a band. “a blue striped cup” is "
        "the closest description that it knows.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "loss, unseen"),
        comparisons=[
            _same("the subject is shown as often", "subject", natural, rare),
            _same("subject and surroundings come together as often", "followed", natural, rare),
            _same("the class is kept as well", "class kept", natural, rare),
        ],
    )


def _inversion() -> Experiment:
    def recipe(inversion_steps: int, steps: int) -> Recipe:
        return replace(UNET_ONLY, words=PLACEHOLDER, inversion_steps=inversion_steps, steps=steps)

    points = {
        "textual inversion 300": Point(recipe=recipe(INVERSION_STEPS, 0)),
        "DreamBooth 300": Point(recipe=UNET_ONLY),
        "textual inversion 240, DreamBooth 60": Point(recipe=recipe(240, 60)),
        "textual inversion 240, DreamBooth 300": Point(recipe=recipe(240, 300)),
        "DreamBooth 300, text encoder too": Point(recipe=PRESET),
    }
    _, plain, both, on_top, text_encoder = points.values()
    return Experiment(
        title="Textual inversion, DreamBooth and both",
        claim="Textual inversion followed by DreamBooth is much better than plain DreamBooth, "
        "and not as good as training the text encoder.",
        setting="With equal budgets of 300 steps, four fifths of them for textual inversion as "
        "in the article; and also with textual inversion in addition to the full 300 steps, "
        "because the article did not shorten its DreamBooth run. DreamBooth trains the U-Net "
        "only, with class images. [Textual inversion, DreamBooth, and "
        "both](textual-inversion.md) has equal budgets of 100 and 300 steps, with other images.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "likeness", "loss, unseen"),
        comparisons=[
            Comparison(
                part="with equal budgets, both show more of the subject than DreamBooth",
                measure="subject", more=[both], less=[plain],
            ),
            Comparison(
                part="with textual inversion in addition, more of it is shown than by DreamBooth "
                "alone",
                measure="subject", more=[on_top], less=[plain],
            ),
            Comparison(
                part="with textual inversion in addition, the loss on unseen drawings is lower",
                measure="loss, unseen", more=[plain], less=[on_top],
            ),
            Comparison(
                part="training the text encoder shows more of it than textual inversion in "
                "addition",
                measure="subject", more=[text_encoder], less=[on_top],
            ),
        ],
        remark="What the results show: the included model has never seen a band, so no embedding "
        "can describe one. Textual inversion finds the colour of the body and stops there, and "
        "DreamBooth then still has to learn all of the subject. This need not hold for a model "
        "that knows nearly everything beforehand, as Stable Diffusion does.",
    )  # fmt: skip


def _formats() -> Experiment:
    others = {
        "8-bit AdamW": replace(_plain(), of=0, optimizer="AdamW8bit"),
        "bf16": replace(_plain(), of=0, precision="bf16"),
        "fp16": replace(_plain(), of=0, precision="fp16"),
    }
    reference = Point(recipe=_plain())
    points = {"32-bit AdamW, fp32": reference}
    points |= {name: Point(recipe=recipe) for name, recipe in others.items()}
    return Experiment(
        title="8-bit AdamW, fp16 and bf16",
        claim="8-bit AdamW and half precision, with which training fits into 16 GB, cost no "
        "quality.",
        setting="U-Net only, no class images, 300 steps at 2e-4. On the CPU: this compares the "
        "numbers, not memory or speed.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "loss, unseen"),
        comparisons=[
            _same(f"{name}: {what}", measure, points[name], reference)
            for name in others
            for measure, what in (
                ("subject", "the subject is shown as often"),
                ("loss, unseen", "the loss on unseen drawings is the same"),
            )
        ],
    )


def _lean(recipe: Recipe, weights: str) -> Recipe:
    return replace(
        recipe, weights=weights, optimizer="AdamW8bit", precision="bf16", releases_gradients=True
    )


def _lean_weights() -> Experiment:
    points, comparisons = {}, []
    for name, recipe in {"U-Net": UNET_ONLY_PLAIN, "all parts": PRESET}.items():
        exact = Point(recipe=recipe)
        points[f"{name}: fp32, AdamW"] = exact
        for weights in ("24 bit", "bf16"):
            lean = Point(recipe=_lean(recipe, weights))
            points[f"{name}: {weights}, 8-bit AdamW"] = lean
            comparisons += [
                _same(f"{name}, {weights}: {what}", measure, lean, exact)
                for measure, what in (
                    ("subject", "the subject is shown as often"),
                    ("class kept", "the class is kept as well"),
                    ("loss, unseen", "the loss on unseen drawings is the same"),
                )
            ]
    return Experiment(
        title="Weights of 24 bits and of bf16",
        claim="8-bit AdamW costs no quality. Added here: neither do weights of 24 bits and "
        "released gradients, with which training fits into 6 GB.",
        setting="U-Net only without class images, and all parts: U-Net and text encoder with class "
        "images. 300 steps at 2e-4. Lean weights are trained in bf16, with released gradients and "
        "therefore without clipping. On the CPU: this compares the numbers, not memory or speed.",
        points=points,
        measures=("subject", "followed", "class kept", "balance", "loss, unseen"),
        comparisons=comparisons,
    )


def _masks() -> Experiment:
    alone = NO_CLASS_IMAGES
    room = replace(alone, subject=CUP_IN_ONE_ROOM)
    varied, plain = Point(recipe=alone), Point(recipe=room)
    little = Point(recipe=replace(room, unmasked_weight=0.1))
    nothing = Point(recipe=replace(room, unmasked_weight=0.0))
    colors = Point(recipe=replace(room, unmasked_weight=0.1, random_backgrounds=8))
    return Experiment(
        title="Masks and random backgrounds",
        source="Claimed here",
        claim="Photos that all show the same surroundings teach these with the subject, whatever "
        "the prompt says. Masks prevent it at no cost to the subject, and plain colours behind the "
        "subject do so even more.",
        setting="U-Net and text encoder, no class images, 300 steps at 2e-4. Six photos of the "
        "striking cup in one corner of one room, with masks that are exact, because the photos are "
        "drawn; its shadow counts as surroundings. Weight: how much the rest of a photo counts. "
        "Prompts name five places, one of which is a room.",
        points={
            "five surroundings": varied,
            "one room": plain,
            "masks, weight 0.1": little,
            "masks, weight 0": nothing,
            "masks, weight 0.1, 8 colours": colors,
        },
        measures=("subject", "background", "followed", "class kept", "balance", "noise"),
        comparisons=[
            Comparison(
                part="photos in five surroundings follow the prompt's place more than those in one",
                measure="background", more=[varied], less=[plain],
            ),
            *(
                Comparison(
                    part=f"{name} follow the prompt's place more than no masks",
                    measure="background", more=[point], less=[plain],
                )
                for name, point in (("masks of weight 0.1", little), ("masks of weight 0", nothing))
            ),
            Comparison(
                part="8 colours follow the prompt's place more than masks alone",
                measure="background", more=[colors], less=[little],
            ),
            _same("masks of weight 0.1 show the subject as often as no masks", "subject", little,
                  plain),
            _same("8 colours show the subject as often as no masks", "subject", colors, plain),
            Comparison(
                part="weight 0 is noisier than weight 0.1, because nothing holds the rest",
                measure="noise", more=[nothing], less=[little],
            ),
        ],
        remark="What the results show: with photos in one room, surroundings are right in 63 "
        "percent of the images; with masks in 90 to 95, nearly as with photos in five places. All "
        "seeds with masks do better than all without, but those without differ so much that the "
        "bar is hardly reached. With plain colours, the classifier finds surroundings no better, "
        "and people see plain walls in most of them; the subject is shown less often, but far more "
        "of the class is kept, although there are no class images. Nothing holds the rest of a "
        "photo with a weight of 0, and yet its images are no noisier.",
    )  # fmt: skip


# --------------------------------------------------------------- l: directional textual inversion


def _directions() -> Experiment:
    def point(*, directional: bool, num_vectors: int) -> Point:
        recipe = Recipe(
            words=PLACEHOLDER, steps=0, class_images=0, inversion_steps=INVERSION_STEPS,
            directional=directional, num_vectors=num_vectors,
        )  # fmt: skip
        return Point(recipe=recipe, recolors=True)

    points = {
        f"{'directional' if directional else 'usual'}, {number} vector{'s' * (number > 1)}": point(
            directional=directional, num_vectors=number
        )
        for number in (1, 8)
        for directional in (False, True)
    }
    usual, directional = [*points.values()][::2], [*points.values()][1::2]
    return Experiment(
        title="Directional textual inversion",
        claim="Vectors of the vocabulary's mean length, of which only the direction is learned, "
        "keep more of a prompt's other words than usual textual inversion, and less likeness.",
        source="“Directional Textual Inversion” (arXiv 2512.13672)",
        setting="The striking cup, 300 steps, a new word of 1 or 8 vectors. Usual: AdamW at 3e-3, "
        "and lengths kept within those of 98 percent of the vocabulary, which the paper's baseline "
        "does not do. Directional: the rate 1e-3. Other words are the surroundings, and the colour "
        "in “a red <sks>” and so on, in all eight colours that the model knows.",
        points=points,
        measures=("background", "recolored", "likeness", "loss, unseen"),
        comparisons=[
            *_other_words_kept("with 1 vector", directional[0], usual[0]),
            *_other_words_kept("with 8 vectors", directional[1], usual[1]),
        ],
        remark="What the results show: no difference that three seeds could show. There is little "
        "to win here, because lengths are limited in usual textual inversion too, and the included "
        "model's prompts are so short that surroundings are right in all images. With 8 vectors, "
        "the loss on unseen drawings is higher with directional. It is therefore off unless it is "
        "chosen. With Stable Diffusion, whose prompts are longer, it may do more.",
    )  # fmt: skip


def _other_words_kept(which: str, directional: Point, usual: Point) -> list[Comparison]:
    return [
        Comparison(
            part=f"{which}, the named colour is shown more often with directional",
            measure="recolored", more=[directional], less=[usual],
        ),
        Comparison(
            part=f"{which}, surroundings are right no less with directional",
            measure="background", more=[directional], less=[usual], expected="no less",
        ),
        Comparison(
            part=f"{which}, the likeness is lower with directional",
            measure="likeness", more=[usual], less=[directional],
        ),
    ]  # fmt: skip


# ------------------------------------------------------------- k: the class without class images

ANCHOR, WEAK_ANCHOR = 4.0, 2.0
"""Chosen with seeds 10 and 11, of 2, 4, 5, 6 and 8 for all weights, and of 4 and 5 for a LoRA."""
RARELY, RARE_ANCHOR = 1 / 12, 3.0
"""One of four photos in every third step, so that a step should take 1.11 times as long on average.
The anchor, and a teacher's weight of 1, were chosen with seeds 10 and 11, of anchors of 2 and 3 and
weights of 1, 2 and 3, for all weights."""


def _without_class_images() -> Experiment:
    kinds = {
        "all weights": PRESET,
        "LoRA": replace(PRESET, is_lora=True, learning_rate=1e-3),
    }
    points: dict[str, Point] = {}
    comparisons: list[Comparison] = []
    for kind, images in kinds.items():
        alone = replace(images, class_images=0)
        recipes = {
            "nothing": alone,
            "60 class images": images,
            "anchor": replace(alone, anchor=ANCHOR),
            "teacher": replace(alone, teacher_weight=1.0),
            "teacher, weak anchor": replace(alone, teacher_weight=1.0, anchor=WEAK_ANCHOR),
            "rare teacher, anchor": replace(
                alone, teacher_weight=1.0, teacher_ratio=RARELY, anchor=RARE_ANCHOR
            ),
            "class images, weak anchor": replace(images, anchor=WEAK_ANCHOR),
        }
        of_kind = {
            f"{kind}: {name}": Point(recipe=recipe, draws_colored_cups=True)
            for name, recipe in recipes.items()
        }
        points |= of_kind
        comparisons += _kept_as_well(of_kind)
    return Experiment(
        title="The class without class images",
        claim="The class is kept as well without class images, if weights are pulled back to those "
        "before training after each step (anchor), or if the model learns its own earlier answers "
        "to the class prompt on the noisy photos (teacher).",
        source="Claimed here",
        setting="The striking cup, text encoder trained, 300 steps, at 2e-4 for all weights and "
        f"1e-3 for a LoRA of rank 16. The anchor is {ANCHOR:g}, the weak one {WEAK_ANCHOR:g}, "
        f"and that of the rare teacher {RARE_ANCHOR:g}; all were chosen with other seeds. Teacher "
        "and class images have the weight 1. The rare teacher is asked about one photo in every "
        "third step, the others about all photos; it was added when the others had been measured. "
        "Besides "
        "“a cup”, 24 images of cups in the eight colours that the model knows are drawn.",
        points=points,
        measures=("subject", "background", "class kept", "colored cups kept", "balance",
                  "likeness", "loss, other cups"),
        comparisons=comparisons,
        remark="What the results show, for all weights: without class images, teacher and weak "
        "anchor together keep “a cup” as well as class images do and nearly all coloured cups, of "
        "which class images keep two thirds, and show the subject as often. The rare teacher with "
        "a stronger anchor keeps as much in hardly more time than nothing takes, and shows the "
        "subject in 67 percent of the images instead of 83, a difference that three seeds cannot"
        " tell from chance. The teacher alone shows the subject most often and keeps three "
        "quarters of “a cup”; so does the anchor alone, with fewer images of the subject. For a "
        "LoRA it is the same, except that the anchor alone keeps half, the teacher alone nearly "
        "all, and that all of them show less of the subject than class images; of the rare "
        "teacher, the difference exceeds the bar. Training took 61 seconds with nothing, 59 with"
        " the anchor, 102 with the teacher, 105 with teacher and weak anchor, 62 with the rare "
        "teacher and anchor, and 89 with class images, without drawing them; for a LoRA 45, 45, "
        "86, 88, 48 and 70. These are means of three seeds in processor time, on a core that "
        "other programs shared.",
    )  # fmt: skip


def _kept_as_well(points: dict[str, Point]) -> list[Comparison]:
    nothing, images, *alone, both = points
    found = []
    for label in alone:
        found += [
            _of(points, label, "more of the class is kept than with nothing", "class kept", nothing,
                "more"),
            _of(points, label, "no less of it than with class images", "class kept", images,
                "no less"),
            _of(points, label, "no fewer coloured cups than with class images",
                "colored cups kept", images, "no less"),
            _of(points, label, "the subject is shown no less than with class images", "subject",
                images, "no less"),
        ]  # fmt: skip
    return [
        *found,
        _of(points, both, "more coloured cups than with class images alone", "colored cups kept",
            images, "more"),
        _of(points, both, "the subject is shown no less than with class images alone", "subject",
            images, "no less"),
    ]  # fmt: skip


def _of(
    points: dict[str, Point],
    label: str,
    what: str,
    measure: str,
    other: str,
    expected: Expectation,
) -> Comparison:
    return Comparison(
        part=f"{label}: {what}", measure=measure, more=[points[label]], less=[points[other]],
        expected=expected,
    )  # fmt: skip


EXPERIMENTS: dict[str, Experiment] = {
    "a": _sweet_spot(),
    "b": _faces(),
    "c": _prior(),
    "d": _schedulers(),
    "e": _text_encoder(),
    "f": _ema(),
    "g": _words(),
    "h": _inversion(),
    "i": _formats(),
    "j": _lean_weights(),
    "k": _without_class_images(),
    "l": _directions(),
    "m": _masks(),
}
"""By the letter that selects them on the command line."""

assert len(PREFIXES) == 4, "experiment e counts 18 prompts of 24 with other prefixes"

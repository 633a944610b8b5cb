"""Impossible settings of drawn images are refused with the message that a user will read."""

import pytest

from trainer.settings.config import PreviewConfig, PriorConfig, SamplingConfig, ScoringConfig

REFUSALS = [
    (
        lambda: SamplingConfig(steps=1001),
        "steps must be between 1 and 1000, got 1001.",
    ),
    (
        lambda: SamplingConfig(guidance_scale=0.5),
        "guidance_scale must be 1 or more, got 0.5.",
    ),
    (
        lambda: PriorConfig(weight=-1),
        "prior.weight must be 0 or more, got -1.",
    ),
    (
        lambda: PriorConfig(num_images=10**12),
        "prior.num_images must be 1000000 or less, got 1000000000000.",
    ),
    (
        lambda: ScoringConfig(num_class_images=10**12),
        "scoring.num_class_images must be 1000000 or less, got 1000000000000.",
    ),
    (
        lambda: PriorConfig(weight=1),
        "prior.weight is 1 but prior.prompt is empty. Name the class, such as 'a photo of a dog', "
        "or set prior.weight to 0.",
    ),
    (
        lambda: PriorConfig(teacher_weight=0.5),
        "prior.teacher_weight is 0.5 but prior.prompt is empty. Name the class, such as 'a photo "
        "of a dog', or set prior.teacher_weight to 0.",
    ),
    (
        lambda: PriorConfig(teacher_ratio=1.5),
        "prior.teacher_ratio must be above 0 and at most 1, got 1.5.",
    ),
    (
        lambda: PriorConfig(ratio=0),
        "prior.ratio must be above 0, got 0.",
    ),
    (
        lambda: PreviewConfig(every=0),
        "preview.every must be 1 or more, got 0.",
    ),
    (
        lambda: PreviewConfig(prompts=("a dog", "a \udce9")),
        "preview.prompts is not valid Unicode: 'a \\udce9'. Write it in UTF-8, or rename it.",
    ),
    (
        lambda: ScoringConfig(subject_weight=0),
        "scoring.subject_weight must be above 0, got 0.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refuses_impossible_settings(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message

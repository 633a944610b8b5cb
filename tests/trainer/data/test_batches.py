from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batch import Batch
from trainer.data.batches import BatchStream, check_share
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing
from trainer.noise import DiscreteNoise
from trainer.processes import Processes
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig

Latents = dict[Example, CachedLatents]
SQUARE, WIDE, TALL = (2, 3, 3), (2, 2, 4), (2, 4, 2)


def cached(
    count: int, shapes: list[tuple[int, int, int]], *, is_prior: bool = False, std: float = 0
) -> Latents:
    """Examples that differ in caption, framing and the value of their latents, which is 100 or more
    for class images."""
    first = 100 if is_prior else 0
    latents = {}
    for number in range(first, first + count):
        shape = shapes[number % len(shapes)]
        example = Example(Path(f"{number}.png"), (f"caption {number}",), is_prior)
        means, stds = torch.full(shape, float(number)), torch.full(shape, float(std))
        latents[example] = CachedLatents(means, stds, Framing((number, 1), (0, 0), (1, 1)))
    return latents


def config(
    *, batch_size: int = 1, accumulation: int = 1, weight: float = 0.0, ratio: float = 1.0,
    seed: int = 0, noise_offset: float = 0.0, teacher: float = 0.0, teacher_ratio: float = 1.0,
) -> TrainingConfig:  # fmt: skip
    return TrainingConfig(
        base=Path("toy"),
        dataset=DatasetConfig(photos=(Path("photos"),), prompt="a sks cup"),
        prior=PriorConfig(
            weight=weight,
            prompt="a cup",
            ratio=ratio,
            teacher_weight=teacher,
            teacher_ratio=teacher_ratio,
        ),
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        seed=seed,
        noise_offset=noise_offset,
    )


def take(stream: BatchStream, micro_steps: int) -> list[Batch]:
    return [batch for _ in range(micro_steps) for batch in next(stream)]


Row = tuple[str, Framing, bool, float, bytes, bytes, int]


def rows(batches: list[Batch]) -> list[Row]:
    """Everything about each example, bit for bit."""
    return [
        (
            batch.captions[i],
            batch.framings[i],
            bool(batch.is_prior[i]),
            float(batch.weights[i]),
            batch.latents[i].numpy().tobytes(),
            batch.noise[i].numpy().tobytes(),
            int(batch.times[i]),
        )
        for batch in batches
        for i in range(len(batch.captions))
    ]


def photos_of(batches: list[Batch]) -> list[Row]:
    return [row for row in rows(batches) if not row[2]]


def class_images_of(batches: list[Batch]) -> list[Row]:
    return [row for row in rows(batches) if row[2]]


def test_shuffling_keeps_caption_framing_and_latents_together() -> None:
    instance = cached(7, [SQUARE, WIDE, TALL])
    prior = cached(5, [SQUARE, TALL], is_prior=True)
    stream = BatchStream(instance, prior, config(batch_size=3, weight=1.0))

    for batch in take(stream, 60):
        for i, caption in enumerate(batch.captions):
            number = int(caption.split()[1])
            assert batch.latents[i].unique().tolist() == [number]
            assert batch.framings[i].original_size == (number, 1)
            assert bool(batch.is_prior[i]) == (number >= 100)


def test_each_pass_uses_every_example_once_in_a_new_order() -> None:
    stream = BatchStream(cached(7, [SQUARE]), {}, config(batch_size=3))

    captions = [caption for batch in take(stream, 70) for caption in batch.captions]

    passes = [tuple(captions[start : start + 7]) for start in range(0, 210, 7)]
    assert all(len(set(names)) == 7 for names in passes)
    assert len(set(passes)) > 25


def test_each_batch_has_one_shape_and_batches_follow_the_order_of_draws() -> None:
    instance, prior = cached(6, [SQUARE, WIDE]), cached(2, [TALL], is_prior=True)

    (batches, again) = (
        next(BatchStream(instance, prior, config(batch_size=6, weight=1.0))) for _ in range(2)
    )

    assert {tuple(batch.latents.shape) for batch in batches} == {
        (3, *SQUARE), (3, *WIDE), (6, *TALL)
    }  # fmt: skip
    assert tuple(batches[-1].latents.shape) == (6, *TALL)
    assert rows(batches) == rows(again)
    for batch in batches:
        assert batch.noise.shape == batch.latents.shape
        assert len(batch.framings) == len(batch.captions) == len(batch.weights)


class OneOf(Processes):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "chosen",
    [
        config(batch_size=4, weight=1.0),
        config(batch_size=3, weight=1.0, ratio=0.7),
        config(batch_size=1, accumulation=4),
        config(batch_size=2, accumulation=3, weight=1.0, ratio=0.5),
        config(batch_size=2, accumulation=3, teacher=1.0, teacher_ratio=0.5),
        config(batch_size=2, accumulation=2, weight=1.0, ratio=0.75, teacher=1.0),
    ],
)
def test_processes_share_each_step_among_them(size: int, chosen: TrainingConfig) -> None:
    instance, prior = cached(7, [SQUARE, WIDE]), cached(5, [SQUARE], is_prior=True)
    alone = BatchStream(instance, prior, chosen)
    shares = [
        BatchStream(instance, prior, chosen, processes=OneOf(rank, size)) for rank in range(size)
    ]
    for _ in range(5):
        steps = chosen.gradient_accumulation
        expected = [row for _ in range(steps) for row in rows(next(alone))]
        found = [[row for _ in range(steps) for row in rows(next(share))] for share in shares]
        assert Counter(row for part in found for row in part) == Counter(expected)
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    assert all(str(share.state()) == str(alone.state()) for share in shares)


def test_weights_of_places_stay_with_their_example() -> None:
    instance = {
        example: replace(each, weights=torch.full(each.mean.shape[1:], float(number)))
        if number % 3 == 1
        else each
        for number, (example, each) in enumerate(cached(6, [SQUARE, WIDE]).items())
    }
    prior = cached(2, [SQUARE], is_prior=True)
    batches = take(BatchStream(instance, prior, config(batch_size=3, weight=1.0)), 20)
    for batch in batches:
        numbers = [int(caption.split()[1]) for caption in batch.captions]
        if batch.place_weights is None:
            assert all(number % 3 != 1 or number >= 100 for number in numbers)
            continue
        assert batch.place_weights.shape == (len(numbers), 1, *batch.latents.shape[2:])
        expected = [number if number % 3 == 1 and number < 100 else 1 for number in numbers]
        assert batch.place_weights.amin((1, 2, 3)).tolist() == expected
        assert batch.place_weights.amax((1, 2, 3)).tolist() == expected
        assert torch.equal(batch.to(torch.device("cpu")).place_weights, batch.place_weights)
    assert {batch.place_weights is None for batch in batches} == {True, False}


def test_the_teacher_is_asked_about_all_of_a_photo_with_a_mask() -> None:
    masked = {
        example: replace(each, weights=torch.full(each.mean.shape[1:], 2.0))
        for example, each in cached(3, [SQUARE]).items()
    }
    (batch,) = next(BatchStream(masked, {}, config(batch_size=3, teacher=1.0)))
    assert batch.num_taught == 3
    assert batch.place_weights is not None
    assert batch.place_weights.amax((1, 2, 3)).tolist() == [2.0] * 3 + [1.0] * 3


def test_more_processes_than_images_are_refused() -> None:
    check_share(config(batch_size=1, accumulation=2, weight=1.0), OneOf(0, 4))
    with pytest.raises(ValueError) as error:
        check_share(config(batch_size=1, accumulation=2), OneOf(0, 3))
    assert str(error.value) == (
        "3 processes cannot share a step of 2 images: each needs at least one. Raise batch_size "
        "(now 1), or start fewer processes."
    )


def test_photos_and_class_images_of_one_shape_share_a_batch() -> None:
    stream = BatchStream(
        cached(4, [SQUARE]), cached(4, [SQUARE], is_prior=True), config(batch_size=2, weight=1.0)
    )

    (batch,) = next(stream)

    assert batch.is_prior.tolist() == [False, False, True, True]
    assert batch.times.dtype == torch.int64


@pytest.mark.parametrize(("batch_size", "num_warnings"), [(1, 1), (2, 1), (3, 0)])
def test_a_share_of_class_images_below_one_per_step_is_a_warning(batch_size, num_warnings, caplog):
    """0.2, 0.4 and 0.6 of an image per step: the last is rounded to one anyway."""
    few = config(batch_size=batch_size, weight=1.0, ratio=0.2)
    next(BatchStream(cached(2, [SQUARE]), cached(2, [SQUARE], is_prior=True), few))
    said = (
        "prior.ratio 0.2 is less than half a class image per step, so each step has one. Raise "
        "batch_size to train on fewer."
    )
    assert [record.getMessage() for record in caplog.records] == [said] * num_warnings


@settings(deadline=None)
@given(
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    weight=st.floats(0.05, 3),
    ratio=st.floats(0.1, 3),
    seed=st.integers(0, 2**40),
)
def test_weighted_errors_sum_to_instance_mean_plus_prior_weight_times_class_mean(
    batch_size: int, accumulation: int, weight: float, ratio: float, seed: int
) -> None:
    settings = config(
        batch_size=batch_size, accumulation=accumulation, weight=weight, ratio=ratio, seed=seed
    )
    prior = cached(3, [SQUARE, TALL], is_prior=True)
    stream = BatchStream(cached(5, [SQUARE, WIDE, TALL]), prior, settings)
    take(stream, accumulation)

    batches = take(stream, accumulation)

    errors = [batch.noise.double().square().mean((1, 2, 3)) for batch in batches]
    loss = sum((b.weights * e).sum().item() for b, e in zip(batches, errors, strict=True))
    every, is_prior = torch.cat(errors), torch.cat([batch.is_prior for batch in batches])
    expected = every[~is_prior].mean() + weight * every[is_prior].mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert (~is_prior).sum() == batch_size * accumulation
    assert is_prior.sum() == max(1, round(batch_size * accumulation * ratio))


def test_without_prior_weight_there_are_only_photos() -> None:
    prior = cached(5, [SQUARE], is_prior=True)

    (batch,) = next(BatchStream(cached(5, [SQUARE]), prior, config(batch_size=4)))

    assert batch.is_prior.tolist() == [False] * 4
    assert batch.weights.tolist() == [0.25] * 4


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.75])
def test_four_micro_steps_of_one_photo_draw_the_same_as_one_of_four(ratio: float) -> None:
    instance = cached(3, [SQUARE, WIDE], std=0.5)
    prior = cached(5, [SQUARE, TALL], is_prior=True, std=0.5)
    small = config(batch_size=1, accumulation=4, weight=0.7, ratio=ratio, noise_offset=0.1)
    large = config(batch_size=4, accumulation=1, weight=0.7, ratio=ratio, noise_offset=0.1)
    one_by_one, at_once = (BatchStream(instance, prior, c) for c in (small, large))

    for _ in range(5):
        parts, whole = take(one_by_one, 4), take(at_once, 1)
        assert sorted(rows(parts), key=repr) == sorted(rows(whole), key=repr)
        assert len(photos_of(whole)) == 4


@pytest.mark.parametrize(("ratio", "expected"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_teacher_is_asked_about_some_of_the_photos(ratio: float, expected: int) -> None:
    """With their own latents, noise and times, and the class prompt. Which ones does not depend on
    the batch size."""
    instance = cached(3, [SQUARE, WIDE], std=0.5)
    prior = cached(5, [SQUARE, TALL], is_prior=True, std=0.5)
    asking = {"weight": 0.7, "teacher": 0.6, "teacher_ratio": ratio}
    one_by_one, at_once, plain = (
        BatchStream(instance, prior, chosen)
        for chosen in (
            config(batch_size=1, accumulation=4, **asking),
            config(batch_size=4, **asking),
            config(batch_size=4, weight=0.7),
        )
    )
    assert at_once.images_per_step == 8 + expected
    assert ("a cup", at_once.captions[0][1]) in at_once.captions
    assert all(caption != "a cup" for caption, _ in plain.captions)
    for _ in range(5):
        parts, whole, without = take(one_by_one, 4), take(at_once, 1), take(plain, 1)
        assert sorted(rows(parts), key=repr) == sorted(rows(whole), key=repr)
        taught = [row for row in rows(whole) if row[0] == "a cup"]
        assert sum(batch.num_taught for batch in whole) == len(taught) == expected
        assert [row for row in rows(whole) if row[0] != "a cup"] == rows(without)
        photos = {row[1:2] + row[4:] for row in photos_of(whole)}
        assert {row[1:2] + row[4:] for row in taught} <= photos
        assert [row[2:4] for row in taught] == [(True, pytest.approx(0.6 / expected))] * expected
        for batch in whole:
            last = batch.captions[len(batch.captions) - batch.num_taught :]
            assert last == ["a cup"] * batch.num_taught


@pytest.mark.parametrize(("ratio", "every"), [(0.25, 1), (0.15, 2), (1 / 12, 3), (0.02, 12)])
def test_less_than_one_photo_per_step_is_one_in_every_few_steps(ratio: float, every: int) -> None:
    """Also after continuing from a state in between, and with micro steps."""
    instance = cached(3, [SQUARE], std=0.5)
    for division in ({"batch_size": 4}, {"batch_size": 2, "accumulation": 2}):
        chosen = config(**division, teacher=0.6, teacher_ratio=ratio)
        stream, num = BatchStream(instance, {}, chosen), chosen.gradient_accumulation
        assert stream.images_per_step == (5 if every == 1 else 4)
        counts = []
        for _ in range(2 * every + 1):
            batches = take(stream, num)
            counts.append(sum(batch.num_taught for batch in batches))
            taught = [batch.weights[-1].item() for batch in batches if batch.num_taught]
            assert taught == [pytest.approx(0.6)] * counts[-1]
            continued = BatchStream(instance, {}, chosen)
            continued.load_state(stream.state())
            stream = continued
        assert counts == [1, *([0] * (every - 1))] * 2 + [1]


def test_class_images_spread_evenly_over_the_micro_steps() -> None:
    settings = config(batch_size=1, accumulation=4, weight=1.0, ratio=0.5)
    stream = BatchStream(cached(3, [SQUARE]), cached(9, [SQUARE], is_prior=True), settings)

    counts = [sum(int(batch.is_prior.sum()) for batch in next(stream)) for _ in range(8)]

    assert counts == [0, 1, 0, 1] * 2


def test_class_images_do_not_change_the_photos_draws() -> None:
    instance = cached(5, [SQUARE], std=0.5)
    prior = cached(4, [SQUARE], is_prior=True)

    alone = take(BatchStream(instance, {}, config(batch_size=2)), 20)
    beside = take(BatchStream(instance, prior, config(batch_size=2, weight=1.0)), 20)

    assert photos_of(beside) == photos_of(alone)


def test_photos_and_class_images_do_not_draw_the_same_noise() -> None:
    stream = BatchStream(
        cached(4, [SQUARE]), cached(4, [SQUARE], is_prior=True), config(weight=1.0)
    )

    batches = take(stream, 30)

    photos, class_images = photos_of(batches), class_images_of(batches)
    assert not {row[5] for row in photos} & {row[5] for row in class_images}
    assert [row[6] for row in photos] != [row[6] for row in class_images]


def test_the_seed_decides_every_draw() -> None:
    instance = cached(5, [SQUARE], std=0.5)
    prior = cached(4, [WIDE], is_prior=True, std=0.5)

    def drawn(seed: int) -> list[Row]:
        return rows(take(BatchStream(instance, prior, config(weight=1.0, seed=seed)), 20))

    assert drawn(3) == drawn(3)
    assert not {row[5] for row in drawn(3)} & {row[5] for row in drawn(4)}


def test_every_draw_has_new_latents_noise_and_timestep() -> None:
    stream = BatchStream(cached(1, [SQUARE], std=0.5), {}, config())

    drawn = rows(take(stream, 50))

    assert len({row[4] for row in drawn}) == len({row[5] for row in drawn}) == 50
    assert len({row[6] for row in drawn}) > 40


def test_each_caption_of_an_example_is_equally_likely() -> None:
    ((example, latents),) = cached(1, [SQUARE]).items()
    instance = {replace(example, captions=("a cup", "the cup", "my cup")): latents}
    stream = BatchStream(instance, {}, config(batch_size=50))

    captions = [caption for batch in take(stream, 18) for caption in batch.captions]
    counts = Counter(captions)

    # 900 draws from 3 captions: 300 each, within four standard deviations of 14
    assert sorted(counts) == ["a cup", "my cup", "the cup"]
    assert all(abs(count - 300) < 57 for count in counts.values())
    again = take(BatchStream(instance, {}, config(batch_size=50)), 18)
    assert [caption for batch in again for caption in batch.captions] == captions


def test_timesteps_are_uniform_over_the_schedule() -> None:
    stream = BatchStream(
        cached(3, [SQUARE]),
        {},
        config(batch_size=50),
        noise=DiscreteNoise(torch.linspace(0.9, 0.1, 5)),
    )

    counts = Counter(int(t) for batch in take(stream, 40) for t in batch.times)

    # 2000 draws from 5 timesteps: 400 each, within four standard deviations of 18
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert all(abs(count - 400) < 72 for count in counts.values())


@pytest.mark.parametrize(("offset", "expected"), [(0.0, 0.0), (0.5, 0.25)])
def test_the_noise_offset_shifts_whole_channels(offset: float, expected: float) -> None:
    stream = BatchStream(cached(2, [(4, 16, 16)]), {}, config(batch_size=50, noise_offset=offset))

    noise = torch.cat([batch.noise for batch in take(stream, 10)])

    # a channel's mean has variance offset^2 + 1/256; 2000 channels
    assert noise.mean((2, 3)).var().item() == pytest.approx(expected + 1 / 256, rel=0.15)


def test_drawing_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()

    take(BatchStream(cached(5, [SQUARE]), {}, config(batch_size=2)), 10)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("micro_steps", [0, 1, 5, 14])
def test_a_stream_continues_from_its_saved_state(micro_steps: int) -> None:
    instance = cached(5, [SQUARE, WIDE], std=0.5)
    prior = cached(3, [SQUARE], is_prior=True, std=0.5)
    settings = config(batch_size=2, accumulation=2, weight=1.0, ratio=0.75)
    stream = BatchStream(instance, prior, settings)
    take(stream, micro_steps)
    file = io.BytesIO()
    torch.save(stream.state(), file)
    expected = rows(take(stream, 20))

    file.seek(0)
    resumed = BatchStream(instance, prior, settings)
    resumed.load_state(torch.load(file, weights_only=True))

    assert rows(take(resumed, 20)) == expected


def test_a_state_with_another_number_of_photos_is_refused() -> None:
    state = BatchStream(cached(5, [SQUARE]), {}, config()).state()

    with pytest.raises(ValueError, match="to resume") as error:
        BatchStream(cached(4, [SQUARE]), {}, config()).load_state(state)

    assert str(error.value) == (
        "The run to resume had 5 photos, now there are 4. Restore the original ones, or start a "
        "new run."
    )


def test_a_prior_weight_without_class_images_is_refused() -> None:
    with pytest.raises(ValueError, match="prior") as error:
        BatchStream(cached(5, [SQUARE]), {}, config(weight=0.5))

    assert str(error.value) == (
        "prior.weight is 0.5 but there are no class images. Name a folder of them in prior.images, "
        "or set prior.weight to 0."
    )


def test_no_photos_are_refused() -> None:
    with pytest.raises(ValueError, match="photos") as error:
        BatchStream({}, cached(5, [SQUARE], is_prior=True), config())

    assert str(error.value) == "There are no photos to train on. Name some in dataset.photos."

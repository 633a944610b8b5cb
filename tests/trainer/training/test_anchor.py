"""The pull back to the values before training, against closed formulas and in every kind of run."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.training.sessions import begin, overflow
from trainer import families, weights
from trainer.checkpoint import CheckpointWriter
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.optimization.lr_schedules import LR_SCHEDULES
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import ModelOptions, OutputConfig
from trainer.training.anchor import INTERVAL, Anchor

CPU = torch.device("cpu")
BOTH = FullFineTune(train_text_encoder=True)
LEAN = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}


@pytest.fixture
def start(tiny_checkpoint):
    """Begins a session on a newly loaded model."""

    def start(method=BOTH, strength=0.0, optimizer=None, **changes):
        optimizer = {**(optimizer or {}), "anchor": strength}
        return begin(families.load(tiny_checkpoint, CPU), method, optimizer=optimizer, **changes)

    return start


def values(session) -> list[Tensor]:
    return [weights.value(parameter).clone() for parameter in session.parameters]


def saved(session, folder: Path) -> Path:
    """The file of a session's LoRA."""
    (file,) = session.trainable.files
    writer = CheckpointWriter(file.original, OutputConfig(folder=folder, name="lora", dtype="fp32"))
    return writer.save_final(session.trainable.file_tensors(file), dict(file.metadata))


def furthest(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("steps", [1, 4, 27])
@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_over_a_run_the_first_change_shrinks_by_the_exponential_of_the_strength(
    start, schedule, steps
):
    stop = max(1, steps // 2)
    method = FullFineTune(train_text_encoder=True, text_encoder_stop_step=stop)
    optimizer = {"lr_schedule": schedule, "warmup_steps": steps // 5, "learning_rate": 3e-6}
    session = start(method, steps=steps, optimizer=optimizer)
    config = session.config.replace({"optimizer": {"anchor": 1.7}})
    anchor, before = Anchor(config, session.trainable), values(session)
    moved = [value + 1 for value in before]
    expected = [value + math.exp(-1.7) for value in before]
    unet = len(session.trainable.parts[0].parameters)
    for step in range(1, steps + 3):
        for parameter, value in zip(session.parameters, moved, strict=True):
            anchor.pull(parameter, value, step)
        if step == stop:
            assert furthest(moved[unet:], expected[unet:]) < 1e-5
    assert furthest(moved, expected) < 1e-5


def test_halfway_as_much_of_the_pull_is_done_as_of_the_learning(start):
    """With a rate that falls evenly to 0, three quarters of it."""
    session = start(steps=1000, optimizer={"lr_schedule": "linear"})
    anchor = Anchor(session.config.replace({"optimizer": {"anchor": 2.0}}), session.trainable)
    parameter = session.parameters[0]
    moved = [value + 1 for value in values(session)][:1]
    for step in range(1, 501):
        anchor.pull(parameter, moved[0], step)
    left = (moved[0] - weights.value(parameter)).mean().item()
    assert left == pytest.approx(math.exp(-2 * 0.75), rel=0.03)


def test_few_weights_are_pulled_at_the_same_step(start):
    """So that little is read from main memory at each."""
    session = start(steps=1000)
    anchor = Anchor(session.config.replace({"optimizer": {"anchor": 1.0}}), session.trainable)
    origin, pulled = values(session), []
    for step in range(30, 30 + INTERVAL):
        moved = [value + 1 for value in origin]
        for parameter, value in zip(session.parameters, moved, strict=True):
            anchor.pull(parameter, value, step)
        pulled.append({i for i, value in enumerate(moved) if furthest([value], [origin[i] + 1])})
    assert sorted(sum(map(sorted, pulled), [])) == list(range(len(session.parameters)))
    assert max(map(len, pulled)) - min(map(len, pulled)) <= 1


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Prodigy"])
@pytest.mark.parametrize("released", [True, False])
def test_a_step_is_pulled_after_the_optimizer(start, name, released):
    """A single step is pulled by the whole strength, towards the values before it."""
    changes = {
        "steps": 1, "gradient_release": released, "ema": True,
        "optimizer": {"name": name, "learning_rate": 1e-2, "weight_decay": 0.1},
    }  # fmt: skip
    plain, pulled = start(**changes), start(strength=0.7, **changes)
    before = values(plain)
    for session in (plain, pulled):
        session.step()
    shrink = math.exp(-0.7)
    expected = [old + shrink * (new - old) for old, new in zip(before, values(plain), strict=True)]
    assert furthest(values(pulled), expected) < 1e-6 < furthest(values(plain), expected)
    # The average follows the pulled weights: at the first update by 1 - 2 / 11.
    average = [old + 9 / 11 * (new - old) for old, new in zip(before, expected, strict=True)]
    with pulled.averaged():
        assert furthest(values(pulled), average) < 1e-6


@pytest.mark.parametrize("format", ["24 bit", "bf16"])
@pytest.mark.parametrize("released", [True, False])
def test_stored_weights_are_pulled_before_they_are_rounded(start, format, released):
    """bf16 rounded twice would lose twice as much; its error is at most one unit either way."""
    lean = {**LEAN, "weights": format, "gradient_release": released, "steps": 1}
    lean["optimizer"] = {"learning_rate": 1e-2, "max_grad_norm": 0.0}
    plain, pulled = start(**lean), start(strength=3.0, **lean)
    origin = values(start(optimizer={}))
    for session in (plain, pulled):
        session.step()
    unit = {"24 bit": 2**-15, "bf16": 2**-7}[format]
    for old, new, found in zip(origin, values(plain), values(pulled), strict=True):
        expected = old + math.exp(-3.0) * (new - old)
        assert ((found - expected).abs() <= unit * (new.abs() + old.abs()) + 1e-6).all()
    assert furthest(values(pulled), origin) < furthest(values(plain), origin) / 2


def test_the_pull_does_not_accumulate_rounding_errors_in_24_bits(start):
    """Weights that nothing else moves return to the file's values."""
    lean = {**LEAN, "steps": 3, "optimizer": {"learning_rate": 1e-12, "weight_decay": 0.0}}
    session = start(strength=40.0, **lean)
    origin = values(session)
    generator = torch.Generator().manual_seed(0)
    for parameter in session.parameters:
        weights.write(parameter.data, weights.value(parameter) + 0.1, generator)
    assert furthest(values(session), origin) > 0.09
    for _ in range(3):
        session.step()
    assert furthest(values(session), origin) < 1e-4


def test_a_skipped_fp16_step_pulls_nothing(start):
    session = start(strength=5.0, steps=1, precision="fp16")
    with torch.no_grad():
        for parameter in session.parameters:
            parameter.add_(0.01)
    moved = values(session)
    handle = overflow(session.model)
    assert session.step() is None
    assert furthest(values(session), moved) == 0
    handle.remove()
    while session.step() is None:
        pass
    assert furthest(values(session), moved) > 0.005


@pytest.mark.parametrize("accumulation", [1, 3])
def test_passes_of_a_step_share_one_pull(start, accumulation):
    changes = {"steps": 1, "gradient_accumulation": accumulation}
    plain, pulled = start(**changes), start(strength=1.0, **changes)
    before = values(plain)
    assert plain.step().loss == pulled.step().loss
    expected = [
        old + math.exp(-1) * (new - old) for old, new in zip(before, values(plain), strict=True)
    ]
    assert furthest(values(pulled), expected) < 1e-6


def test_the_change_of_a_lora_is_pulled_to_nothing(start):
    """Its second matrix to zeros, and DoRA's norms to those of the layer. The first one is free."""
    session = start(LoRA(rank=2, dora=True), strength=50.0, steps=2)
    names = [name for part in session.trainable.parts
             for name in session.trainable.part_tensors(part)]  # fmt: skip
    before = dict(zip(names, values(session), strict=True))
    session.step()
    session.step()
    after = dict(zip(names, values(session), strict=True))
    for name in names:
        is_free = name.endswith("lora_down.weight")
        assert (furthest([after[name]], [before[name]]) > 5e-5) == is_free
        if name.endswith("lora_up.weight"):
            assert after[name].abs().max() < 1e-6
    assert sum(name.endswith("dora_scale") for name in names) > 3


def test_a_lora_that_is_trained_further_is_pulled_to_its_file(tmp_path, start):
    first = start(LoRA(rank=2))
    first.step()
    path = saved(first, tmp_path)
    session = start(LoRA(start=path), strength=50.0, steps=1)
    before = values(session)
    assert max(value.abs().max().item() for value in before) > 0
    session.step()
    assert furthest(values(session), before) < 1e-6


def test_learned_vectors_are_pulled_to_their_first_values(start, tiny_model):
    method = TextualInversion(placeholder="<tok>", initializer="dog", templates="captions")
    one = {"caption": "a photo of <tok>", "steps": 1, "optimizer": {"learning_rate": 1e-3}}
    plain, pulled = start(method, **one), start(method, strength=0.5, **one)
    before = values(plain)
    for session in (plain, pulled):
        session.step()
    moves = [furthest(values(session), before) for session in (plain, pulled)]
    assert moves[1] == pytest.approx(math.exp(-0.5) * moves[0], rel=1e-3)

    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.full((1, 24), 0.02)}))
    both = FullFineTune(train_embedding=True)
    session = begin(tiny_model, both, caption="a <tok>", steps=1, optimizer={"anchor": 50.0})
    before = values(session)
    session.step()
    assert furthest(values(session), before) < 1e-6


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tiny_sd2_checkpoint", "tiny_xl_checkpoint"])
def test_initial_values_are_those_of_the_file(request, kind):
    model = families.load(request.getfixturevalue(kind), CPU)
    for part, module in model.parts().items():
        parameters = list(module.parameters())
        found = model.initial_values(part)
        for parameter, value in zip(parameters, found, strict=True):
            assert torch.equal(value, parameter)
            assert value.data_ptr() != parameter.data_ptr()


@pytest.mark.posix
def test_initial_values_stay_in_the_files_format_and_are_not_copied(
    save_fp16_checkpoint, four_levels, tmp_path
):
    path = save_fp16_checkpoint(four_levels, tmp_path / "half.safetensors")
    session = begin(families.load(path, CPU), BOTH, optimizer={"anchor": 1.0})
    anchor = session.gradient_step._anchor
    origins = [anchor._origins[parameter].value for parameter in session.parameters]
    assert {origin.dtype for origin in origins} == {torch.float16}
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[0].split("-") for line in maps if path.name in line]
    ranges = [(int(first, 16), int(last, 16)) for first, last in mapped]
    assert all(any(a <= o.data_ptr() < b for a, b in ranges) for o in origins)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (BOTH, {}),
        (BOTH, {"precision": "fp16"}),
        (BOTH, {"ema": True, "gradient_accumulation": 2, "gradient_release": True}),
        (BOTH, {**LEAN, "ema": True, "optimizer": {"name": "AdamW8bit"}}),
        (BOTH, {**LEAN, "weights": "bf16", "offload": True}),
        (LoRA(rank=2, dora=True, train_text_encoder=True), {"ema": True}),
    ],
    ids=["plain", "fp16", "released", "24 bit", "bf16", "DoRA"],
)
def test_a_resumed_run_ends_with_the_same_weights(start, method, changes):
    changes = {"steps": 13, **changes}
    whole = start(method, strength=3.0, **changes)
    for _ in range(5):
        whole.step()
    state = copy.deepcopy(whole.state())
    resumed = start(method, strength=3.0, **changes)
    resumed.load_state(state)
    for _ in range(8):
        whole.step()
        resumed.step()
    assert furthest(values(whole), values(resumed)) == 0
    with whole.averaged(), resumed.averaged():
        assert furthest(values(whole), values(resumed)) == 0


def test_a_model_with_loras_is_pulled_to_the_changed_weights(start, tiny_checkpoint, tmp_path):
    first = start(LoRA(rank=2), optimizer={"learning_rate": 0.1})
    first.step()
    model = families.load(
        tiny_checkpoint, CPU, options=ModelOptions(loras=(saved(first, tmp_path),))
    )
    session = begin(model, steps=1, optimizer={"anchor": 50.0})
    before = values(session)
    assert furthest(before, values(start(FullFineTune()))) > 1e-3
    session.step()
    assert furthest(values(session), before) < 1e-6

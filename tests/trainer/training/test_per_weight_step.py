"""Weights that are updated one by one, against a run that updates all of them together."""

import copy
import math

import pytest
import torch
from torch import Tensor

from tests.trainer.training.sessions import FRAMING, begin, latents
from trainer import families, weights
from trainer.data.batches import BatchStream
from trainer.data.latents import CachedLatents
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import PriorConfig
from trainer.training.session import Session

PER_WEIGHT = [name for name, choice in OPTIMIZERS.items() if choice.is_per_weight]
BOTH = FullFineTune(train_text_encoder=True)
LEAN = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}


@pytest.fixture
def start(tiny_checkpoint):
    """Begins a session on a newly loaded model."""

    def start(method: FullFineTune = BOTH, **changes: object) -> Session:
        model = families.load(tiny_checkpoint, torch.device("cpu"))
        return begin(model, method, **changes)

    return start


def values(session: Session) -> Tensor:
    """All trained weights as one vector."""
    return torch.cat([weights.value(p).flatten() for p in session.parameters])


def changed(session: Session, other: Session) -> float:
    return (values(session) - values(other)).abs().max().item()


@pytest.mark.parametrize("name", [name for name in PER_WEIGHT if not OPTIMIZERS[name].on_matrices])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation": 3},
        {"gradient_checkpointing": True, "precision": "bf16"},
        {"prior": PriorConfig(weight=0.7, prompt="a dog"), "batch_size": 2},
        {"ema": True},
    ],
    ids=["plain", "accumulated", "checkpointed", "class images", "average"],
)
def test_released_gradients_give_the_same_weights(start, name, changes):
    plain = {"name": name, "max_grad_norm": 0.0, "lr_schedule": "linear", "weight_decay": 0.1}
    method = FullFineTune(train_text_encoder=True, text_encoder_stop_step=2)
    changes = {"steps": 4, "optimizer": plain, **changes}
    sessions = start(method, **changes), start(method, gradient_release=True, **changes)
    for _ in range(4):
        expected, report = (session.step() for session in sessions)
        assert (report.loss, report.learning_rates) == (expected.loss, expected.learning_rates)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert changed(*sessions) == 0
    if sessions[0].ema:
        pairs = zip(*(session.ema.averages for session in sessions), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_images_of_other_shapes_add_to_the_same_gradient(tiny_checkpoint):
    """Each shape has its own backward pass, and only the last one updates the weights."""
    sessions = []
    for is_released in (False, True):
        session = begin(
            families.load(tiny_checkpoint, torch.device("cpu")),
            batch_size=4,
            gradient_release=is_released,
            optimizer={"max_grad_norm": 0.0},
        )
        photos = latents(2, "a sks dog", is_prior=False)
        (tall, _) = photos
        shape = (4, 16, 8)
        photos[tall] = CachedLatents(torch.ones(shape), torch.full(shape, 0.1), FRAMING)
        session.batches = BatchStream(photos, {}, session.config)
        assert len(next(copy.deepcopy(session.batches))) == 2
        session.step()
        sessions.append(session)
    assert changed(*sessions) == 0


@pytest.mark.parametrize("is_released", [True, False])
@pytest.mark.parametrize("format", ["fp32", "24 bit", "bf16"])
@pytest.mark.parametrize("name", PER_WEIGHT)
def test_a_resumed_run_ends_with_the_same_weights(start, name, format, is_released):
    changes = {
        "weights": format, "gradient_release": is_released, "precision": "bf16", "ema": True,
        "offload": is_released, "optimizer": {"name": name},
    }  # fmt: skip
    whole = start(**changes)
    for _ in range(2):
        whole.step()
    state = copy.deepcopy(whole.state())
    whole.step()
    resumed = start(**changes)
    resumed.load_state(state)
    resumed.step()
    assert changed(whole, resumed) == 0
    with whole.averaged(), resumed.averaged():
        assert changed(whole, resumed) == 0


@pytest.mark.parametrize("limit", [1e-3, 1e6, 0.0])
def test_gathered_gradients_are_clipped_to_the_norm_of_all(start, limit):
    session = start(weights="24 bit", precision="bf16", optimizer={"max_grad_norm": limit})
    step, seen = session.gradient_step, []
    update = step.update_weights

    def look(number: int) -> bool:
        gradients = [p.grad.float() for p in session.parameters if p.grad is not None]
        seen.append(math.hypot(*(gradient.norm().item() for gradient in gradients)))
        return update(number)

    step.update_weights = look
    norm = session.step().grad_norm
    assert seen == [pytest.approx(limit if limit == 1e-3 else norm, rel=1e-2)]
    assert all(parameter.grad is None for parameter in session.parameters)


def test_at_most_one_gradient_of_a_large_weight_exists_at_a_time(start):
    session, held = start(**LEAN), []
    update = session.gradient_step._update

    def count(index: int, parameter: Tensor) -> None:
        held.append(sum(p.grad is not None for p in session.parameters if weights.is_large(p)))
        update(index, parameter)

    session.gradient_step._update = count
    session.step()
    assert held == [1] * len(list(filter(weights.is_large, session.parameters)))


def test_released_gradients_are_not_clipped_and_this_is_said(start, caplog):
    start(**LEAN)
    assert caplog.messages == [
        "max_grad_norm (1) is not applied, because gradient_release discards each gradient before "
        "the norm of all is known."
    ]
    caplog.clear()
    start(optimizer={"max_grad_norm": 0.0}, **LEAN)
    assert not caplog.messages


def test_a_loss_that_is_nan_changes_no_weight(start):
    session = start(**LEAN)
    before = values(session)
    with torch.no_grad():
        session.model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="^The loss became nan at step 1"):
        session.step()
    with torch.no_grad():
        session.model.unet.conv_out.bias.zero_()
    assert (values(session) != before).sum() <= session.model.unet.conv_out.bias.numel()


def test_gradients_that_are_nan_end_the_run(start):
    """The weights have changed by then, so the state of the last step stays the newest."""
    session = start(**LEAN)
    session.step()
    session.model.unet.conv_in.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="^The gradient became nan at step 2"):
        session.step()
    assert not session.is_whole
    assert len(session.reports) == 1


def test_a_session_interrupted_in_the_backward_pass_is_not_whole(start):
    session = start(**LEAN)
    session.step()

    def interrupt(_: Tensor) -> None:
        raise KeyboardInterrupt

    session.model.unet.conv_in.weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.step()
    assert not session.is_whole


def test_an_embedding_is_trained_with_a_lean_model(tiny_model):
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    method = FullFineTune(train_text_encoder=True, train_embedding=True)
    session = begin(tiny_model, method, caption="a photo of <tok>", **LEAN)
    session.step()
    (vectors,) = tiny_model.learned_vectors["<tok>"].values()
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, torch.ones(1, 24))

"""From a state to a session that goes on from it, also from one of another numerics version."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from ..storage import states
from . import numerics
from .numerics import NUMERICS_VERSION

if TYPE_CHECKING:
    from ..training.session import Session

logger = logging.getLogger(__name__)


def resume(session: Session, folders: Sequence[Path], *, up_to: int) -> tuple[Path, int] | None:
    """Of the states in these folders up to a step, load the newest that fits into a new session;
    gives its file and numerics version, None if training begins at step 1. Those of another version
    that do not fit are put aside."""
    mmap = session.model.device.type != "cpu"
    has_failed = False
    while found := states.load_newest(folders, up_to=up_to, mmap=mmap):
        path, state = found
        version = state.get(numerics.KEY, 0)
        if version == NUMERICS_VERSION:
            session.load_state(state)
            return path, version
        made_by, fault = numerics.describe(version), _load(state, session)
        if not fault:
            logger.warning(
                "The state of step %d was made by %s. Training goes on from it with this one's; "
                "set on_existing to retrain to begin at step 1.", len(session.reports), made_by,
            )  # fmt: skip
            return path, version
        del found, state  # Windows renames no file that is still mapped
        logger.warning(
            "The state '%s' was made by %s, and does not fit into this one (%s). It is not used, "
            "and kept as '%s'.", path, made_by, fault, states.put_aside(path, ".unusable").name,
        )  # fmt: skip
        has_failed = True
    if has_failed:
        logger.warning("There is no other state, so training begins at step 1.")
    return None


def _load(state: Mapping[str, Any], session: Session) -> str:
    """Why the session cannot load a state of another version, and is as it was before; "" if it
    could."""
    before = _as_it_begins(session)
    try:
        session.load_state(state)
    except memory.OUT_OF_MEMORY:
        raise
    except Exception as error:  # what another version wrote can lack or hold anything
        session.load_state(before)
        return repr(error)
    return ""


def _as_it_begins(session: Session) -> dict[str, Any]:
    """The state of a session that has made no step, with its weights on the CPU: the device may
    have no room for them twice. The average still equals the weights."""
    state = session.state()
    weights = [weight.to("cpu", copy=True) for weight in state.pop("parameters")]
    average = state.pop("average") and {"averages": weights, "num_updates": 0}
    return {**copy.deepcopy(state), "parameters": weights, "average": average}

"""Resume a session from a saved state, including states of other numerics versions."""

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
    """Load the newest usable state of at most `up_to` steps from these folders into a new session.
    States of another numerics version that cannot be loaded are renamed.

    Return the state's file and numerics version. None: there is no state, so training starts at
    step 1. Raises ValueError if a state of the current version cannot be loaded.
    """
    mmap = session.model.device.type != "cpu"
    has_failed = False
    while found := states.load_newest(folders, up_to=up_to, mmap=mmap):
        path, state = found
        version = state.get(numerics.KEY, 0)
        if version == NUMERICS_VERSION:
            _load(path, state, session)
            return path, version
        made_by, fault = numerics.describe(version), _try_to_load(state, session)
        if not fault:
            logger.warning(
                "The state of step %d was made by %s. Training continues from it with the current "
                "version; set on_existing to retrain to start over.", len(session.reports), made_by,
            )  # fmt: skip
            return path, version
        del found, state  # Windows cannot rename a file that is still mapped
        logger.warning(
            "The state '%s' was made by %s. It cannot be loaded (%s), so it is not used, and kept "
            "as '%s'.", path, made_by, fault, states.put_aside(path, ".unusable").name,
        )  # fmt: skip
        has_failed = True
    if has_failed:
        logger.warning("There is no other state, so training starts at step 1.")
    return None


def _load(path: Path, state: Mapping[str, Any], session: Session) -> None:
    try:
        session.load_state(state)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The state '{path}' does not belong to this run ({error!r}). Delete it, then run the "
            "same again."
        ) from error


def _try_to_load(state: Mapping[str, Any], session: Session) -> str:
    """Load a state of another version. Return "", or the error, in which case the session is
    unchanged."""
    before = _initial_state(session)
    try:
        session.load_state(state)
    except memory.OUT_OF_MEMORY:
        raise
    except Exception as error:  # a state of another version can lack or contain anything
        session.load_state(before)
        return repr(error)
    return ""


def _initial_state(session: Session) -> dict[str, Any]:
    """The state of a session before its first step. Its weights are copied to the CPU, because the
    device may not have enough memory for two copies. The average still equals the weights."""
    state = session.state()
    parts = {
        name: [part if part is None else part.to("cpu", copy=True) for part in state.pop(name)]
        for name in ("parameters", "rests")
    }
    average = state.pop("average") and {
        "averages": parts["parameters"], "rests": parts["rests"], "num_updates": 0,
    }  # fmt: skip
    return {**copy.deepcopy(state), **parts, "average": average}

"""The runs that are missing, as one task each, and the worker processes for them."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

import torch

from .experiments import EXPERIMENTS
from .recipes import Recipe, Workshop
from .scores import Point, ScoreBook, measure_point

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """The measurements of the models of one run. One worker makes them."""

    run: Recipe
    seed: int
    points: tuple[Point, ...]


def tasks(
    letters: Iterable[str], seeds: Sequence[int], done: set[str], *, is_quick: bool
) -> list[Task]:
    """The missing measurements, one experiment after the other, each point once."""
    found, taken = [], set(done)
    for letter in letters:
        groups: dict[tuple[int, Recipe], list[Point]] = {}
        for seed in seeds:
            for point in EXPERIMENTS[letter].points.values():
                key = point.key(seed, is_quick=is_quick)
                if key not in taken:
                    taken.add(key)
                    groups.setdefault((seed, point.recipe.run), []).append(point)
        found += [Task(run, seed, tuple(points)) for (seed, run), points in groups.items()]
    return found


def work(workshop: Workshop, book: ScoreBook, task: Task) -> None:
    for point in task.points:
        try:
            measure_point(workshop, book, point, task.seed)
        except FloatingPointError as error:
            logger.warning("Seed %d of %s failed: %s", task.seed, point, error)


def run_all(workshop: Workshop, book: ScoreBook, pending: list[Task], workers: int) -> None:
    """Run all tasks, but never two of the same run at once, because the second would find it
    locked."""
    running: dict[Future[None], Task] = {}
    total = len(pending)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        while pending or running:
            busy = {(task.run, task.seed) for task in running.values()}
            free = [task for task in pending if (task.run, task.seed) not in busy]
            for task in free[: workers - len(running)]:
                if (task.run, task.seed) not in busy:
                    busy.add((task.run, task.seed))
                    pending.remove(task)
                    running[pool.submit(work, workshop, book, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                task = running.pop(future)
                left = len(pending) + len(running)
                logger.info("%d of %d: seed %d, %s", total - left, total, task.seed, task.run)


def _start_worker() -> None:
    """Use one thread per worker: two threads that wait for each other are slower than one."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

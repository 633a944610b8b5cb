"""`python -m benchmarks.article`: run the experiments that are missing, then write the page.

You can stop it at any time and run it again to continue."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from .experiments import EXPERIMENTS
from .page import write_page
from .recipes import Workshop
from .scores import ScoreBook
from .subjects import SUBJECTS, photos
from .tasks import run_all, tasks

ORDER = "achedbfgijklm"
"""The order of the experiments, the most important first."""
SEEDS = (0, 1, 2)
DOCS = Path("docs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=EXPERIMENTS,
        default=list(ORDER),
        metavar="LETTER",
        help=f"experiments to run, of {' '.join(EXPERIMENTS)}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/article"), help="where runs and scores are stored"
    )
    parser.add_argument("--page-only", action="store_true", help="only write the page")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the steps, to test the program; the page goes to --folder",
    )
    arguments = parser.parse_args()  # fmt: skip
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    workshop = Workshop(folder=arguments.folder, is_quick=arguments.quick)
    book = ScoreBook(arguments.folder)
    if not arguments.page_only:
        workshop.class_images()
        for subject in SUBJECTS:
            photos(subject, workshop.folder)
        pending = tasks(
            arguments.only, arguments.seeds, set(book.read()), is_quick=workshop.is_quick
        )
        try:
            run_all(workshop, book, pending, arguments.workers)
        except KeyboardInterrupt:
            raise SystemExit("Stopped. Run the same command again to continue.") from None
    docs = arguments.folder / "docs" if arguments.quick else DOCS
    write_page(docs, book, arguments.seeds, arguments.only, is_quick=workshop.is_quick)


if __name__ == "__main__":
    main()

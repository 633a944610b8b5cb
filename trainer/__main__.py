"""The command line: `python -m trainer train | lora | textual-inversion | priors | sample |
compare | score | extract-lora | apply-lora | inspect | runs | plan | demo`."""

from __future__ import annotations

import logging
import sys

from . import packages


def main(arguments: list[str]) -> int:
    """Run a command. Return the exit code: 0 if everything requested was done."""
    try:
        from .cli import program
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a damaged package raises all sorts
        logging.getLogger(__name__).error("%s", packages.not_imported(error))
        return 1
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

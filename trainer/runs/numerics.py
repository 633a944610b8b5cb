"""The version of the numbers that training gives. Runs made under another version are found and
resumed all the same, and say so.

Raise it by one, in the same commit, when a change

- gives other losses or weights than before, by more than rounding, for any settings, images and
  base model: another formula, default, draw, order of draws, preprocessing or class image;
- makes states of stopped runs unusable (`Session.state`).

Leave it for everything else: messages, charts, speed, memory, new settings that do nothing at their
defaults. `tests/trainer/runs/test_numerics.py` fails when numbers change and the version does not;
it cannot see every setting, so when in doubt, raise it.

0: runs that were begun before versions were counted.
1: the first version that is counted.
"""

NUMERICS_VERSION = 1
KEY = "numerics"
"""Of the version in a run's manifest and states; where it is missing, the version is 0."""


def describe(version: int) -> str:
    """How a user hears of the version that made something, where it is not this one."""
    age = "an older" if version < NUMERICS_VERSION else "a newer"
    return (
        f"{age} version of the trainer, whose numbers may differ (numerics version {version}, now "
        f"{NUMERICS_VERSION})"
    )

"""The version of the numerical results of training. Runs made with another version are still reused
and resumed, with a warning.

Increase it by one, in the same commit, when a change

- produces other losses or weights than before, by more than rounding, for any settings, images and
  base model: a different formula, default, random draw, order of draws, preprocessing or class
  image;
- makes the states of stopped runs unusable (`Session.state`).

Do not increase it for anything else: messages, charts, speed, memory, new settings that do nothing
at their defaults. `tests/trainer/runs/test_numerics.py` fails when numbers change and the version
does not. It cannot cover every setting: when in doubt, increase the version.

0: runs from before versions were counted.
1: the first counted version.
2: grey photos with alpha are converted by their colour profile, and uncompressed TIFF files that
   are stored turned are no longer scrambled.
3: dropout of LoRAs is drawn for each image by itself.
"""

NUMERICS_VERSION = 3
KEY = "numerics"
"""The key of the version in manifests and states. If it is missing, the version is 0."""


def describe(version: int) -> str:
    """The version that made a run or state, for messages, if it is not the current one."""
    age = "an older" if version < NUMERICS_VERSION else "a newer"
    return (
        f"{age} version of the trainer, whose results may differ (numerics version {version}, now "
        f"{NUMERICS_VERSION})"
    )

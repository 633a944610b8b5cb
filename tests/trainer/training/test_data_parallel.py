"""Runs of two processes, compared with runs of one. `benchmarks.scaling` does so for all kinds of
settings."""

from tests.trainer.torchrun import torchrun


def test_two_processes_train_as_one():
    settings = [
        "text encoder stops after step 2, taught",
        "sharded, moving average, pulled back, text encoder stops, photos of three shapes",
    ]
    done = torchrun(2, "-m", "benchmarks.scaling", "--steps", "3", "--only", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == settings

"""The GPU program without a GPU: its messages, the order of its stages, what it writes, and its
measurements of a tiny model on the CPU."""

from __future__ import annotations

import gc
import json
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPTextModel

from benchmarks.gpu import bench as measuring
from benchmarks.gpu import (
    device_tests,
    goals,
    launches,
    page,
    reference,
    training,
    watched_script,
    whole_run,
)
from benchmarks.gpu.__main__ import NO_GPU, find_facts, main
from benchmarks.gpu.bench import ROOT, Bench, LeftOut, OutOfTime
from benchmarks.gpu.random_model import SD15, TINY, plan, write_folder
from benchmarks.gpu.results import Results, read
from benchmarks.gpu.stages import Stage, run_stages
from benchmarks.gpu.training import CLASS, TEXT, UNET, Setting, measure_each
from benchmarks.random_networks import XL_UNET, construct_unet
from trainer.families.tokenizer import ClipTokenizer
from trainer.settings.config import SamplingConfig

CPU = torch.device("cpu")
NEVER = float("inf")
FACTS = {"card": "Some Card", "driver": "1.2", "torch": "2.13"}
SETTING = Setting(
    trains=UNET, batch_size=1, precision="fp32", optimizer="AdamW", gradient_checkpointing=False
)
ROW = {"trains": UNET, "batch_size": 4, "precision": "bf16", "optimizer": "AdamW8bit",
       "gradient_checkpointing": True, "channels_last": False, "allocated": 11.5,
       "reserved": 12.25, "besides": 0.5, "steps_per_second": [2.0, 2.5, 2.25]}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(device=CPU, shape=TINY, folder=tmp_path_factory.mktemp("bench"))


# -------------------------------------------------------------- without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends(tmp_path: Path, capsys):
    assert main(["--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == NO_GPU + "\n"
    assert list(tmp_path.iterdir()) == []


def test_the_stages_are_listed_and_include_all_settings(capsys):
    assert main(["--list"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:2] == ["tests", "bf16-adamw8bit-checkpointed"]
    assert len(set(names)) == len(names)
    assert set(names) >= {
        f"{precision}-{optimizer}{checkpointed}"
        for precision in ("fp32", "fp16", "bf16")
        for optimizer in ("adamw", "adamw8bit")
        for checkpointed in ("", "-checkpointed")
    }


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--stages", "fp64"])
    assert "invalid choice: 'fp64'" in capsys.readouterr().err


def test_the_page_in_the_docs_is_the_programs(tmp_path: Path):
    docs = ROOT / "docs"
    assert (docs / "gpu.md").read_text("utf-8") == page.to_text(read(docs))
    assert "No figures yet" in page.to_text(read(tmp_path))


def test_every_test_of_the_folder_has_the_gpu_marker():
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    assert len(files) >= 5
    for file in files:
        assert "\npytestmark = pytest.mark.gpu\n" in file.read_text("utf-8"), file.name


# --------------------------------------------------------------------- stages


def stage(name: str, run, seconds: float = 60) -> Stage:
    return Stage(name=name, kind="training", what=f"what {name} measures", seconds=seconds,
                 run=run, describe=training.describe)  # fmt: skip


def begin(folder: Path, facts: dict[str, str] = FACTS, *, keeps_others: bool = False) -> Results:
    return Results(folder, facts, keeps_others=keeps_others)


def run(stages: list[Stage], folder: Path, deadline: float = NEVER) -> tuple[bool, dict]:
    is_fine = run_stages(stages, None, begin(folder), deadline)
    return is_fine, read(folder)["Some Card"]["stages"]


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path: Path):
    def failing(bench, deadline):
        yield ROW
        raise ValueError("no such thing\nand more")

    def late(bench, deadline):
        yield ROW
        raise OutOfTime

    def unfit(bench, deadline):
        raise LeftOut("it is not here")
        yield

    def partly(bench, deadline):
        yield {**ROW, "error": "RuntimeError: bad kernel"}
        yield ROW

    runs = {"a": failing, "b": late, "c": unfit, "d": partly, "e": lambda *_: iter([ROW])}
    is_fine, stages = run([stage(name, run) for name, run in runs.items()], tmp_path)
    assert not is_fine
    assert {n: (s["status"], s["reason"], len(s["rows"])) for n, s in stages.items()} == {
        "a": ("failed", "ValueError: no such thing", 1),
        "b": ("unfinished", "its time was up", 1),
        "c": ("left out", "it is not here", 0),
        "d": ("failed", "RuntimeError: bad kernel", 2),
        "e": ("done", "", 1),
    }
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert "- what c measures: left out (it is not here)\n" in text
    assert "what e measures" not in text


def test_each_row_is_on_the_page_before_the_next_is_measured(tmp_path: Path):
    def two(bench, deadline):
        yield {**ROW, "allocated": 3.25}
        assert "| 3.25 GB |" in (tmp_path / "gpu.md").read_text("utf-8")
        assert "- what a measures: unfinished (it was interrupted)" in (
            tmp_path / "gpu.md"
        ).read_text("utf-8")
        yield ROW

    assert run([stage("a", two)], tmp_path)[0]


def test_stages_end_at_their_own_time_limit_and_at_that_of_all(tmp_path: Path):
    deadlines = []

    def noting(bench, deadline):
        deadlines.append(deadline)
        yield ROW

    now = time.monotonic()
    run([stage("a", noting, seconds=30), stage("b", noting, seconds=3000)], tmp_path, now + 1000)
    assert deadlines[0] == pytest.approx(now + 30, abs=5)
    assert deadlines[1] == now + 1000
    is_fine, stages = run([stage("c", noting)], tmp_path, now)
    assert is_fine
    assert (stages["c"]["status"], stages["c"]["reason"]) == ("left out", "the time was up")
    assert len(deadlines) == 2


# -------------------------------------------------------------------- results


def measured(folder: Path, results: Results, *names: str) -> list[str]:
    run_stages([stage(name, lambda *_: iter([ROW])) for name in names], None, results, NEVER)
    return [f"{card} {name}" for card, found in read(folder).items() for name in found["stages"]]


def test_measuring_a_card_again_only_replaces_that_card(tmp_path: Path):
    measured(tmp_path, begin(tmp_path), "a", "b")
    measured(tmp_path, begin(tmp_path, {"card": "Other"}), "a")
    assert measured(tmp_path, begin(tmp_path), "c") == ["Some Card c", "Other a"]


def test_chosen_stages_keep_the_others_if_the_versions_are_the_same(tmp_path: Path):
    measured(tmp_path, begin(tmp_path), "a", "b")
    again = begin(tmp_path, keeps_others=True)
    assert measured(tmp_path, again, "a", "c") == ["Some Card a", "Some Card b", "Some Card c"]
    newer = begin(tmp_path, {**FACTS, "torch": "2.14"}, keeps_others=True)
    assert measured(tmp_path, newer, "b") == ["Some Card b"]


def test_the_facts_include_everything_that_affects_measurements():
    facts = find_facts(CPU)
    assert facts["card"] == "CPU"
    assert facts["torch"] == torch.__version__
    assert facts["diffusers"].count(".") == 2


# ----------------------------------------------------------------------- page


PAGE = """\
## Some Card

|  |  |
| --- | --- |
| card | Some Card |
| driver | 1.2 |
| torch | 2.13 |
| measured on | 2026-11-26 |

### Tests

3 passed, 1 failed.
- test_a - 1&lt;0

### Training

| precision | optimizer | options | training | batch | allocated | reserved | steps/s | photos/s |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
| bf16 | AdamW8bit | checkpointing | U-Net | 4 | 11.50 GB | 12.25 GB | 2.25 (2.00 to 2.50) | 9.0 |
| bf16 | AdamW8bit | checkpointing, channels last | U-Net | 1 | 11.50 GB | 12.25 GB | 4.00 (4.00 to 4.00) | 4.0 |
| bf16 | AdamW8bit | checkpointing | U-Net and text encoder | 4 | out of memory | – | – | – |

In addition to PyTorch's reserved memory, up to 0.50 GB were in use.

### Memory goals

| training | optimizer | options | goal | allocated | reserved | steps/s | of peak |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
| U-Net | AdamW8bit | checkpointing, gradient release, 24 bit | 5.00 GB | 11.50 GB | 12.25 GB | 2.25 (2.00 to 2.50) | 42% |
| U-Net | AdamW8bit | checkpointing | 9.00 GB | out of memory | – | – | – |

### Launches and syncs

| training | optimizer | options | launches | syncs |
| --- | --- | --- | ---: | ---: |
| U-Net | AdamW8bit | checkpointing | 2345 | 2.0 |
| U-Net | AdamW8bit | checkpointing | failed | – |

### 8-bit AdamW

| step | milliseconds |
| --- | ---: |
| ours | 21.0 (20.0 to 25.0) |
| its | failed |

### From photos to a file

All of it, 10 steps, into a file of 1.99 GB. Peak memory: 9.00 GB allocated, 10.00 GB reserved; the run itself reports 9.00 GB.

| part | seconds |
| --- | ---: |
| steps | 2.0 |
| writing | 0.5 |
| all | 2.5 |

### diffusers' train_dreambooth.py

With bf16, AdamW8bit and gradient checkpointing. Memory is the peak of allocated memory. The script encodes the photos at every step, ours once before the first.

| training | batch | its memory | ours | its steps/s | ours | ours/its |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| U-Net | 4 | 14.50 GB | 11.50 GB | 1.50 (1.50 to 1.50) | 2.25 (2.00 to 2.50) | 1.50 |
| U-Net | 1 | failed | – | – | – | – |

### What is missing

- the training: left out (the time was up)

## Other

|  |  |
| --- | --- |
| card | Other |
"""  # noqa: E501


def of(kind: str, *rows: dict, status: str = "done", reason: str = "") -> dict:
    return {"kind": kind, "what": f"the {kind}", "date": "2026-11-26", "seconds": 1.0,
            "status": status, "reason": reason, "rows": list(rows)}  # fmt: skip


def test_the_page_shows_what_was_measured():
    slow = {**ROW, "batch_size": 1, "steps_per_second": [4.0], "channels_last": True}
    stages = {
        "tests": of("tests", {"outcomes": {"passed": 3, "failed": 1}, "failed": ["test_a - 1<0"]}),
        "steps": of("training", ROW, slow, {**ROW, "trains": TEXT, "is_out_of_memory": True}),
        "run": of("run", {"what": "All of it", "seconds": {"steps": 2.0, "writing": 0.5},
                          "steps": 10, "file": 1.99, "allocated": 9.0, "reserved": 10.0,
                          "reported": 9.0}),
        "its": of("reference", {**ROW, "allocated": 14.5, "steps_per_second": [1.5]},
                  {**ROW, "batch_size": 1, "error": "none"}),
        "goals": of("goal", {**ROW, "weights": "24 bit", "gradient_release": True, "goal": 5.0,
                             "share": 0.42}, {**ROW, "goal": 9.0, "is_out_of_memory": True}),
        "launches": of("launches", {**ROW, "launches": 2345.0, "syncs": 2.0},
                       {**ROW, "error": "none"}),
        "optimizer": of("optimizer", {"what": "ours", "milliseconds": [20.0, 25.0, 21.0]},
                        {"what": "its", "error": "none"}),
        "more": of("training", status="left out", reason="the time was up"),
    }  # fmt: skip
    text = page.to_text({"Some Card": {"facts": FACTS, "stages": stages}, "Other": {
        "facts": {"card": "Other"}, "stages": {}}})  # fmt: skip
    assert "No figures yet" not in text
    assert text[text.index("## Some Card") :] == PAGE


# ------------------------------------------------------------------ measuring


def test_the_real_shape_is_stable_diffusion_15s():
    counts = [sum(p.numel() for p in network.parameters()) for network in plan(SD15)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_steps_are_measured_and_free_their_memory(bench: Bench, monkeypatch):
    models = []
    attach = training.FullFineTune.attach
    monkeypatch.setattr(
        training.FullFineTune, "attach",
        lambda method, model, *rest: models.append(weakref.ref(model))
        or attach(method, model, *rest),
    )  # fmt: skip
    monkeypatch.setattr(training, "INTERVAL_SECONDS", 0.0)
    settings = [
        replace(SETTING, trains=TEXT, precision="bf16", gradient_checkpointing=True),
        replace(SETTING, optimizer="none"),
        replace(SETTING, trains=CLASS, batch_size=2, optimizer="AdamW8bit"),
    ]
    rows = list(measure_each(settings, bench, NEVER))
    assert [row.get("error", "").split(":")[0] for row in rows] == ["", "KeyError", ""]
    for row in (rows[0], rows[2]):
        assert len(row["steps_per_second"]) == training.INTERVALS
        assert all(rate > 0 for rate in row["steps_per_second"])
        assert row["allocated"] is None  # not counted on the CPU
    json.dumps(rows)
    gc.collect()
    assert [model() for model in models] == [None] * 3


def test_goals_are_measured_also_of_the_next_family(bench: Bench, monkeypatch):
    monkeypatch.setattr(training, "INTERVAL_SECONDS", 0.0)
    rows = list(goals.measure_goals(bench, NEVER))
    assert [row.get("error") for row in rows] == [None] * 7
    assert [row["goal"] for row in rows] == [5.0, 7.0, 3.0, 9.0, 7.3, 7.2, 5.1]
    loras = [row for row in rows if "LoRA" in row["trains"]]
    assert [row["frozen_weights"] for row in loras] == ["precision", "precision", "8 bit"]
    others = [row for row in rows if row not in loras]
    assert all(row["gradient_release"] and row["weights"] == "24 bit" for row in others)
    assert goals.describe({**rows[4], "allocated": 7.0, "reserved": 7.25}) == (
        "the U-Net of Stable Diffusion XL, batch 1: 7.00 GB, 7.25 GB reserved; the goal is 7.3 GB"
    )


def test_the_shape_of_the_next_family_is_stable_diffusion_xls():
    with torch.device("meta"):
        unet = construct_unet(XL_UNET)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684


def test_calls_per_step_are_counted_without_those_of_the_profile_itself():
    few = {
        "cudaLaunchKernel": 1000,
        "cudaStreamSynchronize": 2,
        "cudaDeviceSynchronize": 1,
        "mm": 9,
    }
    many = {"cudaLaunchKernel": 3700, "cuLaunchKernel": 300, "cudaStreamSynchronize": 8,
            "cudaDeviceSynchronize": 1, "aten::mm": 36}  # fmt: skip
    assert launches.per_step(few, many) == {"launches": 1000, "syncs": 2}


def test_launches_are_measured(bench: Bench, monkeypatch):
    monkeypatch.setattr(launches, "SETTINGS", launches.SETTINGS[:2])
    rows = list(launches.measure_launches(bench, NEVER))
    assert [(row.get("error"), row["launches"]) for row in rows] == [(None, 0)] * 2  # on the CPU
    assert "0 launches and 0.0 syncs" in launches.describe_launches(rows[0])


def test_steps_of_the_8_bit_optimizer_are_timed(bench: Bench):
    rows = list(launches.measure_optimizers(bench, NEVER))
    assert [row["what"] for row in rows] == ["bitsandbytes' own step", "ours"]
    assert all(len(row["milliseconds"]) == launches.OPTIMIZER_STEPS for row in rows)


def test_nothing_starts_that_would_not_finish_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    items = measuring.within(25, "abcd")
    for item, seconds in (("a", 10), ("b", 5), ("c", 3)):
        assert next(items) == item
        now[0] += seconds
    with pytest.raises(OutOfTime):  # it is 18 now, and another one of 10 would end at 28
        next(items)


class Steps:
    """A session that skips some steps, as fp16 does."""

    def __init__(self, *skipped: int) -> None:
        self.model, self.calls, self._skipped = SimpleNamespace(device=CPU), 0, skipped

    def step(self):
        self.calls += 1
        return None if self.calls in self._skipped else object()


def test_steps_that_fp16_skips_do_not_count():
    session = Steps(1, 2, 7)
    training.warm_up(session, NEVER)
    assert session.calls == training.WARM_UP + 2
    training._seconds_of(session, 5)
    assert session.calls == training.WARM_UP + 2 + 5 + 1


def test_a_whole_run_is_timed_part_by_part(bench: Bench, monkeypatch):
    monkeypatch.setattr(whole_run, "STEPS", 2)
    monkeypatch.setattr(whole_run, "DRAWING", SamplingConfig(steps=2))
    (row,) = whole_run.run_whole(bench, NEVER)
    assert list(row["seconds"]) == [
        whole_run.OPENING, whole_run.LOADING, "encoding photos and class images",
        "generating class images", "previews", "before the first step", "steps",
        "writing the checkpoint",
    ]  # fmt: skip
    assert row["steps"] == 2
    assert row["file"] * 2**30 == pytest.approx(bench.checkpoint.stat().st_size, rel=0.05)
    assert "s: opening the run " in whole_run.describe(row)


# ---------------------------------------------------------------- other tests


def test_tests_are_counted_by_outcome(tmp_path: Path):
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "@pytest.mark.parametrize('name', ['a', 'b c'])\n"
        "def test_good(name): pass\n"
        "def test_bad(): assert 1 > 2\n"
        "def test_absent(): pytest.skip('no')\n"
        "def test_broken(missing): pass\n",
        "utf-8",
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\naddopts = -ra\n", "utf-8")
    (row,) = device_tests.run_tests(tmp_path)
    assert row["outcomes"] == {"passed": 2, "failed": 1, "skipped": 1, "error": 1}
    assert row["failed"] == ["test_broken", "test_bad - assert 1 > 2"]
    assert device_tests.describe(row) == "2 passed, 1 failed, 1 skipped, 1 error"


def test_tests_before_an_early_stop_are_counted():
    names = ["test_one[x y] PASSED [ 20%]", "test_two FAILED [ 40%]", "test_three"]
    lines = [f"tests/gpu/test_a.py::{name}" for name in names]
    assert device_tests.summarize(lines) == {
        "outcomes": {"passed": 1, "failed": 1}, "failed": ["test_two"],
    }  # fmt: skip


def test_without_pytest_the_tests_are_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(LeftOut, match=r"^pytest is not installed$"):
        next(device_tests.run_tests())


def test_a_run_without_tests_is_a_failure(tmp_path: Path):
    with pytest.raises(RuntimeError, match="not found: tests/gpu"):
        next(device_tests.run_tests(tmp_path))


# ------------------------------------------------------------------ reference


def test_without_the_script_the_stage_is_left_out_in_one_line(bench: Bench):
    with pytest.raises(LeftOut) as caught:
        next(reference.run_reference(bench, NEVER))
    assert str(caught.value) == ("diffusers' train_dreambooth.py was not given (--reference FILE)")


def test_the_script_gets_our_settings(bench: Bench):
    setting = replace(SETTING, trains=CLASS, batch_size=4, precision="bf16",
                      optimizer="AdamW8bit", gradient_checkpointing=True)  # fmt: skip
    words = reference.arguments(setting, bench, Path("model"))
    for word in ("--train_batch_size=4", "--mixed_precision=bf16", "--use_8bit_adam",
                 "--gradient_checkpointing", "--with_prior_preservation", "--resolution=32",
                 "--learning_rate=2e-06"):  # fmt: skip
        assert word in words
    plain = reference.arguments(replace(SETTING, trains=TEXT), bench, Path("model"))
    assert "--mixed_precision=no" in plain
    assert "--train_text_encoder" in plain
    assert not {"--use_8bit_adam", "--gradient_checkpointing", "--with_prior_preservation"} & {
        *plain
    }


def test_a_script_is_timed_by_its_progress_bar_and_stopped(tmp_path: Path, monkeypatch):
    script, figures = tmp_path / "script.py", tmp_path / "figures.json"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tqdm.auto import tqdm\n"
        "assert sys.argv[1:] == ['--some', 'word']\n"
        "other = tqdm(range(1000), desc='Loading', disable=True)\n"
        "bar = tqdm(range(1000), desc='Steps')\n"
        "for number in range(1000):\n"
        "    other.update(1)\n"
        "    bar.update(1)\n"
        f"    Path({str(tmp_path / 'made')!r}).write_text(str(number + 1))\n",
        "utf-8",
    )
    monkeypatch.setattr(tqdm, "update", tqdm.update)
    monkeypatch.setattr(sys, "argv", ["", str(figures), str(script), "--some", "word"])
    watched_script.main()
    found = json.loads(figures.read_text("utf-8"))
    assert len(found["steps_per_second"]) == training.INTERVALS
    assert min(found["steps_per_second"]) > 0
    last = training.WARM_UP + training.INTERVALS * watched_script.INTERVAL_STEPS
    assert int((tmp_path / "made").read_text()) == last - 1


def test_the_scripts_libraries_can_read_its_model_folder(bench: Bench, tmp_path: Path):
    networks = bench.networks()
    write_folder(networks, tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert torch.equal(unet.conv_in.weight, networks[0].conv_in.weight.float())
    encoder = CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    assert encoder.dtype == torch.float32  # the script refuses to train any other
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, subfolder="tokenizer", use_fast=False)
    caption = "a photo of sks dog, in the snow!"
    ids = tokenizer(caption, padding="max_length", max_length=77).input_ids
    # What fills up the end may differ: the script pads with a token of the folder's choice.
    length = ids.index(tokenizer.eos_token_id) + 1
    assert ids[:length] == ClipTokenizer().encode([caption])[0, :length].tolist()

"""Recorded reports and previews, as they are read back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from trainer.observer import Observer, ScoreReport, StepReport
from trainer.runs.recorder import Recorder, preview_files, preview_prompts


def report(step: int) -> StepReport:
    return StepReport(
        step=step, total_steps=9, loss=0.1 + 1e-17 * step, instance_loss=0.1, prior_loss=None,
        learning_rates={"unet": 1.23e-6}, grad_norm=0.7 + 1e-17, steps_per_second=1.5,
        seconds_left=3.0, peak_megabytes=10.0,
    )  # fmt: skip


def score(step: int) -> ScoreReport:
    return ScoreReport(
        step=step, subject=0.1 + 1e-17 * step, prompt=None, prior=0.2, learned=1 / 3,
        prompts_kept=None, class_kept=0.5, balance=0.4,
    )  # fmt: skip


def images(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, size=(8, 6, 3), dtype=np.uint8) for _ in range(count)]


def test_reports_are_read_back_exactly_and_rewriting_replaces_them(tmp_path):
    recorder = Recorder(tmp_path, Observer())
    for step in (1, 2, 3):
        recorder.on_step(report(step))
    assert recorder.reports() == [report(1), report(2), report(3)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    for step in (0, 2, 4):
        recorder.on_score(score(step))
    assert recorder.scores() == [score(0), score(2), score(4)]
    recorder.rewrite([report(1)], [score(0)])
    recorder.on_step(report(2))
    recorder.on_score(score(2))
    again = Recorder(tmp_path, Observer())
    assert again.reports() == [report(1), report(2)]
    assert again.scores() == [score(0), score(2)]


def test_every_line_is_standard_json(tmp_path):
    """Older versions wrote NaN, which JSON does not have, for steps that fp16 had skipped."""
    recorder = Recorder(tmp_path, Observer())
    recorder.rewrite([replace(report(1), grad_norm=float(norm)) for norm in ("nan", "inf")], [])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["grad_norm"] is None
    assert [found.grad_norm for found in recorder.reports()] == [None, None]


def test_previews_of_all_steps_are_kept_with_their_prompts(tmp_path):
    recorder = Recorder(tmp_path, Observer(), ("a dog", "a čup"))
    assert recorder.previews() == []
    recorder.on_preview(0, images(0, 2))
    assert recorder.previews() == [], "the base model's are no result"
    recorder.on_preview(5, images(1, 2))
    recorder.on_preview(1000000, images(2, 2))
    again = Recorder(tmp_path, Observer())
    assert np.array_equal(again.previews(), images(2, 2))
    found = preview_files(tmp_path)
    assert list(found) == [0, 5, 1000000]
    assert [path.name for path in found[5]] == ["step000005_000.png", "step000005_001.png"]
    assert preview_prompts(found[5]) == ["a dog", "a čup"]


def test_a_previews_folder_that_cannot_be_read_is_a_warning(tmp_path, caplog):
    (tmp_path / "previews").write_text("a file")
    assert preview_files(tmp_path) == {}
    said = f"The previews in '{tmp_path}' cannot be read: Not a directory."
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_previews_that_cannot_be_read_are_a_warning(tmp_path, caplog, content):
    recorder = Recorder(tmp_path, Observer(), ("a dog",))
    recorder.on_preview(5, images(0, 1))
    ((path,),) = preview_files(tmp_path).values()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert recorder.previews() == []
    (message,) = caplog.messages
    assert message.startswith("The last previews of this run cannot be read: ")
    if content is not None:
        assert preview_prompts([path]) == [""]


def test_previews_that_are_drawn_again_replace_those_of_their_step(tmp_path):
    Recorder(tmp_path, Observer(), ("a dog", "a cup")).on_preview(5, images(0, 2))
    Recorder(tmp_path, Observer(), ("a cat",)).on_preview(5, images(1, 1))
    (paths,) = preview_files(tmp_path).values()
    assert preview_prompts(paths) == ["a cat"]


def test_previews_of_steps_that_are_repeated_are_deleted(tmp_path):
    recorder = Recorder(tmp_path, Observer())
    for step in (0, 1, 2):
        recorder.on_preview(step, images(step, 1))
    recorder.rewrite([report(1)], [])
    assert list(preview_files(tmp_path)) == [0, 1]


def test_previews_of_older_versions_have_no_prompt(tmp_path):
    (tmp_path / "previews").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "previews" / "step000003_000.png")
    (tmp_path / "previews" / "mine.png").write_bytes(b"")
    assert preview_prompts(preview_files(tmp_path)[3]) == [""]


def test_everything_is_recorded_and_then_passed_on(tmp_path):
    received, skipped = [], []

    class Receiver(Observer):
        def on_progress(self, activity, done, total):
            received.append((activity, done, total))

        def on_start(self, total_steps):
            received.append(total_steps)

        def on_step(self, report):
            received.append((report.step, len(recorder.reports())))

        def on_score(self, report):
            received.append((report, recorder.scores()))

        def on_skipped_step(self, step):
            skipped.append(step)

        def wants_to_finish(self):
            return len(received) == 3

        def on_preview(self, step, images):
            received.append((step, len(recorder.previews())))

        def on_checkpoint(self, step, path):
            received.append((step, path, list(recorder.checkpoints)))

    recorder = Recorder(tmp_path, Receiver())
    recorder.on_progress("Class images", 1, 2)
    recorder.on_start(9)
    assert not recorder.wants_to_finish()
    recorder.on_step(report(1))
    assert recorder.wants_to_finish()
    recorder.on_skipped_step(2)
    assert skipped == [2]
    recorder.on_preview(1, images(0, 2))
    recorder.on_score(score(1))
    recorder.on_checkpoint(1, tmp_path / "a")
    assert received == [
        ("Class images", 1, 2), 9, (1, 1), (1, 2), (score(1), [score(1)]),
        (1, tmp_path / "a", [tmp_path / "a"]),
    ]  # fmt: skip


def test_events_and_requests_that_are_not_recorded_are_passed_on(tmp_path):
    received = []

    class Receiver(Observer):
        def on_run(self, folder):
            received.append(folder)

        def on_resume(self, reports, scores):
            received.append((reports, scores))

        def on_early_end(self, message):
            received.append(message)

        def wants_preview(self):
            return len(received) == 3

        def wants_save(self):
            return received == []

    recorder = Recorder(tmp_path, Receiver())
    assert (recorder.wants_preview(), recorder.wants_save()) == (False, True)
    recorder.on_run(tmp_path)
    recorder.on_resume([report(1)], [score(0)])
    recorder.on_early_end("Stopped.")
    assert received == [tmp_path, ([report(1)], [score(0)]), "Stopped."]
    assert (recorder.wants_preview(), recorder.wants_save()) == (True, False)


def test_unreadable_reports_are_a_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("{")
    assert Recorder(tmp_path, Observer()).reports() == []
    assert Recorder(tmp_path, Observer()).scores() == []
    assert caplog.messages[0].startswith("The losses of this run cannot be read: ")
    assert caplog.messages[1].startswith("The scores of this run cannot be read: ")


@pytest.mark.parametrize("value", ['"x"', "[1]", '{"a": "b"}', "1e400", "true", "[" * 100_000])
def test_reports_that_others_wrote_are_a_warning(tmp_path, caplog, value):
    recorder = Recorder(tmp_path, Observer())
    recorder.rewrite([report(1)], [])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"grad_norm": 0.7', f'"grad_norm": {value}'))
    assert recorder.reports() == []
    (message,) = caplog.messages
    assert message.startswith("The losses of this run cannot be read: ")

"""README, CONTRIBUTING, CHANGELOG and docs/ against what they describe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.__main__ import main
from trainer.settings.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINES = 5
"""The longest paragraph of the README."""
PLACEHOLDER = "https://example.com/comfyui-dreambooth"


def read(path: Path) -> str:
    return path.read_text("utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def trainer_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of the documentation that calls the trainer: its page and its words."""
    for path in PAGES:
        for block in code_blocks(read(path)):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:3] == ["python", "-m", "trainer"] and words[3:4] != ["COMMAND"]:
                    yield path.name, words[3:]


@pytest.fixture(scope="module")
def makefile() -> str:
    return read(ROOT / "Makefile")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    found: dict[str, Any] = tomllib.loads(read(ROOT / "pyproject.toml"))
    return found


def test_paragraphs_of_the_readme_are_short():
    prose = re.sub(r"^```.*?^```", "", read(README), flags=re.MULTILINE | re.DOTALL)
    paragraphs = re.split(r"\n\s*\n|\n(?=\d+\. )", prose)
    texts = [text.strip().splitlines() for text in paragraphs if not text.startswith("|")]
    assert [lines[0] for lines in texts if len(lines) > MAX_LINES] == []


def test_links_lead_to_files_and_headings():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", read(path)):
            if target.startswith("https://"):
                continue
            name, _, heading = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), f"{path.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE) if heading else []
            slugs = [re.sub(r"[^\w\- ]", "", found.lower()).replace(" ", "-") for found in headings]
            assert not heading or heading in slugs, f"{path.name}: {target}"


def test_the_readme_shows_the_presets_as_they_are():
    rows = [line.strip("| ").split(" | ") for line in read(README).splitlines() if "|" in line]
    shown = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS}
    assert list(shown) == list(PRESETS)
    for name, (photos, steps, rate, class_images, text_encoder) in shown.items():
        preset = PRESETS[name]
        prior = preset.get("prior", {})
        expected = (
            f"{prior.get('num_images', 200)}, weight {prior['weight']:g}" if prior else "none"
        )
        assert (int(photos), int(steps)) == (preset["batch_size"], preset["steps"]), name
        assert float(rate) == preset["optimizer"]["learning_rate"], name
        assert class_images == expected, name
        trains = preset.get("method", {}).get("train_text_encoder", False)
        assert text_encoder == ("trained" if trains else "frozen"), name


def test_commands_have_the_flags_that_the_documentation_gives_them(capsys):
    found = list(trainer_commands())
    assert {words[0] for _, words in found} >= {"train", "textual-inversion", "sample", "compare"}
    flags = {}
    for page, (name, *words) in found:
        if name not in flags:
            with pytest.raises(SystemExit):
                main([name, "--help"])
            flags[name] = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
        given = {word for word in words if word.startswith("--")}
        assert given - flags[name] == set(), f"{page}: {name}"


def test_every_make_target_is_phony_and_says_what_it_does(makefile):
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    targets = re.findall(r"^([a-z]+):(?:.*## (.+))?", makefile, re.MULTILINE)
    assert sorted(name for name, _ in targets) == sorted(phony.split())
    assert [name for name, text in targets if not text] == []


def test_make_targets_that_the_documentation_names_exist(makefile):
    texts = [text for path in PAGES for text in [*code_blocks(read(path)), *code_spans(read(path))]]
    named = re.findall(r"\bmake ((?:[a-z]+ ?)+)", "\n".join(texts))
    words = {word for found in named for word in found.split()}
    assert words >= {"demo", "test", "pages", "soak"}
    assert [word for word in words if f"\n{word}:" not in makefile] == []


def test_paths_that_contributing_names_exist():
    spans = code_spans(read(ROOT / "CONTRIBUTING.md"))
    named = {span for span in spans if re.fullmatch(r"[\w.-]*/[\w./-]*|\w+\.(toml|txt)", span)}
    real = {path for path in named if not re.search("NAME|NODE_ID", path)}
    assert real >= {"trainer/optimization/optimizers.py", "locales/ko/nodeDefs.json", "nodes/"}
    assert [path for path in sorted(real) if not (ROOT / path).exists()] == []


def test_the_changelog_begins_with_what_is_unreleased_and_has_this_version(project):
    versions = re.findall(r"^## (Unreleased|\d.*)$", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert project["project"]["version"] in versions


def test_project_urls_are_placeholders_to_be_replaced_before_publishing(project):
    """The project has no public address yet. When it has one, put it into pyproject.toml and the
    README, and delete this test."""
    urls = project["project"]["urls"].values()
    assert urls
    assert [url for url in urls if not url.startswith(PLACEHOLDER)] == []
    assert f"git clone {PLACEHOLDER} " in read(README)


def test_the_ci_workflow_covers_every_system_and_python(project):
    workflow = yaml.safe_load(read(ROOT / ".github" / "workflows" / "tests.yml"))
    jobs = workflow["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    systems = {name.partition("-")[0] for name in matrix["os"]}
    assert systems == {"ubuntu", "windows", "macos"}
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert project["project"]["requires-python"] == f">={matrix['python'][0]}"
    steps = [step for job in jobs.values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@v\d+", action)] == []
    runs = [step["run"] for step in steps if "run" in step]
    assert "make lint types" in runs
    assert [run for run in runs if "pytest" in run] == [
        "python -m pytest -q -n auto --dist worksteal"
    ]

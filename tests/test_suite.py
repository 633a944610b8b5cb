"""The house rules of the tests: each test can fail, none waits for a time, and on systems without
POSIX they are collected and skipped with a reason."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FILES = [path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__)]
HIDDEN = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty")
"""Modules that Windows does not have."""
HIDING = f"""
import builtins

whole = builtins.__import__
ours = {tuple(f"{ROOT / room}{os.sep}" for room in ("tests", "trainer", "nodes", "benchmarks"))}

def hiding(name, globals=None, *rest, **named):
    importer = (globals or {{}}).get("__file__") or ""
    # The lock checks the system first and imports another module on Windows.
    if name in {HIDDEN} and importer.startswith(ours) and not importer.endswith("locks.py"):
        raise ModuleNotFoundError(f"{{name}} is hidden")
    return whole(name, globals, *rest, **named)

builtins.__import__ = hiding
"""
POSIX_ONLY = re.compile(
    rf"import (?:{'|'.join(HIDDEN)})\b|/proc/|fuzz\.py|send_signal|symlink_to|"
    r"\bos\.(?:chown|fork|fsdecode|getuid|kill|killpg|mkfifo|readlink|statvfs|symlink|wait\w*)\b|"
    r"\bsignal\.(?:SIGKILL|SIGALRM|alarm|pthread_kill|setitimer)\b|"
    r"\[Errno|File too large|No space left"
)
"""Patterns of code that only runs on a POSIX system, and of such a system's messages."""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_suite_is_collected_without_the_modules_of_posix(tmp_path: Path):
    """The modules are hidden from our own files; libraries handle Windows themselves."""
    (tmp_path / "hiding.py").write_text(HIDING, "utf-8")
    command = ["-m", "pytest", "--collect-only", "-q", "-p", "hiding", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    collected = {line.partition("::")[0] for line in done.stdout.splitlines()}
    assert {name(path) for path in TESTS.rglob("test_*.py")} <= collected


def test_the_suite_runs_in_a_folder_with_any_name(tmp_path: Path):
    """A clone may have a name that is not a valid Python package, such as ComfyUI-DreamBooth."""
    clone = tmp_path / "ComfyUI-DreamBooth"
    names = ("pyproject.toml", "__init__.py", "host_version.py", "trainer/__init__.py",
             "trainer/storage/disk_errors.py", "trainer/storage/hashing.py",
             "tests/trainer/storage/test_hashing.py")  # fmt: skip
    for each in names:
        (clone / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / each, clone / each)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert " passed" in done.stdout


def needing_posix(path: Path, fixtures: set[str]) -> Iterator[ast.FunctionDef]:
    """Yield the functions and fixtures of a file that need POSIX or use something that does, except
    those that check the system themselves."""
    lines, found, count = path.read_text("utf-8").splitlines(), set(fixtures), -1
    parts = {part: "\n".join(lines[part.lineno - 1 : part.end_lineno]) for part in parse(path).body}
    while len(found) != count:
        count = len(found)
        used = re.compile(rf"\b(?:{'|'.join(found) or '(?!)'})\b")
        for part, source in parts.items():
            if (POSIX_ONLY.search(source) or used.search(source)) and "pytest.skip(" not in source:
                found |= set(defined_by(part))
    yield from (part for part in parts if isinstance(part, ast.FunctionDef) and part.name in found)


def defined_by(part: ast.stmt) -> Iterator[str]:
    if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
        yield part.name
    if isinstance(part, ast.Assign):
        yield from (target.id for target in part.targets if isinstance(target, ast.Name))


def is_marked(path: Path, test: ast.FunctionDef) -> bool:
    everywhere = [part for part in parse(path).body if isinstance(part, ast.Assign)]
    marks = [part.value for part in everywhere if ast.unparse(part.targets[0]) == "pytestmark"]
    return any("mark.posix" in ast.unparse(mark) for mark in [*test.decorator_list, *marks])


def test_tests_that_need_posix_are_marked():
    everywhere = [needing_posix(path, set()) for path in TESTS.rglob("conftest.py")]
    fixtures = {fixture.name for found in everywhere for fixture in found}
    assert fixtures == {"file_size_limit"}
    unmarked = [
        f"{name(path)}::{test.name}"
        for path in FILES
        for test in needing_posix(path, fixtures)
        if test.name.startswith("test_") and not is_marked(path, test)
    ]
    assert unmarked == []


def test_no_assert_is_always_true():
    """Such as a conditional expression, a new object or a constant."""
    always_true = (ast.IfExp, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Constant, ast.JoinedStr,
            ast.GeneratorExp, ast.ListComp, ast.DictComp, ast.SetComp, ast.Lambda)  # fmt: skip
    nodes = [(path, node) for path in FILES for node in ast.walk(parse(path))]
    asserts = [(path, node) for path, node in nodes if isinstance(node, ast.Assert)]
    found = [f"{name(path)}: {ast.unparse(node)}" for path, node in asserts
             if isinstance(node.test, always_true)]  # fmt: skip
    assert found == []


def test_nothing_waits_for_a_time():
    """Except for the start of a server, which is polled."""
    sleeping = [name(path) for path in FILES if re.search(r"\bsleep\(", path.read_text("utf-8"))]
    assert sleeping == ["tests/nodes/conftest.py"]

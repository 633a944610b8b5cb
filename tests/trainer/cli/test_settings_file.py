"""Settings from TOML files: what they set, what overrides them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.cli.program import COMMANDS

NEEDED = {
    "train": ["--base", "b", "--dataset.photos", "p", "--dataset.prompt", "d"],
    "lora": ["--base", "b", "--dataset.photos", "p", "--dataset.prompt", "d"],
    "textual-inversion": [
        "--base", "b", "--dataset.photos", "p", "--dataset.prompt", "d", "--method.placeholder",
        "<x>", "--method.initializer", "dog",
    ],
    "priors": ["--base", "b"],
    "sample": ["--checkpoint", "c", "--prompts", "d"],
    "compare": ["--checkpoints", "c", "--prompts", "d"],
    "score": ["--images", "i", "--photos", "p", "--judge", "toy"],
    "extract-lora": ["--base", "b", "--trained", "t"],
    "apply-lora": ["--base", "b"],
    "demo": [],
}  # fmt: skip
"""The required flags of each command."""
HEADINGS = "[dataset], [prior], [optimizer], [preview], [scoring], [output], [method]"


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Returns the command that `main` would run with a settings file and flags. None: it failed."""

    def parse(name: str, toml: str | None = None, *flags: str) -> Any:
        found: list[Any] = []
        monkeypatch.setattr(COMMANDS[name], "run", lambda command: found.append(command))
        path = tmp_path / "s.toml"
        if toml is not None:
            path.write_text(toml, "utf-8")
        file = [] if toml is None else ["--settings", str(path)]
        return found[0] if main([name, *file, *flags]) == 0 else None

    return parse


def look_up(command: Any, place: str) -> Any:
    for name in place.split("."):
        command = getattr(command, name)
    return command


TRAIN = """
base = "-model"
precision = "bf16"
steps = 7
ema = true
compile = false
noise_offset = 0.25
judge = "-judge"
device = "-1"
on_existing = "resume"

[dataset]
photos = ["-dog", "--cat", "plain"]
prompt = "--steps 3"
resolution = 64
background = ""

[prior]
images = []
sampling.negative_prompt = "-ugly"

[optimizer]
learning_rate = 1
warmup_steps = 2

[preview]
prompts = ["-a", "--b", "", "c d"]
sampling = { seed = 5 }

[output]
folder = "-out"
name = "-dog"

[method]
train_text_encoder = true
text_encoder_learning_rate = 5e-7
"""
FILES = {
    "train": (TRAIN, {
        "config.base": Path("-model"),
        "config.precision": "bf16",
        "config.steps": 7,
        "config.ema": True,
        "config.compile": False,
        "config.noise_offset": 0.25,
        "judge": Path("-judge"),
        "device": "-1",
        "on_existing": "resume",
        "config.dataset.photos": (Path("-dog"), Path("--cat"), Path("plain")),
        "config.dataset.prompt": "--steps 3",
        "config.dataset.resolution": 64,
        "config.dataset.background": "",
        "config.prior.images": (),
        "config.prior.sampling.negative_prompt": "-ugly",
        "config.prior.sampling.steps": 50,
        "config.optimizer.learning_rate": 1.0,
        "config.optimizer.warmup_steps": 2,
        "config.preview.prompts": ("-a", "--b", "", "c d"),
        "config.preview.sampling.seed": 5,
        "config.preview.sampling.steps": 25,
        "config.output.folder": Path("-out"),
        "config.output.name": "-dog",
        "method.train_text_encoder": True,
        "method.text_encoder_learning_rate": 5e-7,
    }),
    "lora": (
        'base = "b"\nloras = ["-a", "b"]\nlora_strengths = [1, -0.5]\n[dataset]\n'
        'photos = ["p"]\nprompt = "d"\n[method]\nrank = 4\nalpha = 2\nlayers = "-x"',
        {
            "config.loras": (Path("-a"), Path("b")), "config.lora_strengths": (1.0, -0.5),
            "method.rank": 4, "method.alpha": 2.0, "method.layers": "-x", "method.start": None,
        },
    ),
    "textual-inversion": (
        'base = "b"\n[dataset]\nphotos = ["p"]\nprompt = "-<x>"\n[method]\n'
        'placeholder = "<-x>"\ninitializer = "-dog"\nnum_vectors = 2',
        {
            "config.dataset.prompt": "-<x>", "method.placeholder": "<-x>",
            "method.initializer": "-dog", "method.num_vectors": 2, "method.templates": "object",
        },
    ),
    "priors": (
        'base = "b"\nprompt = "-dog"\nnum_images = 3\nresolution = 64\n[sampling]\nsteps = 2',
        {
            "prior.prompt": "-dog", "prior.num_images": 3, "prior.sampling.steps": 2,
            "resolution": 64,
        },
    ),
    "sample": (
        'checkpoint = "c"\nprompts = ["-a"]\nsize = [64, 32]\nsteps = 3\nguidance_scale = 2',
        {
            "prompts": ("-a",), "size": (64, 32), "sampling.steps": 3,
            "sampling.guidance_scale": 2.0,
        },
    ),
    "compare": (
        'checkpoints = ["-c", "d"]\nprompts = ["--p"]\nsteps = [2, 3]\nseed = 4\nsize = [8, 16]',
        {
            "checkpoints": (Path("-c"), Path("d")), "prompts": ("--p",), "steps": (2, 3),
            "sampling.seed": 4, "size": (8, 16),
        },
    ),
    "score": (
        'images = ["-i"]\nphotos = "-p"\njudge = "toy"\nprompts = ["-q", ""]\nfolder = "--f"',
        {
            "images": (Path("-i"),), "photos": Path("-p"), "prompts": ("-q", ""),
            "folder": Path("--f"),
        },
    ),
    "extract-lora": (
        'base = "-b"\ntrained = "-t"\nenergy = 1\nrank = 8\nprompts = ["-p"]\nsteps = 3\n'
        'loras = ["-l"]\n[output]\nname = "-n"\nfolder = "-f"\ndtype = "bf16"',
        {
            "base": Path("-b"), "trained": Path("-t"), "rule.energy": 1.0, "rule.rank": 8,
            "prompts": ("-p",), "sampling.steps": 3, "options.loras": (Path("-l"),),
            "output.name": "-n", "output.folder": Path("-f"), "output.dtype": "bf16",
        },
    ),
    "apply-lora": (
        'base = "-b"\nloras = ["-l"]\nlora_strengths = [-1]\nvae = "-v"\n[output]\nname = "-n"',
        {
            "base": Path("-b"), "options.loras": (Path("-l"),), "options.vae": Path("-v"),
            "options.lora_strengths": (-1.0,), "output.name": "-n", "output.dtype": "as input",
        },
    ),
    "demo": ('folder = "-f"\ndevice = "cpu"', {"folder": Path("-f"), "device": "cpu"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_settings_file_can_set_everything_that_flags_can(parse, name):
    """Including values that begin like a flag."""
    toml, expected = FILES[name]
    command = parse(name, toml)
    assert {place: look_up(command, place) for place in expected} == expected


def test_every_command_with_a_settings_file_is_tested():
    assert {*FILES} == {*NEEDED} == {*COMMANDS} - {"runs", "plan", "inspect"}


@pytest.mark.parametrize("name", NEEDED)
def test_an_empty_settings_file_changes_nothing(parse, name):
    bare = parse(name, None, *NEEDED[name])
    filed = parse(name, "", *NEEDED[name])
    assert filed.settings.name == "s.toml"
    differing = [key for key, value in vars(bare).items() if getattr(filed, key) != value]
    assert differing == ["settings"]


def test_flags_override_the_file_and_the_file_overrides_the_preset(parse):
    toml = 'steps = 9\nema = true\n[optimizer]\nweight_decay = 0.5\n[preview]\nprompts = ["a", "b"]'
    flags = ["--no-ema", "--preview.prompts", "c", "--prior.prompt", "dog", "--preset", "face"]
    command = parse("train", toml, *NEEDED["train"], *flags)
    config = command.config
    assert (config.ema, config.preview.prompts) == (False, ("c",))
    assert (config.steps, config.optimizer.weight_decay) == (9, 0.5)
    assert (config.batch_size, config.prior.weight) == (2, 1.0)
    assert command.method.train_text_encoder
    kept = parse("train", toml, *NEEDED["train"], "--preset=object").config
    assert (kept.ema, kept.preview.prompts, kept.batch_size) == (True, ("a", "b"), 4)


def test_a_settings_file_can_name_the_preset(parse):
    command = parse("textual-inversion", 'preset = "toy"', *NEEDED["textual-inversion"])
    assert (command.preset, command.method.templates) == ("toy", "captions")
    assert command.config.steps == 300
    other = parse("train", 'preset = "toy"', *NEEDED["train"], "--preset", "object")
    assert (other.preset, other.config.steps) == ("object", 400)


@pytest.mark.parametrize(
    ("toml", "place", "value"),
    [
        ('steps = "400"', "steps", 400),
        ('[optimizer]\nlearning_rate = "1e-3"', "optimizer.learning_rate", 1e-3),
        ('"batch-size" = 2', "batch_size", 2),
        ("[output]\nname = 2024", "output.name", "2024"),
        ("[output]\nname = 2024-05-06", "output.name", "2024-05-06"),
        ('[dataset]\nphotos = "one"', "dataset.photos", (Path("one"),)),
        ('[dataset]\nresolution = "None"', "dataset.resolution", None),
        ("\ufeffseed = 3", "seed", 3),
    ],
)
def test_lenient_spellings_of_values_are_accepted(parse, toml, place, value):
    flags = [*NEEDED["train"][:2], "--dataset.prompt", "d", "--steps", "5"]
    flags = flags[:4] if "steps" in toml else flags
    flags += [] if "photos" in toml else ["--dataset.photos", "p"]
    assert look_up(parse("train", toml, *flags).config, place) == value


UNKNOWN = [
    (
        "train", "[optimiser]\nlearning_rate = 1.0", "optimiser",
        "Known keys: device, base, embedding, vae, prediction_type, steps, batch_size, "
        "gradient_accumulation, seed, precision, gradient_checkpointing, ema, ema_decay, "
        "min_snr_gamma, noise_offset, channels_last, compile, clip_skip, weights, "
        "gradient_release, offload, sharded, frozen_weights, loras, lora_strengths, preset, runs, "
        "judge, on_existing, vram, " + HEADINGS,
    ),
    (
        "train", "[optimizer]\nlr = 1.0", "optimizer.lr",
        "Known keys under [optimizer]: name, learning_rate, weight_decay, max_grad_norm, "
        "lr_schedule, warmup_steps, num_restarts, anchor",
    ),
    (
        "textual-inversion", "[method]\ntrain_text_encoder = true", "method.train_text_encoder",
        "Known keys under [method]: placeholder, initializer, num_vectors, templates, "
        "directional",
    ),
    (
        "compare", 'scheduler = "PNDM"', "scheduler",
        "Known keys: device, checkpoints, prompts, schedulers, steps, embedding, "
        "guidance_scale, negative_prompt, seed, batch_size, size, judge, photos, folder, "
        "precision, prediction_type, vae, clip_skip, loras, lora_strengths",
    ),
    ("demo", 'settings = "other.toml"', "settings", "Known keys: device, folder"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "toml", "key", "choice"), UNKNOWN)
def test_an_unknown_key_is_refused_with_the_known_ones(
    parse, tmp_path, caplog, name, toml, key, choice
):
    assert parse(name, toml, *NEEDED[name]) is None
    path = tmp_path / "s.toml"
    assert caplog.messages[-1] == (
        f"'{path}' contains the key '{key}', which this command does not know. {choice}."
    )


@pytest.mark.parametrize(
    ("name", "toml", "fault"),
    [
        ("train", "steps = 'many'", 'steps must be a whole number, got "many"'),
        ("train", "steps = 1.5", "steps must be a whole number, got 1.5"),
        ("train", "steps = true", "steps must be a whole number, got true"),
        ("train", "steps = [1, 2]", "steps must be a whole number, got [1, 2]"),
        ("train", "[steps]\na = 1", 'steps must be a whole number, got {"a": 1}'),
        ("train", "noise_offset = false", "noise_offset must be a number, got false"),
        ("train", 'ema = "yes"', 'ema must be true or false, got "yes"'),
        ("train", "ema = 1", "ema must be true or false, got 1"),
        ("train", "output.name = true", "output.name must be text, got true"),
        ("train", "output.folder = [1]", "output.folder must be a path, got [1]"),
        (
            "train", "precision = 'fp8'",
            'precision must be one of fp32, fp16, bf16, got "fp8"',
        ),
        (
            "train", "dataset.resolution = '강'",
            'dataset.resolution must be a whole number, got "강"',
        ),
        (
            "train", "preview.prompts = ['a', true]",
            'preview.prompts must be a list of texts, got ["a", true]',
        ),
        ("compare", "steps = [2, 'x']", 'steps must be a list of whole numbers, got [2, "x"]'),
        ("compare", "size = 64", "size must be a list of 2 whole numbers, got 64"),
        ("sample", "size = [1, 2, 3]", "size must be a list of 2 whole numbers, got [1, 2, 3]"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(parse, tmp_path, caplog, name, toml, fault):
    assert parse(name, toml, *NEEDED[name]) is None
    assert caplog.messages[-1] == f"'{tmp_path / 's.toml'}': {fault}."


def test_required_settings_can_come_from_the_file_or_flags(parse, capsys):
    command = parse("train", '[dataset]\nprompt = "-d"', "--base", "b", "--dataset.photos", "p")
    assert command.config.dataset.prompt == "-d"
    with pytest.raises(SystemExit) as caught:
        parse("train", '[dataset]\nprompt = "-d"', "--base", "b")
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert "--dataset.photos" in shown.err
    assert "--dataset.prompt" not in shown.err


def test_a_heading_is_not_a_value(parse, tmp_path, caplog):
    for toml, key, shown in (
        ('optimizer = "AdamW"', "optimizer", '"AdamW"'),
        ("[[optimizer]]\nname = 'Lion'", "optimizer", '[{"name": "Lion"}]'),
        ("[preview]\nsampling = 3", "preview.sampling", "3"),
    ):
        assert parse("train", toml, *NEEDED["train"]) is None
        assert caplog.messages[-1].startswith(
            f"'{tmp_path / 's.toml'}': {key} is a heading, not a setting, but got {shown}. Write "
            f"[{key}] on a line of its own, and below it its settings: "
        )
        toml = caplog.messages[-1].split("Write ")[1].split(" on a line")[0]
        assert parse("train", toml, *NEEDED["train"]) is not None


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("latin-1", "Line 2 of '{}' is not in UTF-8. "),
        ("utf-16", "'{}' is not in UTF-8, but seems to be in UTF-16. "),
        ("utf-16-le", "'{}' is not in UTF-8, but seems to be in UTF-16. "),
        ("utf-16-be", "'{}' is not in UTF-8, but seems to be in UTF-16. "),
        ("utf-32", "'{}' is not in UTF-8, but seems to be in UTF-16. "),
    ],
)
def test_a_file_in_another_encoding_is_refused(parse, tmp_path, caplog, encoding, found):
    path = tmp_path / "s.toml"
    path.write_bytes('# comment\nfolder = "é"'.encode(encoding))
    assert main(["demo", "--settings", str(path)]) == 1
    assert caplog.messages == [
        found.format(path) + "Save it again in the encoding UTF-8, which text editors offer under "
        "Save As."
    ]
    assert parse("demo", '# comment\nfolder = "é"').folder == Path("é")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_of_windows_editors_are_read(monkeypatch, tmp_path, encoding, newline):
    path, found = tmp_path / "s.toml", []
    monkeypatch.setattr(COMMANDS["demo"], "run", lambda command: found.append(command))
    path.write_bytes(f'device = "é"{newline}folder = "b"{newline}'.encode(encoding))
    assert main(["demo", "--settings", str(path)]) == 0
    assert (found[0].device, found[0].folder) == ("é", Path("b"))


def test_a_missing_file_and_a_folder_are_named(parse, tmp_path, caplog):
    for path, message in (
        (tmp_path / "s.toml", "There is no settings file '{}'. Name an existing TOML file."),
        (tmp_path, "'{}' is a folder, not a settings file. Name a TOML file in it."),
    ):
        assert main(["demo", "--settings", str(path)]) == 1
        assert caplog.messages[-1] == message.format(path)
    assert parse("demo", "") is not None


@pytest.mark.posix
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux's file that cannot be read")
def test_a_file_that_the_disk_cannot_read_is_named(caplog):
    assert main(["train", "--settings", "/proc/self/mem"]) == 1
    assert caplog.messages == [
        "'/proc/self/mem' cannot be used: Input/output error. Check the file and its disk, then "
        "run the same again."
    ]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (r'folder = "C:\Users\me"', "line 2"),
        (r'folder = "C:\photos\dog"', "line 2"),
        (r'folder = "C:\temp" + "\"', None),
        ('folder = "C:\\temp\\"', None),
    ],
)
def test_a_path_with_backslashes_works_in_single_quotes(parse, tmp_path, caplog, line, place):
    assert parse("demo", f"# Windows\n{line}\n") is None
    message = caplog.messages[-1]
    assert message.startswith(f"'{tmp_path / 's.toml'}' is not valid TOML at {place or 'line 2'}")
    advice = "stand for another character. Write paths in single quotes: "
    assert message.endswith(advice + line.replace('"', "'"))
    if "+" not in line:
        followed = parse("demo", message.split(advice)[1])
        assert followed.folder == Path(line.split('"')[1])


@pytest.mark.parametrize("value", [r'"C:\temp\new"', r'["plain", "C:\temp\new"]', r'"C:\back"'])
def test_a_path_in_which_toml_reads_other_characters_is_refused(parse, tmp_path, caplog, value):
    required = ["--base", "b", "--dataset.prompt", "d"]
    assert parse("train", f"[dataset]\nphotos = {value}", *required) is None
    message = caplog.messages[-1]
    assert message.startswith(f"'{tmp_path / 's.toml'}': dataset.photos contains a control char")
    assert message.endswith("Write paths in single quotes.")
    command = parse("train", f"[dataset]\nphotos = {value}".replace('"', "'"), *required)
    assert "\\" in str(command.config.dataset.photos[-1])


@pytest.mark.parametrize(
    ("line", "message", "better"),
    [
        ("folder = out", ": Invalid value. Texts need quotation marks; true and false are written "
         "in lower case.", 'folder = "out"'),
        ("folder = “out”", ": Invalid value. Write straight quotation marks: \"text\".",
         'folder = "out"'),
        ('folder = "a"\nfolder = "b"', ": Cannot overwrite a value. Correct that line.",
         'folder = "out"'),
        ("folder", ": Expected '=' after a key in a key/value pair. Correct that line.",
         'folder = "out"'),
    ],
)  # fmt: skip
def test_a_line_that_is_not_toml_is_named(parse, tmp_path, caplog, line, message, better):
    assert parse("demo", line) is None
    start, place = f"'{tmp_path / 's.toml'}' is not valid TOML at ", "line "
    assert caplog.messages[-1].startswith(start)
    assert caplog.messages[-1].endswith(message)
    assert place in caplog.messages[-1] or "end of document" in caplog.messages[-1]
    assert parse("demo", better).folder == Path("out")


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("steps = " + "[" * 5000, "maximum recursion depth exceeded"),
        ("steps = " + "9" * 5000, "Exceeds the limit (4300 digits)"),
    ],
)
def test_values_that_python_cannot_read_are_refused(parse, tmp_path, caplog, toml, reason):
    assert parse("train", toml, *NEEDED["train"]) is None
    (message,) = caplog.messages
    assert message.startswith(f"'{tmp_path / 's.toml'}' cannot be read as settings: {reason}")


def test_a_number_that_no_computer_counts_to_is_refused(parse, caplog):
    assert parse("train", f"steps = {2**63}", *NEEDED["train"]) is None
    assert caplog.messages == [f"steps must be below 2^63, got {2**63}."]

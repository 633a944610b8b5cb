"""Error messages and help of the command line."""

import pytest

from trainer.__main__ import main

TRAIN = ["train", "--base", "b", "--dataset.photos", "p", "--dataset.prompt", "d"]
INVERT = ["textual-inversion", *TRAIN[1:], "--method.initializer", "dog"]

WRONG = [
    (
        TRAIN, "[dataset]\nresolution = 13", ["--dataset.resolution", "13"],
        "dataset.resolution must be a multiple of 8, got 13.",
    ),
    (
        TRAIN, "[preview.sampling]\nguidance_scale = 0.5",
        ["--preview.sampling.guidance-scale", "0.5"],
        "preview.sampling.guidance_scale must be 1 or more, got 0.5.",
    ),
    (
        TRAIN, "[optimizer]\nlearning_rate = inf", ["--optimizer.learning-rate", "inf"],
        "optimizer.learning_rate must be a finite number, got inf.",
    ),
    (
        TRAIN, "[prior]\nweight = inf", ["--prior.weight", "inf"],
        "prior.weight must be a finite number, got inf.",
    ),
    (
        TRAIN, "[prior]\nweight = nan", ["--prior.weight", "nan"],
        "prior.weight must be 0 or more, got nan.",
    ),
    (
        TRAIN, f"seed = {2**63}", ["--seed", str(2**63)],
        f"seed must be below 2^63, got {2**63}.",
    ),
    (
        TRAIN, f"[prior.sampling]\nseed = {10**30}", ["--prior.sampling.seed", str(10**30)],
        f"prior.sampling.seed must be below 2^63, got {10**30}.",
    ),
    (
        TRAIN, "[output]\nname = '../dog'", ["--output.name", "../dog"],
        "output.name must be a plain file name, got '../dog': it leads out of its folder.",
    ),
    (TRAIN, "seed = -1", ["--seed", "-1"], "seed must be 0 or more, got -1."),
    (
        TRAIN, "[prior]\nratio = -2", ["--prior.ratio", "-2"],
        "prior.ratio must be above 0, got -2.0.",
    ),
    (
        TRAIN, "[prior.sampling]\nsteps = 0", ["--prior.sampling.steps", "0"],
        "prior.sampling.steps must be between 1 and 1000, got 0.",
    ),
    (
        TRAIN, "[method]\ntext_encoder_stop_step = 3", ["--method.text-encoder-stop-step", "3"],
        "method.text_encoder_learning_rate and text_encoder_stop_step need train_text_encoder. "
        "Switch it on, or leave them out.",
    ),
    (
        INVERT, '[method]\nplaceholder = "cat"', ["--method.placeholder", "cat"],
        "method: The placeholder 'cat' is already a word of CLIP's vocabulary, and would change "
        "that word's meaning in every prompt. Use a new word, such as '<cat>'.",
    ),
    (
        ["priors", "--base", "b"], "weight = -2", ["--weight", "-2"],
        "weight must be 0 or more, got -2.0.",
    ),
    (
        ["priors", "--base", "b"], "[sampling]\nsteps = 0", ["--sampling.steps", "0"],
        "sampling.steps must be between 1 and 1000, got 0.",
    ),
    (
        ["sample", "--checkpoint", "c", "--prompts", "d"], "guidance_scale = 0",
        ["--guidance-scale", "0"], "guidance_scale must be 1 or more, got 0.0.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "toml", "flags", "message"), WRONG)
def test_an_error_names_the_setting_as_it_was_written(
    command, toml, flags, message, tmp_path, caplog, capsys
):
    """In a settings file or as a flag. tyro's internal names do not appear."""
    path = tmp_path / "settings.toml"
    path.write_text(toml, "utf-8")
    for arguments in (["--settings", str(path)], flags):
        caplog.clear()
        assert main([*command, *arguments]) == 1
        assert caplog.messages == [message]
        assert capsys.readouterr() == ("", "")


def test_a_value_of_the_wrong_type_is_reported_with_its_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main([*TRAIN, "--prior.ratio", "x"])
    assert caught.value.code == 2
    assert "Error parsing --prior.ratio: could not convert string to float: 'x'" in (
        capsys.readouterr().err
    )


def help_of(*command: str, capsys) -> str:
    """The help with all its line breaks and frames removed."""
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_describes_commands_and_groups_of_settings(capsys):
    shown = help_of("train", capsys=capsys)
    assert "Train a checkpoint on photos of a subject (DreamBooth), and save it" in shown
    assert "method options" in shown
    assert "__post_init__" not in shown
    shown = help_of(capsys=capsys)
    assert (
        "Presets of train: object, face, textual inversion + DreamBooth, object XL, face XL, toy."
        in shown
    )


def test_help_does_not_keep_the_line_breaks_of_docstrings(capsys, monkeypatch):
    """One of them is before "repeat"."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "run and does not repeat a finished one." in capsys.readouterr().out

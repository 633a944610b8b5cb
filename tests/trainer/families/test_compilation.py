"""Compiling without a compiler is refused in one line. Needs a torch that can compile."""

import pytest
import torch

from trainer.families.compilation import compile_blocks

ADVICE = (
    ". It needs a C++ compiler, and triton on an NVIDIA card. Install what is missing, or switch "
    "compile off: the run trains the same without it."
)


class BasicTransformerBlock(torch.nn.Module):
    """Doubles its input. Named like diffusers' class."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.error:
            raise self.error
        return values * 2


def doubling(error: Exception | None = None) -> torch.nn.Module:
    return torch.nn.Sequential(BasicTransformerBlock(error))


@pytest.fixture
def calls_after_reset():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def failure(network: torch.nn.Module) -> str:
    compile_blocks(network)
    with pytest.raises(ValueError) as caught:
        network(torch.ones(3))
    return str(caught.value)


@pytest.mark.usefixtures("calls_after_reset")
def test_without_a_compiler_the_message_says_that_compile_may_be_off(monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    message = failure(doubling())
    assert message.startswith("compile is on, but torch.compile failed: No working C++ compiler")
    assert "no-such-compiler" in message
    assert message.endswith(ADVICE)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "nice"),
         "[Errno 2] No such file or directory: 'nice'"),
        (PermissionError(13, "Permission denied", "/tmp/torchinductor"),
         "[Errno 13] Permission denied: '/tmp/torchinductor'"),
    ],
)  # fmt: skip
def test_a_program_or_folder_that_the_compiler_lacks_is_named(error, reason):
    with torch.compiler.set_stance("force_eager"):
        message = failure(doubling(error))
    assert message == f"compile is on, but torch.compile failed: {reason}{ADVICE}"


@pytest.mark.usefixtures("calls_after_reset")
def test_a_backend_that_refuses_is_quoted_by_its_first_line():
    def backend(*_: object) -> None:
        raise RuntimeError("Cannot find a working triton installation.\nSee the documentation.")

    network = doubling()
    with torch.compiler.set_stance(force_backend=backend):
        message = failure(network)
    assert message == (
        "compile is on, but torch.compile failed: Cannot find a working triton "
        f"installation{ADVICE}"
    )


def test_other_errors_pass_through():
    network = doubling(KeyError("a bug"))
    compile_blocks(network)
    with torch.compiler.set_stance("force_eager"), pytest.raises(KeyError, match="a bug"):
        network(torch.ones(3))


def test_only_the_blocks_are_compiled():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), BasicTransformerBlock())
    compile_blocks(network)
    compiled = [module for module in network.modules() if module._compiled_call_impl]
    assert compiled == [network[1]]


def test_the_result_is_that_of_the_network():
    network = doubling()
    compile_blocks(network)
    with torch.compiler.set_stance("force_eager"):
        assert network(torch.ones(3)).tolist() == [2, 2, 2]

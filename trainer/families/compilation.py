"""How networks run: torch.compile, with an error that says what to do where it cannot compile, and
gradient checkpointing."""

from __future__ import annotations

from typing import Any

from torch import nn

BLOCK = "BasicTransformerBlock"
"""diffusers' class of the transformer blocks of a U-Net."""


def compile_blocks(unet: nn.Module) -> None:
    """Compile each transformer block of a U-Net at its first call. That call raises ValueError if
    torch cannot compile here, for example because there is no C++ compiler.

    Blocks of equal shapes share their code, so this takes a fraction of the time that the whole
    network would take. And gradients appear block by block: those of a compiled network all exist
    at once."""
    for module in unet.modules():
        if type(module).__name__ == BLOCK:
            _compile(module)


def _compile(network: nn.Module) -> None:
    network.compile()
    compiled: Any = network._compiled_call_impl

    def call(*args: Any, **options: Any) -> Any:
        try:
            return compiled(*args, **options)
        except Exception as error:
            if not _is_about_compiling(error):
                raise
            raise ValueError(
                f"compile is on, but torch.compile failed: {_reason(error)}. It needs a C++ "
                "compiler, and triton on an NVIDIA card. Install what is missing, or switch "
                "compile off: the run trains the same without it."
            ) from error

    network._compiled_call_impl = call


def _is_about_compiling(error: Exception) -> bool:
    # Imported here because it is slow; torch has loaded it by now.
    from torch._dynamo.exc import TorchDynamoException

    # A program that the compiler starts, or its folder for results, may be missing.
    return isinstance(error, (TorchDynamoException, OSError))


def _reason(error: Exception) -> str:
    """The first line of the error's message, without the names of torch's own errors around it."""
    lines = str(getattr(error, "inner_exception", error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def enable_checkpointing(network: Any) -> None:
    """Recompute the activations of a U-Net or text encoder in the backward pass."""
    # transformers only checkpoints in training mode. That changes nothing else, because these
    # networks have no dropout.
    network.train()
    if hasattr(network, "enable_gradient_checkpointing"):  # diffusers
        network.enable_gradient_checkpointing()
    elif hasattr(network, "activation_checkpointing_enable"):  # transformers 5's name
        network.activation_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_enable({"use_reentrant": False})

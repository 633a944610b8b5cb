"""A fake device for tests on computers without a GPU. It is torch's meta device with two additions:
its tensors hold numbers, which the CPU computes, and it refuses to mix devices where CUDA refuses.

torch's own meta device allows much that CUDA refuses: it multiplies a matrix on the device by one
on the CPU, looks up embeddings in a table on another device, and draws from any generator. It also
has no autocast and no generators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, get_autocast_dtype, is_autocast_enabled
from torch.amp import is_autocast_available
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import swap_tensors
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, CPU = torch.device("meta"), torch.device("cpu")
Args, Kwargs = Sequence[Any], Mapping[str, Any]

LISTS = (list, tuple)

aten = torch.ops.aten
COPYING = {aten._to_copy.default, aten.copy_.default}
"""Copies from any device to any other."""
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
"""A tensor on the device may be indexed from the CPU, but not one on the CPU from the device. A
single value may come from the CPU too."""
FILLING = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
"""The value may come from the CPU, and so may any tensor without dimensions in an operation that
torch tags as pointwise."""

ATTRIBUTES = {"numbers", "_is_param"}
"""Those of a tensor on the device itself."""
MAKING = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
SUBSCRIPTS = {Tensor.__getitem__, Tensor.__setitem__}
"""These make tensors on the meta device without an operation; subscripts do so of lists."""

LOWER_PRECISION = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum,
    Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm,
}  # fmt: skip
FP32 = {
    F.layer_norm, F.group_norm, F.softmax, F.mse_loss, torch.softmax, torch.exp, torch.log,
    torch.pow, torch.norm, torch.sum, torch.prod, torch.cumsum, torch.rsqrt, Tensor.softmax,
    Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.norm, Tensor.sum, Tensor.prod,
    Tensor.cumsum, Tensor.rsqrt,
}  # fmt: skip
"""The functions that CUDA's autocast computes in each, as far as networks use them."""


class DeviceTensor(Tensor):
    """A tensor on the device."""

    numbers: Tensor
    """Its values, on the CPU."""

    @staticmethod
    def __new__(cls, numbers: Tensor) -> DeviceTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=DEVICE,
            storage_offset=numbers.storage_offset(),
        )  # fmt: skip
        tensor.numbers = numbers
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Args = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: DeviceTensor) -> None:
        Tensor.data.__set__(self, other)
        self.numbers = other.numbers

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __format__(self, form: str) -> str:
        return format(self.detach().cpu(), form)

    def __reduce_ex__(self, protocol: int) -> Any:
        """In a file it is a tensor on the CPU, as `torch.load(map_location="cpu")` reads CUDA's."""
        return self.detach().cpu().__reduce_ex__(protocol)


class Generator(torch.Generator):
    """torch.Generator, also for the device."""

    _of_device: ClassVar[list[Generator]] = []
    """Kept alive, so that no other generator gets the address of one."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        return super().__new__(cls, CPU if torch.device(device) == DEVICE else device)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._place = torch.device(device)
        if self._place == DEVICE:
            self._of_device.append(self)

    @property
    def device(self) -> torch.device:
        return self._place

    @classmethod
    def place(cls, generator: torch.Generator) -> torch.device:
        """The device of a generator as operations receive it: another object at its address."""
        of_device = any(generator._cdata == other._cdata for other in cls._of_device)
        return DEVICE if of_device else generator.device


class Autocast(torch.autocast):
    """torch.autocast, also for the device. It switches on the CPU's autocast, whose state gradient
    checkpointing restores. `_Calls` does the casts."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


def _of_cpu(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that answers questions about the device as `ask` does for the CPU."""
    return lambda *names: ask(*("cpu" if name == DEVICE.type else name for name in names))


@contextmanager
def fake_device() -> Iterator[Counter[Any]]:
    """Make `DEVICE` work as described above. Yields how often it computed each operation."""
    computed: Counter[Any] = Counter()
    autocasts = {
        "autocast": Autocast,
        "is_autocast_enabled": _of_cpu(is_autocast_enabled),
        "get_autocast_dtype": _of_cpu(get_autocast_dtype),
    }
    before = torch.__future__.get_swap_module_params_on_conversion()
    # A parameter stays the same object when its module moves, as between the CPU and CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            mock.patch.multiple(torch, Generator=Generator, **autocasts),
            mock.patch.multiple(
                torch.amp, autocast=Autocast, is_autocast_available=_of_cpu(is_autocast_available)
            ),
            mock.patch("torch.autograd._engine_run_backward", _run_backward),
            mock.patch("torch.utils.swap_tensors", _swap_tensors),
            _Operations(computed),
            _Calls(),
        ):
            yield computed
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _swap_tensors(parameter: Tensor, moved: Tensor) -> None:
    """Make the parameter its moved copy, as `Module.to` does. Its attributes stay, as with CUDA."""
    kept = {name: value for name, value in vars(parameter).items() if name not in ATTRIBUTES}
    swap_tensors(parameter, moved)
    vars(parameter).update(kept)


class _Operations(TorchDispatchMode):
    """Computes every operation, including those that make tensors on the device."""

    def __init__(self, computed: Counter[Any]) -> None:
        super().__init__()
        self._computed = computed

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch loads its compiler, which is slow and not needed

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self._computed)


class _Calls(TorchFunctionMode):
    """Autocast, and tensors that torch makes on the meta device without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKING:
            return _make(func, args, kwargs)
        if func in SUBSCRIPTS and isinstance(args[0], DeviceTensor):
            args = (args[0], _without_lists(args[1]), *args[2:])
        elif is_autocast_enabled("cpu"):
            if func in LOWER_PRECISION:
                args, kwargs = _cast(args, kwargs, get_autocast_dtype("cpu"))
            elif func in FP32:
                args, kwargs = _cast(args, kwargs, torch.float32)
        return func(*args, **kwargs)


def _make(func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    """Create a tensor from given numbers on the CPU, then move it."""
    place = kwargs.get("device")
    if func is Tensor.new_tensor:
        place = place or args[0].device
        args = (_inside(args[0]), *args[1:])
    made = func(*args, **{**kwargs, "device": CPU if place else None})
    return made.to(place) if place else made


def _run_backward(*args: Any, **kwargs: Any) -> Any:
    """Run torch's backward pass with `_Calls` on, because it computes checkpointed layers again."""
    with _Calls():
        return run_backward(*args, **kwargs)


def _compute(func: Any, args: Args, kwargs: Kwargs, computed: Counter[Any] | None = None) -> Any:
    """Compute an operation on the CPU. Raises RuntimeError if CUDA would refuse it."""
    tensors = _tensors([*args, *kwargs.values()])
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    place, generator = kwargs.get("device"), kwargs.get("generator")
    if not ours and not generator and place != DEVICE:
        return func(*args, **kwargs)
    if 0 < len(ours) < len(tensors) and func not in COPYING:
        _require_one_device(func, args, tensors)
    if place is None:
        place = DEVICE if ours else CPU
    else:
        kwargs = {**kwargs, "device": CPU}
    if generator:
        _require_generator(func, generator, place)
    made = func(*_inside(args), **{name: _inside(value) for name, value in kwargs.items()})
    if place != DEVICE:
        return made
    if computed is not None:
        computed[func] += 1
    return _outside(made)


def _require_one_device(func: Any, args: Args, tensors: Sequence[Tensor]) -> None:
    if func in INDEXING and isinstance(args[0], DeviceTensor):
        tensors = [args[0], *(value for value in args[2:3] if value.ndim > 0)]
    elif torch.Tag.pointwise in func.tags or func in FILLING:
        tensors = [t for t in tensors if t.ndim > 0 or isinstance(t, DeviceTensor)]
    if len({tensor.device for tensor in tensors}) > 1:
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{func} expects all tensors on one device, got {found}.")


def _require_generator(func: Any, generator: torch.Generator, place: torch.device) -> None:
    found = Generator.place(generator)
    if found != place:
        raise RuntimeError(f"{func} on {place} expects a generator on {place}, got one on {found}.")


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among the values and in their lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, LISTS):
            found += _tensors(value)
    return found


def _inside(value: Any) -> Any:
    """Replace each tensor on the device by its numbers, also in lists."""
    if isinstance(value, DeviceTensor):
        return value.numbers
    if isinstance(value, LISTS):
        return [_inside(one) for one in value]
    if isinstance(value, Tensor) and value.is_meta:
        raise NotImplementedError(
            "torch made a meta tensor without numbers. Add the function that made it to MAKING."
        )
    return value


def _outside(value: Any) -> Any:
    """Put each tensor of numbers on the device, also in lists."""
    if isinstance(value, LISTS):
        return type(value)(map(_outside, value))
    return DeviceTensor(value) if isinstance(value, Tensor) else value


def _cast(args: Args, kwargs: Kwargs, dtype: torch.dtype) -> tuple[Args, Kwargs]:
    def cast(value: Any) -> Any:
        is_cast = isinstance(value, DeviceTensor) and value.is_floating_point()
        return value.to(dtype) if is_cast and value.dtype != torch.float64 else value

    return [cast(arg) for arg in args], {name: cast(value) for name, value in kwargs.items()}


def _without_lists(index: Any) -> Any:
    """Replace lists in a subscript by tensors on the CPU, which CUDA accepts."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_without_lists, index)) if isinstance(index, tuple) else index

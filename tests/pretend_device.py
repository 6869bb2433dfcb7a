"""A pretend accelerator: tensors that compute on the CPU and refuse to meet the CPU's tensors, as those on a GPU do.

    with pretend_accelerator() as device:
        torch.ones(2, device=device) + torch.ones(2)  # RuntimeError: Expected all tensors to be on the same device

A tensor subclass reports the device and holds a plain tensor; a dispatch mode hands every operation to the plain tensors,
after it has looked where the arguments are. The rules are CUDA's: a CPU tensor of no dimensions may stand for a number in
elementwise operations, CPU indices may index, copies go anywhere, a generator must be of the device that it draws on, and
what only a CPU has (oneDNN's products, memory that NumPy reads) is refused. The device type is `lazy`: torch knows the name,
nothing has to be registered for it that would outlast a test, and autograd runs it on the caller's thread.

Not pretended: `is_cuda`, page-locked memory, streams, kernels that round differently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, CPU = torch.device("lazy:0"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
optimizer = import_module("torch.optim.optimizer")  # torch.optim hides the module behind the class


class Pretend(Tensor):
    """A tensor on the pretend accelerator; `held` is the plain tensor that it stands for."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretend":
        held = held.resolve_conj().resolve_neg()  # the wrapper cannot say that it is such a view
        form: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):  # views of ordinary tensors are ordinary
            tensor = Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **form)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)
        self.held = other.held

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")
        return self.cpu().numpy()

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"Pretend({self.held})"


class Generator(torch.Generator):
    """torch.Generator that can be of the pretend accelerator; it draws what the CPU's would."""

    def __new__(cls, device="cpu"):
        pretend = torch.device(device) == DEVICE
        generator = super().__new__(cls, CPU if pretend else device)
        generator.pretend = pretend
        return generator


@contextmanager
def pretend_accelerator() -> Iterator[torch.device]:
    """Inside, the device that is yielded takes tensors, modules, generators and fused optimizers."""
    fused = [*optimizer._get_fused_kernels_supported_devices(), DEVICE.type]
    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch, DEVICE.type, _Module, create=True),
        mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: list(fused)),
        _Operations(),
        _Calls(),
    ):
        yield DEVICE


class _Module:
    """What torch asks `torch.DEVICE` for where layers are computed again."""

    device = staticmethod(lambda _: nullcontext())
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)


# --- where things are, and may be -------------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():  # in inference mode compound operations come whole
            with self:
                return func.decompose(*args, **kwargs or {})
        return _computed(func, args, kwargs or {})


def _computed(func, args: tuple, kwargs: dict[str, Any]):
    """One operation: refused, or done by the plain tensors, its outputs where they belong."""
    given: list[Tensor] = []
    _each((args, tuple(kwargs.values())), given.append)
    pretend = {id(t.held): t for t in given if isinstance(t, Pretend)}
    device = kwargs.get("device")
    here = bool(pretend) if device is None else device == DEVICE  # where new tensors go
    if not (pretend or here):
        return func(*args, **kwargs)
    if pretend:
        _refuse_mixing(func, args, given)
    kwargs = {name: _each(value, _plain) for name, value in kwargs.items()}
    found = func(*_each(args, _plain), **(kwargs | {"device": CPU} if device == DEVICE else kwargs))
    plain = {id(t) for t in given}

    def placed(out: Tensor) -> Tensor:
        if id(out) not in pretend:
            return Pretend(out) if here and id(out) not in plain else out
        changed = pretend[id(out)]  # in place
        assert (changed.shape, changed.dtype, changed.stride()) == (out.shape, out.dtype, out.stride()), func
        return changed

    return _each(found, placed)


def _each(part, change: Callable[[Tensor], Any]):
    """`change` of every tensor in lists and tuples; all else as it is."""
    if isinstance(part, Tensor):
        return change(part)
    return type(part)(_each(one, change) for one in part) if type(part) in (list, tuple) else part


def _plain(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, Pretend) else tensor


def _refuse_mixing(func, args: tuple, given: list[Tensor]) -> None:
    name = func.overloadpacket
    if name in COPIES:
        return
    if func.namespace != "aten":
        raise NotImplementedError(f"Could not run '{func}' with arguments from the '{DEVICE.type}' backend")
    indices: list[Tensor] = []
    if name in INDEXING and isinstance(args[0], Pretend):
        _each(args[1], indices.append)
    numbers = torch.Tag.pointwise in func.tags or name in INDEXING
    free = {id(t) for t in given if isinstance(t, Pretend)} | {id(t) for t in indices}
    free |= {id(t) for t in given if numbers and not t.dim() and not (func._schema.is_mutable and t is args[0])}
    for tensor in given:
        if id(tensor) not in free:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and "
                f"{tensor.device}! (when calling {func})"
            )


class _Calls(TorchFunctionMode):
    """What has to be seen before it becomes operations: tensors made of lists, lists as indices, generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return func(*args, **kwargs | {"device": None}).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        if kwargs.get("generator") is not None:
            first = next((part for part in args if isinstance(part, Tensor)), None)
            _refuse_generator(func, kwargs["generator"], device or (CPU if first is None else first.device))
        return func(*args, **kwargs)


def _index(part):
    if isinstance(part, tuple):
        return tuple(map(_index, part))
    return torch.tensor(part) if isinstance(part, list) else part


def _refuse_generator(func, generator: torch.Generator, device: torch.device | str) -> None:
    pretend = torch.device(device) == DEVICE
    if getattr(generator, "pretend", False) != pretend:
        want, got = (DEVICE.type if there else "cpu" for there in (pretend, not pretend))
        raise RuntimeError(f"Expected a '{want}' device type for generator but found '{got}' (when calling {func.__name__})")

"""A GPU that is the processor: tensors that say they lie on cuda:0, with values that it computes.

What a GPU would refuse is refused: operations across devices, NumPy arrays of its memory. So a run
on it shows that every tensor is where it must be, and gives the numbers of the processor. Nothing
is said of CUDA's own kernels, of autocast (which does not reach these tensors) and of streams.

Differs from a GPU in one thing that it lets pass: an `index_put` out of place into a tensor of the
processor, as autograd makes such tensors itself.
"""

from contextlib import ExitStack, contextmanager

import torch
from reference.fake_gpu import tensors_in
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map

GPU = torch.device("cuda", 0)
CAPTURE_CHECKS = (
    "_accelerator_graph_capture_health_check",
    "_cuda_graph_capture_health_check",
)
"""What optimisers of torch ask the driver before a step, by version of torch."""
CROSSINGS = ("aten.copy_", "aten._to_copy")
RESHAPES = ("aten.squeeze_.", "aten.unsqueeze_.", "aten.t_.", "aten.transpose_.")
"""In place; the shape that a shadow gives has to change with that of its values."""
INDEXED = ("aten.index.", "aten.index_put_.")


class Shadow(Tensor):
    """A tensor of the processor that gives its device as the GPU."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )

    def __init__(self, inner):
        self.inner = inner

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    def __repr__(self):
        return f"Shadow({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        given = tensors_in((args, kwargs))
        _refuse_mixed(str(function), given)
        made = function(*tree_map(_inner, args), **tree_map(_inner, kwargs or {}))
        if str(function).startswith(RESHAPES):
            with no_dispatch():
                function(*args)
        if str(function).startswith("aten.copy_") and not isinstance(args[0], Shadow):
            return made
        owners = {id(one.inner): one for one in given if isinstance(one, Shadow)}
        return tree_map(lambda one: owners[id(one)] if id(one) in owners else _shadow(one), made)


def _inner(value):
    return value.inner if isinstance(value, Shadow) else value


def _shadow(value):
    return Shadow(value) if isinstance(value, Tensor) else value


def _refuse_mixed(name, given):
    if name.startswith(CROSSINGS) or name == "aten.index_put.default":
        return
    if name.startswith(INDEXED):
        given = given[:1]  # a GPU takes indices of the processor, not the other way round
        is_mixed = not isinstance(given[0], Shadow)
    else:
        is_mixed = any(one.ndim and not isinstance(one, Shadow) for one in given)
    if is_mixed:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


class _Moves(TorchFunctionMode):
    """Makes and moves shadows where torch would make and move tensors of a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is Tensor.tolist:
            return _inner(args[0]).tolist()
        if function is Tensor.cpu:
            return _moved(args[0], torch.device("cpu"), (), {})
        if function is Tensor.to:
            return _to(function, args, kwargs)
        if function is torch.nn.functional.one_hot or _is_gpu(kwargs.get("device")):
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            made = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
            return tree_map(_shadow, made)
        return function(*args, **kwargs)


def _is_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


def _to(function, args, kwargs):
    source, *rest = args
    target, kept = kwargs.pop("device", None), []
    for one in rest:
        if isinstance(one, torch.device | str):
            target = one
        elif isinstance(one, Tensor):
            target, kept = one.device, [*kept, one.dtype]
        elif isinstance(one, torch.dtype):
            kept.append(one)
    if target is None and "memory_format" in kwargs and isinstance(source, Shadow):
        target = GPU
    if target is None:
        return function(*args, **kwargs)
    kwargs.pop("non_blocking", None)
    return _moved(source, torch.device(target), kept, kwargs)


def _moved(source, target, args, kwargs):
    inner = _inner(source)
    moved = inner.to(*args, **kwargs) if args or kwargs else inner
    if not _is_gpu(target):
        return moved.clone() if moved is inner and isinstance(source, Shadow) else moved
    return source if moved is inner and isinstance(source, Shadow) else Shadow(moved)


def _module_to(to, module, *args, **kwargs):
    """Move a module; one that is there already keeps its parameters, which optimisers know."""
    target = torch._C._nn._parse_to(*args, **kwargs)[0]
    held = [*module.parameters(), *module.buffers()]
    if _is_gpu(target) and all(isinstance(one, Shadow) for one in held):
        return module
    return to(module, *args, **kwargs)


@contextmanager
def shadow_gpu(monkeypatch):
    """Let torch find one GPU, and compute on the processor what is put there.

    A move to another device carries no gradient, as no run moves what it differentiates.
    """
    fork_rng = torch.random.fork_rng
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as undo, monkeypatch.context() as patch:
        undo.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        to = torch.nn.Module.to
        patch.setattr(
            torch.nn.Module, "to", lambda *args, **kwargs: _module_to(to, *args, **kwargs)
        )
        patch.setattr(torch.random, "fork_rng", lambda *_, **__: fork_rng(devices=[]))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda _: "shadow of the processor")
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        for check in CAPTURE_CHECKS:
            patch.setattr(torch.optim.Optimizer, check, lambda _: None, raising=False)
        # nothing can be recorded: the solver runs kernel by kernel
        patch.setenv("LVMMED_CUDA_GRAPH", "0")
        undo.enter_context(_Moves())
        yield

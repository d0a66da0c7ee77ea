"""A GPU of shapes: tensors that have a device and no values, on which any look at a value raises.

Autograd has no engine for them where there is no GPU, so backward passes are not covered.
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoCopies(TorchDispatchMode):
    """Fails on every operation that takes or makes tensors of two kinds of device.

    A copy to the GPU that does not wait, and a single number of the processor in an arithmetic
    operation of the GPU, may be let through.
    """

    def __init__(self, *, allows_uploads=False):
        super().__init__()
        self.allows_uploads = allows_uploads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given, results = (tensors_in(one) for one in ((args, kwargs), made))
        kinds = {one.device.type for one in (*given, *results)}
        if len(kinds) > 1 and not (self.allows_uploads and _is_upload(function, given, kwargs)):
            raise AssertionError(f"{function} works across {sorted(kinds)}")
        return made


def tensors_in(tree):
    """Every tensor in nested lists, tuples and dictionaries."""
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def _is_upload(function, given, kwargs):
    if function is torch.ops.aten._to_copy.default:
        return given[0].device.type == "cpu" and (kwargs or {}).get("non_blocking", False)
    return all(one.device.type == "cuda" or one.ndim == 0 for one in given)


def move_to_fake_gpu(module: nn.Module) -> None:
    """Put fake parameters and buffers in place of a module's, which holds real ones.

    Call it inside a FakeTensorMode that allows inputs that are not fake.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            fake = torch.empty_like(parameter, device="cuda")
            setattr(part, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer, device="cuda"))

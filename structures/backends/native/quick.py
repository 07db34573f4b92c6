"""The call with nothing to consider: no gradient, no mode, everything opened before.

A call of 3 us has no time for all checks: 256 wide, one token, a layer took 11.9 us through them, nn.Linear 9.6 (one
thread, AMD Zen 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends.native import kernel
from structures.backends.native.run import Programs
from structures.structure import Structure

PLAIN = (torch.nn.Parameter, Tensor)  # what has its numbers where data_ptr() says

_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_autocast = torch._C._is_any_autocast_enabled


def plain(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, *, asked: bool
) -> Tensor | None:
    """y (..., out_features); None where there is anything to consider: then the checked way runs or says what is wrong.

    Args:
        asked: the kernel is asked for by name; else it was decided before that it runs this.
    """
    found: Programs | None = structure.memo.get("native")
    dtype, grad = x.dtype, torch.is_grad_enabled()
    program = None if found is None else found.opened.get(dtype)
    if program is None or program.library is not kernel.state() or (grad and x.requires_grad):
        return None
    if _functorch_active() or _dispatch_modes() or _tracing() or _autocast() or forward_ad._current_level >= 0:
        return None
    shape = x.shape
    if type(x) is not Tensor or not x.is_cpu or not x.is_contiguous() or not shape or shape[-1] != program.in_features:
        return None
    pointers = []
    for t in factors:
        if t.dtype is not dtype or type(t) not in PLAIN or not t.is_cpu or not t.is_contiguous():
            return None
        if grad and t.requires_grad:
            return None
        pointers.append(t.data_ptr())
    if bias is not None:
        if bias.dtype is not dtype or type(bias) not in PLAIN or not bias.is_cpu or not bias.is_contiguous():
            return None
        if grad and bias.requires_grad:
            return None
    tokens, threads = x.numel() // program.in_features, torch.get_num_threads()
    if not tokens or not (asked or program.decided.get((tokens, threads))):
        return None
    # slices of a torch.Size cost 0.3 us
    y = (
        x.new_empty(shape[0], program.out_features)
        if len(shape) == 2
        else x.new_empty(*shape[:-1], program.out_features)
    )
    program.write(y, x, program.in_features, tokens, factors, bias, pointers, threads, keep=True)
    return y

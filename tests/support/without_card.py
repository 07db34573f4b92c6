"""Triton where there is no card: its interpreter mended, or a driver for whose card kernels compile and never run."""

from __future__ import annotations

from typing import Any


def interpret() -> None:
    """Let Triton 3.6's interpreter run with numpy 2.4: a scalar tensor is an array of one element there, which numpy no
    longer takes as an integer, so that no loop has a tensor for a bound.
    """
    from triton.runtime import interpreter

    kept = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        kept(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    interpreter._patch_lang_tensor = patched


def compile_for(capability: int) -> None:
    """Compile for a card of this capability."""
    from triton.runtime import driver

    driver.set_active(AbsentCard(capability))


class AbsentCard:
    """Triton's driver of a card that is not there."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

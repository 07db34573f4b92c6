"""LoRA beside structured layers: what peft is told so that its own functions take them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

from torch import nn

from structures.linear import StructuredLinear
from structures.models import linears


def register_lora() -> None:
    """Have peft's LoRA take structured layers as nn.Linear: `get_peft_model`, `from_pretrained`, `load_adapter`.

    Call it once, before peft meets the model; peft has no table of layers that others could add to. Afterwards
    structured layers may be named by `target_modules` and belong to `all-linear`, an adapter trains beside the
    structure, several may be kept, and they are saved and loaded as peft saves them. They cannot be merged: the sum of
    a structure and a product of low rank is no such structure.

    Raises:
        ImportError: peft is not installed.
    """
    _lora()


@lru_cache(maxsize=1)
def _lora() -> Any:
    """The class of adapters beside structured layers, made known to peft."""
    try:
        from peft.tuners import tuners_utils
        from peft.tuners.lora import layer, model
    except ImportError:
        raise ImportError("LoRA beside structured layers needs peft: pip install 'structures[peft]'") from None

    utils: Any = tuners_utils
    dense: Any = layer.Linear
    tuner: Any = model.LoraModel

    class StructuredLora(dense):  # type: ignore[misc]
        """An adapter of low rank beside a structured layer."""

        @property
        def lora_variants(self) -> dict[tuple[str, ...], None]:
            return {(): None}  # the others change the base layer's weight

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            return linears.widths(module)

        def merge(self, safe_merge: bool = False, adapter_names: Any = None) -> NoReturn:
            base = self.get_base_layer()
            raise ValueError(
                f"{base.structure.name}: an adapter cannot be merged into a structured layer, whose factors do not "
                "hold the sum; keep it beside, or unload() it, go back to the dense layers by "
                "swap(model, {...: nn.Linear}), and load it there"
            )

    create, include = tuner._create_new_module, utils._maybe_include_all_linear_layers

    def create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **more: Any) -> Any:
        base = target.get_base_layer() if isinstance(target, utils.BaseTunerLayer) else target
        if isinstance(base, StructuredLinear) and more.get("parameter_name") is None:
            return StructuredLora(target, adapter_name, config=lora_config, **more)
        return create(lora_config, adapter_name, target, **more)

    def maybe_include_all_linear_layers(config: Any, model: nn.Module) -> Any:
        wanted = getattr(config, "target_modules", None)
        found = include(config, model)
        if isinstance(wanted, str) and wanted.lower() == utils.INCLUDE_LINEAR_LAYERS_SHORTHAND:
            ask = getattr(model, "get_output_embeddings", None)
            head = ask() if callable(ask) else None
            names = {n for n, m in model.named_modules() if isinstance(m, StructuredLinear) and m is not head}
            found.target_modules = set(found.target_modules) | names
        return found

    tuner._create_new_module = staticmethod(create_new_module)
    utils._maybe_include_all_linear_layers = maybe_include_all_linear_layers
    return StructuredLora

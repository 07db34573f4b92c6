"""transformers' way in and out: `from_pretrained(..., quantization_config=...)`, and what `save_pretrained` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from structures import backends
from structures.models import described
from structures.models.config import SwapConfig
from structures.models.put import put, untie
from structures.models.rules import SKIP, Rules, linear_layers


def quantization_config(
    rules: Rules | SwapConfig,
    *,
    skip: Sequence[str] = SKIP,
    project: bool | Mapping[str, Any] = True,
    init: str = "linear",
    backend: str = backends.AUTO,
) -> Any:
    """What to give `from_pretrained(..., quantization_config=...)` to have the model swapped when it is loaded.

    The model is an ordinary one afterwards: it trains, and `save_pretrained` writes what was swapped into its config,
    so that `from_pretrained` builds the same layers again, from one file or many, in any dtype and with a device_map.

    Args:
        rules: as `swap` takes them, without predicates; or a SwapConfig, which holds the other arguments too.
        skip, project, init, backend: as `swap` takes them; unlike there, layers are projected unless told otherwise.
    Raises:
        ImportError: transformers is not installed.
    """
    config = rules if isinstance(rules, SwapConfig) else SwapConfig(rules, skip, project, init, backend)
    return _classes()[0](swap=config.to_dict())


def register() -> None:
    """Have transformers know the method `structures.models.transformers`."""
    _classes()


@lru_cache(maxsize=1)
def _classes() -> tuple[Any, Any]:
    """transformers' two classes of a method, registered: its config, and what changes a model while it is loaded."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class StructuredConfig(QuantizationConfigMixin):
        """What is to be swapped, or the layers that were."""

        quant_method: Any

        def __init__(self, swap: Any = None, layers: Any = None, quant_method: str = described.METHOD):
            self.quant_method, self.swap, self.layers = quant_method, swap, layers
            if (swap is None) == (layers is None):
                raise ValueError(f"{described.METHOD}: a config has either the rules of a swap, or layers")

    class StructuredQuantizer(HfQuantizer):
        """Makes the layers before their numbers are loaded, or swaps the dense ones afterwards."""

        requires_calibration = False
        quantization_config: StructuredConfig

        def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
            layers = self.quantization_config.layers
            if layers is not None:
                _build(model, described.check("quantization_config", layers))

        def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
            model_config: Any = getattr(model, "config")  # noqa: B009
            wanted = self.quantization_config.swap
            for name in ("hf_quantizer", "quantization_method"):  # an ordinary model, which any trainer takes
                if name in model.__dict__:
                    delattr(model, name)
            model.__dict__["is_quantized"] = False
            for part in model.modules():
                if getattr(getattr(part, "config", None), "_is_quantized", False):
                    part.config._is_quantized = False  # type: ignore[union-attr]
            del model_config.quantization_config
            if wanted is not None:
                SwapConfig.from_dict(wanted).swap(model)
            else:
                described.record(model)
            return model

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

    register_quantization_config(described.METHOD)(StructuredConfig)
    register_quantizer(described.METHOD)(StructuredQuantizer)
    return StructuredConfig, StructuredQuantizer


def _build(model: nn.Module, layers: described.Layers) -> None:
    """Put the described layers into a model that has no numbers yet."""
    modules = {name: module for names, module in linear_layers(model) for name in names}
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    here: dict[str, Mapping[str, Any]] = {}
    for name, entry in layers.items():
        found = _name_here(name, prefix, modules, model)
        if found is not None:
            aliases = [_name_here(alias, prefix, modules, model) for alias in entry.get("aliases", [])]
            here[found] = {**entry, "aliases": [alias for alias in aliases if alias is not None]}
    put(model, described.rebuilt("quantization_config", here, modules))
    untie(model)


def _name_here(name: str, prefix: str, modules: Mapping[str, nn.Module], model: nn.Module) -> str | None:
    """A layer's name in this model, where a model with a head was saved and one without is loaded, or the other way.

    None for a layer of the head that is not there.
    """
    if name in modules or not prefix:
        return name
    if hasattr(model, prefix):
        return f"{prefix}.{name}" if f"{prefix}.{name}" in modules else name
    return name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else None

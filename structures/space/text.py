"""A Spec as registry YAML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from structures.spec import Spec


def to_yaml(specs: Spec | Iterable[Spec]) -> str:
    """The text of a registry file with these entries; read back, they are equal."""
    several = [specs] if isinstance(specs, Spec) else list(specs)
    return "\n".join(_entry(spec) for spec in several)


def _entry(spec: Spec) -> str:
    fields: dict[str, Any] = {"title": spec.title, "source": spec.source, "variant_of": spec.variant_of}
    fields["options"] = {name: list(v) if isinstance(v, tuple) else v for name, v in spec.options}
    for name in ("sizes", "index", "gate", "init"):
        fields[name] = dict(getattr(spec, name, ()))
    fields["pad"] = spec.pad
    fields["einsum"] = list(spec.einsum) if len(spec.einsum) > 1 else spec.einsum[0]
    kept = {spec.name: {key: value for key, value in fields.items() if value}}
    return yaml.dump(kept, Dumper=_Dumper, sort_keys=False, width=2**20, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Lists of numbers in one line."""


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    numbers = all(isinstance(v, int | float) for v in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=numbers)


_Dumper.add_representer(list, _list)

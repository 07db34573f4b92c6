"""What a swap is to do, as one object that is written to JSON and read from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from structures import backends
from structures.language.expressions import nearest
from structures.language.words import settings
from structures.models.rules import SKIP, Key, Rules, Value, matcher, pairs, target
from structures.models.swap import swap
from structures.models.table import SwapTable
from structures.reading import json_text

DENSE = "nn.Linear"  # the value that stands for the dense layer in JSON
FIELDS = ("rules", "skip", "project", "init", "backend")

Rule = tuple[str, str | None, dict[str, Any]]


@dataclass(frozen=True)
class SwapConfig:
    """The arguments of `swap` that can be written down.

    Args:
        rules: as `swap` takes them, without predicates, which no file can hold.
        skip, project, init, backend: as `swap` takes them.
    Raises:
        ValueError, KeyError: a rule is not well formed, or asks for an unknown structure.

    >>> config = SwapConfig({"*.mlp.*": ("monarch", {"n_blocks": 4}), "all-linear": "dyad_it"}, project=True)
    >>> print(config.to_json())
    {
     "rules": [["*.mlp.*", "monarch", {"n_blocks": 4}], ["all-linear", "dyad_it", {}]],
     "skip": ["heads", "routers", "tied", "read"],
     "project": true,
     "init": "linear",
     "backend": "auto"
    }
    >>> SwapConfig.from_json(config.to_json()) == config
    True
    """

    rules: Any  # given as Rules or as in JSON, kept as a tuple of Rule
    skip: Sequence[str] = SKIP
    project: bool | Mapping[str, Any] = False
    init: str = "linear"
    backend: str = field(default=backends.AUTO)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(_rule(*pair) for pair in _pairs(self.rules)))
        expected = (("skip", str | list | tuple), ("project", bool | Mapping), ("init", str), ("backend", str))
        for name, kind in expected:
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"a swap's config: {name} cannot be {getattr(self, name)!r}")
        skip = (self.skip,) if isinstance(self.skip, str) else tuple(self.skip)
        object.__setattr__(self, "skip", skip)
        for key in skip:
            if not isinstance(key, str):
                raise ValueError(f"skip: {_no_predicate(key)}")
        backends.check_name(self.backend)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `swap` that this is."""
        values: list[tuple[Key, Value]] = []
        for key, name, options in self.rules:
            values.append((key, nn.Linear if name == DENSE else None if name is None else (name, options)))
        given = {name: getattr(self, name) for name in FIELDS[1:]}
        return {"rules": values, **given}

    def swap(self, model: nn.Module, **more: Any) -> SwapTable:
        """`structures.swap(model, ...)` as this says; other arguments of it may be added."""
        return swap(model, **{**self.arguments(), **more})

    def to_dict(self) -> dict[str, Any]:
        """Of plain values, as JSON has them."""
        project = dict(self.project) if isinstance(self.project, Mapping) else self.project
        rules = [[key, name, dict(options)] for key, name, options in self.rules]
        return {**self._plain(), "rules": rules, "skip": list(self.skip), "project": project}

    def to_json(self) -> str:
        """One line for each field."""
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_dict().items()]
        return "{\n" + ",\n".join(lines) + "\n}"

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> SwapConfig:
        """What `to_dict` gives.

        Raises:
            ValueError: a field that does not exist, or that is malformed.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"a swap's config is a mapping, found {given!r}")
        for name in given:
            if name not in FIELDS:
                raise ValueError(f"a swap's config has no field {name!r}{nearest(str(name), FIELDS)}")
        if "rules" not in given:
            raise ValueError("a swap's config has the field rules, a list of [key, structure, options]")
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> SwapConfig:
        """What `to_json` gives.

        Raises:
            ValueError: it is no JSON, has a field that does not exist, or one that is malformed.
        """
        return cls.from_dict(json_text(text, "a swap's config"))

    def _plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}


def rule_of_words(words: Sequence[str]) -> Rule:
    """A rule as a command line gives it: `KEY STRUCTURE [option=value ...]`; the structure may be `none`.

    Raises:
        ValueError: it is not written so.
        KeyError: an unknown structure.
    """
    if len(words) < 2:
        raise ValueError(f"a rule is written KEY STRUCTURE [option=value ...], found {' '.join(words)!r}")
    key, name, *options = words
    return _rule(key, None if name.lower() == "none" else (name, settings(options)))


def _pairs(rules: Any) -> Iterable[tuple[Key, Value]]:
    """Pairs of key and value, of rules as `swap` takes them or as JSON has them: a list of three."""
    if isinstance(rules, list | tuple) and rules and all(isinstance(r, list | tuple) and len(r) == 3 for r in rules):
        for key, name, options in rules:
            yield key, name if name is None or name == DENSE else (name, options)
    else:
        given: Rules = rules
        yield from pairs(given)


def _rule(key: Key, value: Any) -> Rule:
    if not isinstance(key, str):
        raise ValueError(f"rules: {_no_predicate(key)}")
    matcher(key)
    if value == DENSE:
        value = nn.Linear
    wanted = target(key, value)
    if wanted is None:
        return key, None, {}
    if wanted.spec is None:
        return key, DENSE, {}
    if wanted.widths is not None:
        raise ValueError(f"rule {key!r}: a bound structure fits one layer; give the entry and its options instead")
    return key, wanted.spec.name, {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.options}


def _no_predicate(key: object) -> str:
    return f"{key!r} cannot be written down; name the layers by globs or re: and a regex"

"""Which layers of a model the rules of a swap name, and what each is to become."""

from __future__ import annotations

import difflib
import fnmatch
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from structures import registry
from structures.models import linears
from structures.spec import Spec, spec_of
from structures.structure import Structure

Key = str | Callable[[str, nn.Module], bool]
Value = str | Spec | Structure | tuple[str | Spec, Mapping[str, object]] | type[nn.Linear] | None
Rules = Mapping[Any, Value] | Sequence[tuple[Key, Value]]  # Mapping is invariant in its key

ALL = "all-linear"
SKIP = ("heads", "tied")
HEADS = ("lm_head", "head", "embed_out", "classifier", "score", "qa_outputs", "output_projection")  # a name's last part
SHOWN = 12  # names listed in an error


@dataclass(frozen=True)
class Target:
    """What a layer is to become: a structure with options, or the dense layer where `spec` is None.

    widths: (in_features, out_features) of a structure that was given bound; None where it fits what it finds.
    """

    spec: Spec | None
    options: tuple[tuple[str, object], ...] = ()
    widths: tuple[int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """A layer, all its names in the model, and its target."""

    names: tuple[str, ...]
    module: nn.Module
    target: Target


@dataclass(frozen=True)
class Selection:
    """What the rules came to: layers to replace, layers named but left alone with the reason, keys that named none."""

    choices: tuple[Choice, ...]
    skipped: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]


def select(model: nn.Module, rules: Rules, skip: Iterable[Key]) -> Selection:
    """Go through the linear layers of `model`; the first rule that names a layer (by any of its names) decides.

    Raises:
        ValueError: no rule names any layer, or a rule is not well formed. The message lists near names.
        KeyError: a rule asks for an unknown structure.
    """
    read = [(describe(key), matcher(key), target(describe(key), value)) for key, value in _pairs(rules)]
    found = linear_layers(model)
    left_alone = _reasons(model, found, skip)
    used: set[str] = set()
    choices, skipped = [], []
    for names, module in found:
        wanted = [(key, t) for key, matches, t in read if any(matches(name, module) for name in names)]
        used.update(key for key, _ in wanted)
        if not wanted or wanted[0][1] is None:
            continue
        chosen = wanted[0][1]
        reason = None if chosen.spec is None else left_alone.get(id(module))
        if reason is None:
            choices.append(Choice(names, module, chosen))
        else:
            skipped.append((names[0], reason))
    unused = tuple(key for key, _, _ in read if key not in used)
    if len(unused) == len(read):
        raise ValueError(_nothing(model, [key for key, _, _ in read], [name for names, _ in found for name in names]))
    return Selection(tuple(choices), tuple(skipped), unused)


def linear_layers(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Every linear layer once, with all the names it goes by; the model's own name is ''."""
    found: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if linears.kind(module) is not None:
            found.setdefault(id(module), ([], module))[0].append(name)
    return [(tuple(names), module) for names, module in found.values()]


def matcher(key: Key) -> Callable[[str, nn.Module], bool]:
    """The test that a key stands for: a glob, `re:` and a regex for the whole name, `all-linear`, or a predicate.

    In a glob `*` spans dots too: `*.mlp.*` names `h.0.mlp.fc1` but not `mlp.fc1`.
    """
    if callable(key):
        return key
    if not isinstance(key, str):
        raise ValueError(f"a rule's key is a glob, 're:' and a regex, {ALL!r} or a predicate, found {key!r}")
    if key == ALL:
        return lambda name, module: True
    try:
        pattern = re.compile(key[3:] if key.startswith("re:") else fnmatch.translate(key))
    except re.error as error:
        raise ValueError(f"rule {key!r}: not a regular expression: {error}") from None
    return lambda name, module: pattern.fullmatch(name) is not None


def target(key: str, value: object) -> Target | None:
    """What a rule's value asks for; None leaves the layer as it is."""
    if value is None:
        return None
    if value is nn.Linear:
        return Target(None)
    if isinstance(value, Structure):
        return Target(spec_of(value), value.options, (value.in_features, value.out_features))
    options: object = {}
    if isinstance(value, tuple | list) and len(value) == 2:
        value, options = value
    if not isinstance(value, str | Spec) or not isinstance(options, Mapping):
        raise ValueError(
            f"rule {key!r}: the value is the name of a structure, a Spec, (either, options), a bound Structure, "
            f"nn.Linear for the dense layer or None to leave a layer as it is; found {reprlib.repr(value)}"
        )
    try:
        spec = registry.get(value) if isinstance(value, str) else value
    except KeyError as error:
        raise KeyError(f"rule {key!r}: {error.args[0]}") from None
    frozen = ((str(k), tuple(v) if isinstance(v, list) else v) for k, v in options.items())
    return Target(spec, tuple(frozen))


def describe(key: Key) -> str:
    """A key as text."""
    return key if isinstance(key, str) else getattr(key, "__name__", repr(key))


def collapse(name: str) -> str:
    """The name with its numbers replaced by `*`, so that repeated blocks read as one."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _pairs(rules: Rules) -> list[tuple[Key, Value]]:
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if isinstance(pairs, str) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"rules map keys to structures, such as {{'*.mlp.*': 'name'}}; found {rules!r}")
    if not pairs:
        raise ValueError(f"there are no rules; {{{ALL!r}: 'name'}} names every linear layer")
    return list(pairs)


def _reasons(model: nn.Module, found: list[tuple[tuple[str, ...], nn.Module]], skip: Iterable[Key]) -> dict[int, str]:
    """Why layers are left alone, by id: those that cannot be replaced, and those that `skip` names."""
    skip = [skip] if isinstance(skip, str) or callable(skip) else list(skip)
    words = set(SKIP).intersection(key for key in skip if isinstance(key, str))
    tests = [(describe(key), matcher(key)) for key in skip if not isinstance(key, str) or key not in words]
    for key, matches in tests:
        if found and not any(matches(name, module) for names, module in found for name in names):
            allowed = f"{', '.join(map(repr, SKIP))} and keys as in rules"
            raise ValueError(f"skip: no linear layer is named by {key!r}; skip takes {allowed}")
    parents: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for own_name, child in parent.named_children():
            parents.setdefault(id(child), []).append((parent, own_name))
    owners = _owners(model)
    head = _output_layer(model)
    reasons: dict[int, str] = {}
    for names, module in found:
        reason = linears.refusal(module)
        for parent, own_name in parents.get(id(module), ()):
            reason = reason or linears.reader(parent, own_name)
        if reason is None and "heads" in words and (module is head or names[0].rpartition(".")[2] in HEADS):
            reason = "an output head; skip=() swaps it too"
        if reason is None and "tied" in words:
            others = {n for p in module.parameters(recurse=False) for n in owners[id(p)]} - set(names)
            if others:
                reason = f"tied to {', '.join(sorted(others))}; skip=() swaps it and unties them"
        named = [key for key, matches in tests if any(matches(name, module) for name in names)]
        if reason is None and named:
            reason = f"named by skip, {named[0]!r}"
        if reason is not None:
            reasons[id(module)] = reason
    return reasons


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """The names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return owners


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The head of a transformers model, which knows its own."""
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return head if isinstance(head, nn.Module) else None


def _nothing(model: nn.Module, keys: list[str], names: list[str]) -> str:
    what = f"no linear layer of {type(model).__name__} is named by {', '.join(map(repr, keys))}"
    if not names:
        return f"{what}: it has none (nn.Linear, Conv1D or StructuredLinear)"
    inside = [f"{key}.*" for key in keys if any(n.startswith(f"{key}.") for n in names)]
    inside += [ALL for key in keys if key.replace("_", "-").lower() == ALL]
    hint = f"; did you mean {inside[0]!r}?" if inside else ""
    counts: dict[str, int] = {}
    for name in names:
        counts[collapse(name)] = counts.get(collapse(name), 0) + 1
    close = difflib.get_close_matches(keys[0].removeprefix("re:"), list(counts), n=SHOWN, cutoff=0.3)
    listed = [*close, *(name for name in counts if name not in close)]
    shown = ", ".join(f"{name} ({counts[name]})" if counts[name] > 1 else name or "''" for name in listed[:SHOWN])
    return f"{what}{hint}; its linear layers: {shown}{', ...' if len(listed) > SHOWN else ''}"

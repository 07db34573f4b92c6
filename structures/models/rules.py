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
from torch.nn.parameter import UninitializedParameter

from structures import registry
from structures.models import linears
from structures.spec import Spec, spec_of
from structures.structure import Structure

Key = str | Callable[[str, nn.Module], bool]
Value = str | Spec | Structure | tuple[str | Spec, Mapping[str, object]] | type[nn.Linear] | None
Rules = Mapping[Any, Value] | Sequence[tuple[Key, Value]]  # Mapping is invariant in its key

ALL = "all-linear"
SKIP = ("heads", "routers", "tied", "read")
HEADS = frozenset({  # parts of names, of which a head has one among its last
    *("lm_head", "head", "embed_out", "classifier", "classification_head", "score", "qa_outputs", "output_projection"),
    "seq_relationship",
})  # fmt: skip
HEAD_DEPTH = 3  # `classifier.out_proj`, `head.mlp.fc1`
ROUTERS = frozenset({"router", "gate", "wg", "shared_expert_gate"})  # a router is named so, and narrows
HOLDERS = ("torch.nn.modules.module", "torch.nn.modules.container")  # of torch's modules, what hold a user's parameters
LARGE = 0.01  # share of the parameters from which weights outside linear layers are named
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
    others: tuple[tuple[str, tuple[int, ...], float], ...] = ()  # weights of no linear layer: name, shape, share


def select(model: nn.Module, rules: Rules, skip: Iterable[Key]) -> Selection:
    """Go through the linear layers of `model`; the first rule that names a layer (by any of its names) decides.

    Raises:
        ValueError: no rule names any layer, or a rule is not well formed. The message lists near names.
        KeyError: a rule asks for an unknown structure.
    """
    read = [(describe(key), matcher(key), target(describe(key), value)) for key, value in pairs(rules)]
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
        raise ValueError(_nothing(model, read, [name for names, _ in found for name in names]))
    return Selection(tuple(choices), tuple(skipped), unused, _others(model))


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


def pairs(rules: Rules) -> list[tuple[Key, Value]]:
    """Keys and values in order of precedence.

    Raises:
        ValueError: they are no such pairs, or there are none.
    """
    found = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(found, list | tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in found):
        raise ValueError(f"rules map keys to structures, such as {{'*.mlp.*': 'name'}}; found {rules!r}")
    if not found:
        raise ValueError(f"there are no rules; {{{ALL!r}: 'name'}} names every linear layer")
    return list(found)


def _reasons(model: nn.Module, found: list[tuple[tuple[str, ...], nn.Module]], skip: Iterable[Key]) -> dict[int, str]:
    """Why layers are left alone, by id: those that cannot be replaced, and those that `skip` names."""
    skip = [skip] if isinstance(skip, str) or callable(skip) else list(skip)
    words = set(SKIP).intersection(key for key in skip if isinstance(key, str))
    tests = [(describe(key), matcher(key)) for key in skip if not isinstance(key, str) or key not in words]
    for key, matches in tests:
        if found and not any(matches(name, module) for names, module in found for name in names):
            allowed = f"{', '.join(map(repr, SKIP))} and keys as in rules"
            raise ValueError(f"skip: no linear layer is named by {key!r}; skip takes {allowed}")
    checks = [check for word, check in _checks(model).items() if word in words]
    adapters = _adapters(model)
    reasons: dict[int, str] = {}
    for names, module in found:
        reason = linears.refusal(module) or adapters.get(id(module))
        for check in checks:
            reason = reason or check(names, module)
        named = [key for key, matches in tests if any(matches(name, module) for name in names)]
        if reason is None and named:
            reason = f"named by skip, {named[0]!r}"
        if reason is not None:
            reasons[id(module)] = reason
    return reasons


Check = Callable[[tuple[str, ...], nn.Module], str | None]


def _checks(model: nn.Module) -> dict[str, Check]:
    """What each word of SKIP looks for, in the order in which one reason is given for a layer."""
    parents: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for own_name, child in parent.named_children():
            parents.setdefault(id(child), []).append((parent, own_name))
    owners, heads = _owners(model), _output_layers(model)

    def read(names: tuple[str, ...], module: nn.Module) -> str | None:
        found = [reader for parent, own in parents.get(id(module), ()) if (reader := linears.reader(parent, own))]
        return f"{found[0]}; skip=() swaps it" if found else None

    def routers(names: tuple[str, ...], module: nn.Module) -> str | None:
        wide, tall = linears.widths(module)
        if tall == 1:
            return "it has one output; skip=() swaps it too"
        parts = names[0].split(".")[-2:]
        return "a router of experts; skip=() swaps it too" if ROUTERS.intersection(parts) and tall < wide else None

    def is_head(names: tuple[str, ...], module: nn.Module) -> str | None:
        found = id(module) in heads or HEADS.intersection(names[0].split(".")[-HEAD_DEPTH:])
        return "an output head; skip=() swaps it too" if found else None

    def tied(names: tuple[str, ...], module: nn.Module) -> str | None:
        others = {n for p in module.parameters(recurse=False) for n in owners[id(p)]} - set(names)
        return f"tied to {', '.join(sorted(others))}; skip=() swaps it and unties them" if others else None

    return {"read": read, "routers": routers, "heads": is_head, "tied": tied}


def _adapters(model: nn.Module) -> dict[int, str]:
    """Layers that belong to an adapter of peft, by id: everything beside the `base_layer` that it adapts."""
    found: dict[int, str] = {}
    reason = "an adapter of peft; the base_layer beside it may be replaced"
    for module in model.modules():
        base = module._modules.get("base_layer")
        if base is None:
            continue
        own = {id(m) for m in module.modules()} - {id(m) for m in base.modules()}
        found |= dict.fromkeys(own - {id(module)}, reason)
        if linears.kind(module) is not None:
            found[id(module)] = reason
    return found


def _others(model: nn.Module) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Large weights that no linear layer holds, such as experts that are kept in one tensor: name, shape, share."""
    total = sum(p.numel() for p in model.parameters() if not isinstance(p, UninitializedParameter))
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, module in model.named_modules():
        place = type(module).__module__
        of_torch = place.startswith("torch.nn.") and place not in HOLDERS
        if linears.kind(module) is not None or of_torch:
            continue
        for own, p in module.named_parameters(recurse=False):
            is_weight = (p.dim() == 3 and min(p.shape) > 1) or (p.dim() == 2 and "weight" in own)
            if type(p) is nn.Parameter and p.is_floating_point() and is_weight and "embed" not in name.lower():
                key = collapse(f"{name}.{own}" if name else own)
                shape, count = found.get(key, (tuple(p.shape), 0))
                found[key] = (shape, count + p.numel())
    return tuple((key, shape, count / total) for key, (shape, count) in found.items() if count >= LARGE * total)


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """The names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return owners


def _output_layers(model: nn.Module) -> set[int]:
    """The heads of a model that knows its own, as transformers' and timm's do; by id, with what is inside them."""
    heads: set[int] = set()
    for ask in ("get_output_embeddings", "get_classifier"):
        method = getattr(model, ask, None)
        head = method() if callable(method) else None
        for part in head if isinstance(head, tuple | list) else [head]:  # of a distilled model two
            if isinstance(part, nn.Module) and part is not model:
                heads.update(id(m) for m in part.modules())
    return heads


def _nothing(
    model: nn.Module, read: Sequence[tuple[str, Callable[[str, nn.Module], bool], object]], names: list[str]
) -> str:
    keys = [key for key, _, _ in read]
    weights = [(key, name, shape) for name, shape, _ in _others(model) for key, test, _ in read if test(name, model)]
    if weights:
        key, name, shape = weights[0]
        return f"{key!r} names {name} {shape}, which is a parameter of no linear layer and cannot be replaced"
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

"""nn.Linear -> structured, inside an existing model, and back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from structures import backends, initial
from structures.language.expressions import nearest
from structures.linear import StructuredLinear
from structures.models import described, linears
from structures.models.put import put, set_fast_paths, untie
from structures.models.rules import SKIP, Choice, Key, Rules, collapse, select
from structures.models.sequential import batches_of, made_in_order
from structures.models.table import SwapRow, SwapTable
from structures.projection.project import Projection, from_linear
from structures.spec import spec_of
from structures.structure import Structure

ARGUMENTS = ("damping", "refine", "tolerance", "limit", "progress")  # of from_linear, for all layers alike
MAX_SHOWN = 5  # layers that do not fit, named in one error

Job = tuple[Choice, Structure | None]  # None: back to the dense layer

log = logging.getLogger("structures")


def swap(
    model: nn.Module,
    rules: Rules,
    *,
    project: bool | Mapping[str, Any] = False,
    inputs: Mapping[str, Tensor] | Iterable[Any] | None = None,
    held_out: Mapping[str, Tensor] | Iterable[Any] | None = None,
    sequential: bool = False,
    init: str = "linear",
    backend: str = backends.AUTO,
    dry_run: bool = False,
    skip: Iterable[Key] = SKIP,
    predict_error: bool = False,
) -> SwapTable:
    """Replace linear layers of `model` in place; everything is planned and built before the first one is replaced.

    Args:
        rules: `{key: value}` in order of precedence; the first key that names a layer decides. A key is a glob for the
            layer's name (`*` spans dots), `re:` and a regex for the whole name, `all-linear`, or a predicate
            `(name, module) -> bool`. A value is a structure's name, a Spec, `(either, options)`, a Structure of the
            layers' widths, `nn.Linear` to go back to the dense layer, or None to leave a layer as it is. Linear layers
            are nn.Linear, transformers' Conv1D and StructuredLinear.
        project: start from the factors nearest to the layer's weight; a mapping is arguments of `from_linear`, such as
            `{"refine": 100}`. Without it factors are drawn by `init`, and the bias alone is kept.
        inputs, held_out: by layer's name, what it reads or the covariance of it: the projection is then nearest in its
            outputs, where there are inputs, and the table has the output error.
        sequential: convert the layers in the order they are called, each fitted on what the ones converted before it
            hand on and towards the dense model's outputs, so that errors do not add up. `inputs` and `held_out` are
            then batches of the model: a list of tensors, tuples of arguments or mappings of keyword arguments, run in
            eval mode through both models, or a `structures.models.sequential.Recorded` of them, for several
            conversions.
        init, backend: of the new layers, as StructuredLinear takes them.
        dry_run: only return the table. Needs no weights: the model may be on the meta device.
        skip: what stays though a rule names it: `heads` (the model's output layer, and names with a part lm_head,
            head, classifier, ...), `routers` (of experts, and what has one output), `tied` (a parameter is shared with
            another module), `read` (its parent uses its weight, as nn.MultiheadAttention does out_proj's: the dense
            form would be computed in every call), and keys as in `rules`. `()` swaps them all. Adapters of peft always
            stay; the layer below them may be replaced.
        predict_error: let a dry run project every layer and forget the result: the table then has the errors.
    Returns:
        the table, also of what was left alone, and the model as `.model`: the new layer, where the model was one.
    Raises:
        ValueError: nothing is named by the rules, or by a key of `skip` or `inputs` (the message lists near names), a
            structure does not fit a layer, there is no weight to project, or the model is wrapped, sharded or offloaded
            so that something outside holds its parameters. The model is unchanged.
        KeyError: an unknown structure.

    Kept: modules that are shared stay shared, hooks on calls, training flag, device, dtype, requires_grad. Make the
    optimizer afterwards: it would hold the old parameters. nn.TransformerEncoder's fast path is off while a layer in
    it is structured.

    >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    >>> rules = {"*": ("monarch", {"n_blocks": 4})}
    >>> print(swap(model, rules, dry_run=True))  # changes nothing
    layer  from    to                   in -> out  params  after  share   FLOPs   after
    0      Linear  monarch(n_blocks=4)  64 -> 256  16,640  5,376  0.323  32,768  10,240
    2      Linear  monarch(n_blocks=4)  256 -> 64  16,448  5,184  0.315  32,768  10,240
    2 layers: parameters 33,088 -> 10,560 (0.319), FLOPs a token 65,536 -> 20,480 (0.312)
    whole model: parameters 33,088 -> 10,560 (0.319)
    >>> plan = swap(model, rules, project=True)  # the nearest factors, in place
    >>> [0 < row.error < 1 for row in plan.rows], type(model[0]).__name__
    ([True, True], 'StructuredLinear')
    >>> len(swap(model, {"*": nn.Linear})), type(model[0]).__name__  # and back
    (2, 'Linear')
    """
    backends.check_name(backend)
    if init not in initial.INITS:
        raise ValueError(f"init is one of {', '.join(initial.INITS)}, found {init!r}")
    _check(model, project, inputs, held_out, sequential, dry_run, predict_error)
    selection = select(model, rules, skip)
    jobs = [job for job in _bound(selection.choices) if not _is_already(*job)]
    given = _given(model, jobs, project, *((None, None) if sequential else (inputs, held_out)))  # type: ignore[arg-type]
    made: dict[int, nn.Module] = {}
    fitted = _in_order(model, jobs, project, inputs, held_out, backend) if sequential else {}
    rows = []
    for choice, structure in jobs:
        new = fitted.get(id(choice.module))
        if new is None and (not dry_run or predict_error):
            arguments = given[id(choice.module)] if project is not False or dry_run else None
            new = _made(choice, structure, arguments, init, backend)
        if new is not None and not dry_run:
            made[id(choice.module)] = new
        rows.append(_row(choice, structure, getattr(new, "projection", None)))
    plan = SwapTable(
        tuple(rows), selection.skipped, selection.unused, *_totals(model, jobs, rows), model, selection.others
    )
    if dry_run:
        return plan
    root = put(model, made)
    set_fast_paths(root)
    untie(root)
    described.record(root)
    if plan.remarks():
        log.warning("swap: %s", "; ".join(plan.remarks()))
    return replace(plan, model=root)


def _check(
    model: nn.Module,
    project: bool | Mapping[str, Any],
    inputs: Mapping[str, Tensor] | Iterable[Any] | None,
    held_out: Mapping[str, Tensor] | Iterable[Any] | None,
    sequential: bool,
    dry_run: bool,
    predict_error: bool,
) -> None:
    """The arguments of `swap` for themselves; all mistakes are found before anything is built."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"swap: model is an nn.Module, found {type(model).__name__}")
    reason = linears.wrapped(model)
    if reason is not None:
        raise ValueError(f"swap: {reason}")
    if not isinstance(project, bool | Mapping):
        raise ValueError(f"swap: project is True, False or a mapping of arguments of from_linear, found {project!r}")
    for name in project if isinstance(project, Mapping) else ():
        if name not in ARGUMENTS:
            raise ValueError(f"swap: project has no argument {name!r}{nearest(str(name), ARGUMENTS)}")
    if predict_error and not dry_run:
        raise ValueError("swap: predict_error is for dry_run=True; with project=True the table has the errors")
    if sequential:
        if project is False or inputs is None:
            raise ValueError(
                "swap: sequential=True is a projection on the model's batches; add project=True and inputs="
            )
        if dry_run:
            raise ValueError(
                "swap: sequential=True converts layer after layer, which a dry run does not; leave one out"
            )
        return
    for what, tensors in (("inputs", inputs), ("held_out", held_out)):
        if tensors is None:
            continue
        if not isinstance(tensors, Mapping):
            raise ValueError(
                f"swap: {what} maps layers' names to tensors, found {type(tensors).__name__}; "
                "collect_covariances(model, batches) makes such a mapping, and sequential=True takes the batches"
            )
        if project is False and not predict_error and not dry_run:
            raise ValueError(f"swap: {what} is for a projection; add project=True")


def _given(
    model: nn.Module,
    jobs: list[Job],
    project: bool | Mapping[str, Any],
    inputs: Mapping[str, Tensor] | None,
    held_out: Mapping[str, Tensor] | None,
) -> dict[int, dict[str, Any]]:
    """What `from_linear` is given for each layer, by the layer's id."""
    given = {id(choice.module): dict(project) if isinstance(project, Mapping) else {} for choice, _ in jobs}
    layer_of = {name: id(choice.module) for choice, _ in jobs for name in choice.names}
    for what, tensors in (("inputs", inputs), ("held_out", held_out)):
        known = {name for name, _ in model.named_modules(remove_duplicate=False)}
        for name in tensors or ():
            if name not in known:
                hint = nearest(str(name), sorted(layer_of))
                raise ValueError(f"swap: {what} names {name!r}, which is no layer{hint}")
        if tensors and layer_of and not layer_of.keys() & tensors.keys():
            raise ValueError(f"swap: {what} names no layer to replace{nearest(next(iter(tensors)), sorted(layer_of))}")
        for name in layer_of.keys() & (tensors or {}).keys():
            given[layer_of[name]][what] = (tensors or {})[name]
    return given


def _in_order(
    model: nn.Module,
    jobs: list[Job],
    project: bool | Mapping[str, Any],
    inputs: object,
    held_out: object,
    backend: str,
) -> Mapping[int, nn.Module]:
    """The new layers of a sequential conversion, by the old ones' ids; those that become dense are not among them."""
    work = [(choice.names[0], choice.module, structure) for choice, structure in jobs if structure is not None]
    for name, module, _ in work:
        if any(p.is_meta for p in module.parameters()):
            raise ValueError(f"{name}: it is on the meta device and has no weight to project; load the weights first")
    if not work:
        return {}
    batches = batches_of("inputs", inputs)
    measured = None if held_out is None else batches_of("held_out", held_out)
    return made_in_order(model, work, batches, measured, project if isinstance(project, Mapping) else {}, backend)


def _bound(choices: tuple[Choice, ...]) -> list[Job]:
    """Each choice with its structure, None for the dense layer; an error names all layers that do not fit."""
    bound: list[Job] = []
    count = 0
    wrong: dict[str, Choice] = {}
    for choice in choices:
        spec, options = choice.target.spec, dict[str, Any](choice.target.options)
        found, bound_to = linears.widths(choice.module), choice.target.widths or linears.widths(choice.module)
        try:
            if spec is not None and found != bound_to:
                raise ValueError(
                    f"{spec.name} is bound to {bound_to[0]} -> {bound_to[1]}, the layer is {found[0]} -> {found[1]}; "
                    "give the entry and its options instead"
                )
            structure = None if spec is None else spec.bind(*found, **options)
        except ValueError as error:
            wrong.setdefault(f"{collapse(choice.names[0]) or '(the model itself)'}: {error}", choice)
            count += 1
        else:
            bound.append((choice, structure))
    if wrong:
        shown = "\n".join(f"  {message}" for message in list(wrong)[:MAX_SHOWN])
        more = f"\n  and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        first = next(iter(wrong.values())).names[0]
        raise ValueError(
            f"{count} of {len(choices)} layers do not fit:\n{shown}{more}\n"
            f"give them a rule of their own, or leave them as they are with {{{first!r}: None, ...}} in front"
        )
    return bound


def _is_already(choice: Choice, structure: Structure | None) -> bool:
    if structure is None:
        return not isinstance(choice.module, StructuredLinear)
    return isinstance(choice.module, StructuredLinear) and choice.module.structure == structure


def _made(
    choice: Choice, structure: Structure | None, arguments: dict[str, Any] | None, init: str, backend: str
) -> nn.Module:
    """The new layer: projected with `arguments` of `from_linear`, or fresh where they are None."""
    old = choice.module
    name = choice.names[0] or "(the model itself)"
    if (arguments is not None or structure is None) and any(p.is_meta for p in old.parameters()):
        raise ValueError(f"{name}: it is on the meta device and has no weight to project; load the weights first")
    try:
        if structure is None:
            new = linears.restored(old)
        elif arguments is None:
            new = _fresh(old, structure, init, backend)
        else:
            new = from_linear(linears.as_linear(old), structure, backend=backend, **arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    linears.carry(old, new)
    return new


def _fresh(old: nn.Module, structure: Structure, init: str, backend: str) -> StructuredLinear:
    options: dict[str, Any] = dict(structure.options)
    bias = old._parameters.get("bias")
    like = next(p for name, p in old.named_parameters(recurse=False) if name != "bias")
    new = StructuredLinear(
        spec_of(structure),
        *structure.widths,
        bias is not None,
        device=like.device,
        dtype=like.dtype,
        backend=backend,
        init=init,
        **options,
    )
    if new.bias is not None and bias is not None:
        new.bias.data.copy_(bias.detach())
    return new


def _row(choice: Choice, structure: Structure | None, projection: Projection | None) -> SwapRow:
    module = choice.module
    in_features, out_features = linears.widths(module)
    bias = out_features if module._parameters.get("bias") is not None else 0
    dense = in_features * out_features
    now = module.structure if isinstance(module, StructuredLinear) else None
    return SwapRow(
        layer=choice.names[0],
        aliases=choice.names[1:],
        source=linears.kind(module) or "",
        target="Linear" if structure is None else structure.name,
        options=() if structure is None else structure.options,
        in_features=in_features,
        out_features=out_features,
        params_before=(now.params if now else dense) + bias,
        params_after=(structure.params if structure else dense) + bias,
        flops_before=now.flops() if now else 2 * dense,
        flops_after=structure.flops() if structure else 2 * dense,
        error=None if projection is None else projection.weight_error,
        output_error=None if projection is None else projection.output_error,
    )


def _totals(model: nn.Module, jobs: list[Job], rows: list[SwapRow]) -> tuple[int, int]:
    """Parameters of the whole model before and after, shared ones once."""
    gone = {id(choice.module) for choice, _ in jobs}
    sizes = [
        (id(m) in gone, id(p), 0 if isinstance(p, UninitializedParameter) else p.numel())
        for m in model.modules()
        for p in m.parameters(recurse=False)
    ]
    before = {parameter: size for _, parameter, size in sizes}
    stays = {parameter: size for is_gone, parameter, size in sizes if not is_gone}
    return sum(before.values()), sum(stays.values()) + sum(row.params_after for row in rows)

"""What a swap does, layer by layer: the table that `swap` returns, with or without having done it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from structures.models.rules import collapse


@dataclass(frozen=True)
class SwapRow:
    """One layer of a swap. Parameters count the bias; FLOPs are those of one token's forward, 2 per multiply-add."""

    layer: str  # its name in the model, '' for the model itself
    aliases: tuple[str, ...]  # its other names, where a module is shared
    source: str  # `Linear`, `Conv1D` or the structure it has now
    target: str  # a structure, or `Linear`
    options: tuple[tuple[str, object], ...]
    in_features: int
    out_features: int
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    error: float | None = None  # ||W_new - W|| / ||W|| in the Frobenius norm, where the layer was projected
    output_error: float | None = None  # the same of the outputs, where inputs were given


@dataclass(frozen=True)
class SwapTable:
    """The rows of a swap and what it leaves alone; `print` shows it as a table."""

    rows: tuple[SwapRow, ...]
    skipped: tuple[tuple[str, str], ...]  # layers that a rule names and that stay, with the reason
    unused: tuple[str, ...]  # keys that name no linear layer
    params_before: int  # of the whole model, shared parameters once
    params_after: int
    model: nn.Module = field(repr=False, compare=False)  # the model; the new layer where the model itself was one
    others: tuple[tuple[str, tuple[int, ...], float], ...] = ()  # weights of no linear layer: name, shape, share

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, each: bool = False) -> list[str]:
        """The table as text; layers that differ by their numbers alone share a line unless `each` is asked for."""
        groups = [(r.layer or "(itself)", [r]) for r in self.rows] if each else _grouped(self.rows)
        table = [_HEADER, *_cells(groups)]
        shown = [i for i, title in enumerate(_HEADER) if "error" not in title or any(line[i] for line in table[1:])]
        sizes = [max(len(line[i]) for line in table) for i in shown]
        lines = []
        for line in table:
            cells = [
                line[i].ljust(n) if i < _TEXT else line[i].rjust(n) for i, n in zip(shown, sizes, strict=True)
            ]  # text to the left, numbers to the right
            lines.append("  ".join(cells).rstrip())
        return [*lines, *self.notes()]

    def notes(self) -> list[str]:
        """What the rows do not say: the totals, and what stays as it is."""
        saved = sum(r.params_before for r in self.rows), sum(r.params_after for r in self.rows)
        flops = sum(r.flops_before for r in self.rows), sum(r.flops_after for r in self.rows)
        notes = [
            f"{len(self.rows)} layers: parameters {_change(*saved)}, FLOPs a token {_change(*flops)}",
            f"whole model: parameters {_change(self.params_before, self.params_after)}",
        ]
        return [*notes, *self.remarks()]

    def remarks(self) -> list[str]:
        """What was asked for and is not done: layers left alone with the reason, keys that name none."""
        reasons: dict[tuple[str, str], int] = {}
        for name, reason in self.skipped:
            line = collapse(name), reason
            reasons[line] = reasons.get(line, 0) + 1
        left = [f"left alone: {name or '(itself)'}{_times(n)}: {reason}" for (name, reason), n in reasons.items()]
        left += [
            f"not in a linear layer, left alone: {name} {shape}: {share:.0%} of the parameters"
            for name, shape, share in self.others
        ]
        return [*left, *(f"no linear layer is named by {key!r}" for key in self.unused)]


_HEADER = ("layer", "from", "to", "in -> out", "params", "after", "share", "FLOPs", "after", "error", "output error")
_TEXT = 4  # columns of text before those of numbers


def _grouped(rows: tuple[SwapRow, ...]) -> list[tuple[str, list[SwapRow]]]:
    groups: dict[tuple[object, ...], list[SwapRow]] = {}
    for r in rows:
        alike = collapse(r.layer), len(r.aliases), r.source, r.target, r.options, r.in_features, r.out_features
        groups.setdefault((*alike, r.params_before, r.params_after), []).append(r)
    return [(collapse(g[0].layer) if len(g) > 1 else g[0].layer or "(itself)", g) for g in groups.values()]


def _cells(groups: list[tuple[str, list[SwapRow]]]) -> Iterator[tuple[str, ...]]:
    for name, rows in groups:
        r = rows[0]
        options = "".join(f", {k}={list(v) if isinstance(v, tuple) else v}" for k, v in r.options)
        yield (
            name + _times(len(rows)) + (f" (= {', '.join(r.aliases)})" if r.aliases else ""),
            r.source,
            r.target + (f"({options[2:]})" if options else ""),
            f"{r.in_features} -> {r.out_features}",
            f"{sum(row.params_before for row in rows):,}",
            f"{sum(row.params_after for row in rows):,}",
            f"{r.params_after / r.params_before:.3f}",
            f"{sum(row.flops_before for row in rows):,}",
            f"{sum(row.flops_after for row in rows):,}",
            _mean([row.error for row in rows]),
            _mean([row.output_error for row in rows]),
        )


def _mean(errors: list[float | None]) -> str:
    known = [error for error in errors if error is not None]
    return f"{sum(known) / len(known):.4f}" if known else ""


def _times(count: int) -> str:
    return f" x{count}" if count > 1 else ""


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / before:.3f})" if before else f"{before:,} -> {after:,}"

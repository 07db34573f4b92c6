"""What is known of a measured point: figures for the scales of charts, and words for their tooltips."""

from typing import Any

from bench.files.rows import Row, Spread
from bench.report.drawing import words


def record(row: Row) -> dict[str, Any]:
    """A point's figures and words, the same in every chart."""
    made: dict[str, Any] = {"width": row.width, "square": row.square, "shape": words.shape(row)}
    made |= {"flops": row.flops, "executed": row.executed_flops, "params": row.params}
    for field, spread in (("time", row.time), ("speedup", row.speedup)):
        if spread:
            made |= {field: spread.median, f"{field}_low": spread.q1, f"{field}_high": spread.q3}
    known = told(row)
    return made | {"told": known, "said": ", ".join(str(value) for value in list(known.values())[:6])}


def told(row: Row) -> dict[str, str]:
    """Everything known of a point, by name; what was not measured is left out."""
    time, share = row.time, row.arrival
    quartiles = f"{words.prefixed(time.q1)} to {words.prefixed(time.q3)}"
    limit = f"{row.bound}; {words.share(row.bound_fraction)} of it reached" if row.bound_fraction else None
    options = ", ".join(f"{key}={value}" for key, value in row.options.items())
    shares = f"{words.share(row.params_share)} parameters, {words.share(row.flops_share)} FLOPs"
    shares += "" if row.executes_as_counted else f", {words.share(row.executed_share)} executed"
    executed = "" if row.executed_flops == row.flops else f", {words.prefixed(row.executed_flops)} executed"
    found = {
        "title": row.series,
        "layer": f"{words.shape(row)}, {words.tokens(row.tokens)}",
        "call": f"{row.mode}, {row.dtype}, {row.device}, {row.threads} threads",
        "speed-up": paired(row.speedup) if row.speedup else None,
        "time": f"{words.prefixed(time.median, 's')} ({quartiles}), {time.rounds} rounds, {row.clock} clock",
        "of dense": shares,
        "saving arrived": words.share(share) if share and row.flops < row.dense_flops else None,
        "options": options or None,
        "they scale": row.run.rules.get(row.series),
        "backend": row.backend,
        "parameters": f"{words.prefixed(row.params)}, {words.prefixed(row.parameter_bytes, 'B')}",
        "FLOPs": f"{words.prefixed(row.flops)} a call{executed}",
        "moved": f"{words.prefixed(row.bytes, 'B')} at least; {words.digits(row.intensity)} FLOPs a byte",
        "achieved": words.prefixed(row.flops_per_s, "FLOP/s"),
        "bound by": limit,
        "saved for backward": _bytes(row.activation_bytes),
        "checkpoint": _bytes(row.checkpoint_bytes),
        "allocator peak": _bytes(row.peak_bytes),
        "energy": words.prefixed(row.energy_joules, "J") + " a call" if row.energy_joules else None,
        "relative error": words.error(row.error) or None,
        "flags": ", ".join(row.flags) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def paired(speedup: Spread) -> str:
    """'3.1x (2.9 to 3.3), 31 rounds'."""
    return f"{words.ratio(speedup.median)} ({words.quartiles(speedup)}), {speedup.rounds} rounds"


def _bytes(value: float | None) -> str | None:
    return words.prefixed(value, "B") if value else None

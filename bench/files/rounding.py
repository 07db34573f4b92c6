"""Numbers as results files hold them."""

from __future__ import annotations

import math
from typing import Any

DIGITS = 5  # significant ones; times repeat to three at best


def rounded(value: Any) -> Any:
    """The same value with every float at 5 significant digits; what JSON does not know becomes null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value

"""Cells of CSV files: text that a spreadsheet would run as a formula is made harmless, numbers stay numbers."""

from typing import Any


def harmless(value: Any) -> Any:
    """The value; text that begins as a formula does stands behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

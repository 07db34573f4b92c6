"""Text: expressions, notation, entries, checks, errors. No widths, no torch."""

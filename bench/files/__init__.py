"""Results files: their kinds, fields and rows, journal, merge. No torch, no charts."""

"""Results files: their kinds, fields and rows, one reader, atomic writing, journal, merge. No torch, no charts."""

"""An entry bound to widths, as numbers: maps, steps, rank, growth, taxonomy, the printed page. No torch."""

"""Sections of the page about whole modules, encoders, the search and widths."""

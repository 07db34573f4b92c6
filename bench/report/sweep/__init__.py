"""Sections of the page about the sweep."""

"""Sections of the page about training."""

"""Whole modules and models, dense and structured: feed-forward blocks and decoders."""

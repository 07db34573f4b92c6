"""What every section draws with: views, styles, figures, words, curves."""

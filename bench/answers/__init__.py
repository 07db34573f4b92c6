"""Questions put to results files: compare, recommend, the README's tables."""

"""Words that the command line and the search share; nothing here imports torch."""

QUALITIES = ("none", "projection", "training")
STAGES = ("time", "quality", "final")

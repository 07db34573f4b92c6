"""What goes wrong with an entry."""


class SpecError(ValueError):
    """An entry that cannot be, or that cannot be bound to the widths and options asked for."""


class SizeError(SpecError):
    """Widths and options that this entry cannot take: other ones may."""

"""A registry entry bound to widths: the map itself, and all that is worked out of it when asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from functools import cached_property

from structures.algebra import page, rank
from structures.algebra.map import Gate, Gather, Map, Term
from structures.algebra.taxonomy import Taxonomy, taxonomy

__all__ = ["Gate", "Gather", "Structure", "Term"]


@dataclass(frozen=True)
class Structure(Map):
    """A structured linear map of fixed widths that also tells its rank, its taxonomy and itself."""

    @staticmethod
    def of(found: Map) -> Structure:
        """The Structure of a map that was bound; the same one for equal maps."""
        return _of(found)

    def __hash__(self) -> int:
        return super().__hash__()

    @cached_property
    def rank(self) -> int | None:
        """Rank of W for generic factors; None where only bounds are known (`structures.algebra.rank.generic_rank`)."""
        return rank.generic_rank(self.summed())

    @cached_property
    def taxonomy(self) -> Taxonomy | None:
        """Exponents of parameter sharing, rank and compute as the width grows (`structures.algebra.taxonomy`)."""
        return taxonomy(self)

    @cached_property
    def degrees_of_freedom(self) -> int | None:
        """Dimension of the set of matrices W; None where it is not computed (`structures.algebra.rank`)."""
        return rank.degrees_of_freedom(self.summed())

    def __str__(self) -> str:
        return "\n".join(page.page(self))


@functools.lru_cache(maxsize=4096)
def _of(found: Map) -> Structure:
    return Structure(**{f.name: getattr(found, f.name) for f in fields(found)})

"""The examples in the docstrings run, and the functions that a newcomer meets have one."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest

import structures

# what takes or makes a model or a weight
SHOWN = ("collect_covariances", "coordinate_check", "distil", "fit_options", "from_linear", "param_groups", "project",
         "save_swapped", "shard_placement", "swap", "to_linear")  # fmt: skip


def failures(function, said):
    """The number of examples in a docstring, and of those that do not give what they show."""
    module = sys.modules[function.__module__]
    known = {**vars(structures), **vars(module)}
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, module=module, globs=known)
    runner = doctest.DocTestRunner()
    runner.run(found, out=said.append)
    return len(found.examples), runner.failures


@pytest.mark.parametrize("name", SHOWN)
def test_the_example_gives_what_it_shows(name):
    function = inspect.unwrap(getattr(structures, name))
    said = []
    count, failed = failures(function, said)
    assert count and not failed, "".join(said) or f"{name} has no example"


def test_a_wrong_example_is_told():
    def wrong():
        """Nothing.

        >>> 1 + 1
        3
        """

    assert failures(wrong, []) == (1, 1)

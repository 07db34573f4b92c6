"""The examples in the docstrings run, and the functions that a newcomer meets have one."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest
from torch import nn

import structures

# what takes or makes a model or a weight
SHOWN = ("SwapConfig", "collect_covariances", "coordinate_check", "distil", "fit_options", "from_linear",
         "param_groups", "project", "save_swapped", "shard_placement", "swap", "to_linear")  # fmt: skip


def failures(function, said):
    """The number of examples in a docstring, and of those that do not give what they show."""
    module = sys.modules[function.__module__]
    known = {name: getattr(structures, name) for name in structures.__all__} | vars(module)
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


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: structures.save_swapped("model", "folder"), "save_swapped: model is an nn.Module, found str"),
        (lambda: structures.load_swapped("model", "folder"), "load_swapped: model is an nn.Module, found str"),
        (lambda: structures.collect_covariances("model", []), "collect_covariances: model is an nn.Module, found str"),
        (lambda: structures.collect_covariances(nn.Linear(2, 2), 3), "batches: a list of batches, .* found int"),
        (
            lambda: structures.collect_covariances(nn.Linear(2, 2), {"x": 1}),
            "batches: a list of batches, .* found dict",
        ),
        (lambda: structures.shard_placement(3, shards=2), "shard_placement: a parameter is a tensor, found int"),
    ],
)
def test_what_is_no_model_and_no_batch_is_named(call, message):  # previously failed: an AttributeError from inside
    with pytest.raises(ValueError, match=message):
        call()


def test_a_wrong_example_is_told():
    def wrong():
        """Nothing.

        >>> 1 + 1
        3
        """

    assert failures(wrong, []) == (1, 1)

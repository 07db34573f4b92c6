"""The Triton backend without a GPU: digits, steps in digits, launches, the interpreter and the machine code."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gated import OWN, own

import structures
from structures import backends, reference
from structures.backends import stages
from structures.backends.experts import segments
from structures.backends.native.lower import lower
from structures.backends.triton import gated
from structures.backends.triton import launches as plans
from structures.backends.triton.affine import affine
from structures.backends.triton.digits import PAD, digits, flat, runs

ROOT = Path(__file__).parents[2]
H100 = plans.card("NVIDIA H100", 90)
GATED = [n for n in structures.names() if structures.get(n).gate]
UNGATED = [n for n in structures.names() if n not in GATED]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: pip install triton")


def _stages(name, *shape, **options):
    """What the backend is given of an entry: one structure, or where its links cannot be joined several."""
    return list(stages.every(structures.get(name).bind(*shape, **options)))


def _numbers(of, length):
    """What digits say of each position."""
    i = np.arange(length)
    return sum((i // d) % s * t if s else i // d * t for d, s, t in of)


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ([7], ((1, 0, 0),)),
        (range(0, 12, 3), ((1, 0, 3),)),
        ([0, 1, 2, 10, 11, 12], ((1, 3, 1), (3, 0, 10))),
        ([0, 4, 8, 12, 1, 5, 9, 13], ((1, 4, 4), (4, 0, 1))),
        ([0, 1, 2, 3, 4, 5], ((1, 0, 1),)),  # (2, 3) that lie as one
    ],
)
def test_a_table_of_axes_is_affine_in_its_digits(table, found):
    assert digits(list(table)) == found


def test_a_table_of_no_order_has_no_digits():
    assert digits([0, 1, 5, 2]) is None


def test_a_gathers_table_is_a_number_for_each_run():
    table = np.array([[8, 9, 10, 11, 0, 1, 2, 3], [4, 5, 6, 7, PAD, PAD, PAD, PAD]])
    (found,) = runs(table)
    assert (found.length, found.stride, found.unit, found.padded) == (4, 1, 4, True)
    assert list(found.starts) == [3, 1, 2, 0]


def test_a_flat_tuple_says_where_digits_begin():
    assert flat((5, ((1, 3, 1), (3, 0, 10)), 7)) == (5, 3, 7, 2, 1, 3, 1, 3, 0, 10)


def _multiply(step, a, w):
    """C (tokens, features) of one step by its digits alone, in NumPy: what the kernel computes."""
    b, r, k, m = (np.arange(n) for n in (step.batch, step.rows, step.contracted, step.cols))
    at = {f: _numbers(getattr(step, f), len(i)) for f, i in (
        ("a_batch", b), ("a_rows", r), ("a_contracted", k), ("w_batch", b), ("w_contracted", k), ("w_cols", m),
        ("c_batch", b), ("c_rows", r), ("c_cols", m),
    )}  # fmt: skip
    a_at = at["a_batch"][:, None] + at["a_contracted"]
    w_at = at["w_batch"][:, None] + at["w_contracted"]
    kept = np.ones_like(a_at, bool)
    for found, name in ((step.a_runs, "a"), (step.w_runs, "w")):
        if found is not None:
            starts = np.asarray(found.starts.numbers).reshape(step.batch, -1) - 1
            full = (starts[:, :, None] * found.unit + np.arange(found.length) * found.stride).reshape(step.batch, -1)
            kept &= np.repeat(starts >= 0, found.length, 1)
            a_at, w_at = (np.where(kept, full, 0), w_at) if name == "a" else (a_at, np.where(kept, full, 0))
    read = a[:, a_at[:, None, :] + at["a_rows"][None, :, None]] * kept[:, None, :]
    result = np.einsum("tbrk,bkm->tbrm", read, w[w_at[:, :, None] + at["w_cols"]])
    c_at = at["c_batch"][:, None, None] + at["c_rows"][:, None] + at["c_cols"]
    assert len(np.unique(c_at)) == c_at.size  # written once
    return c_at, result


def _run(steps, buffers, factors):
    for step in steps:
        one = np.ones(1) if step.factor < 0 else factors[step.factor]
        c_at, result = _multiply(step, buffers[step.source], one)
        buffers[step.target][:, c_at] += result
    return buffers


@pytest.mark.parametrize("shape", [(48, 96), (240, 240)])
@pytest.mark.parametrize("name", UNGATED)
def test_the_digits_of_every_entry_multiply_as_the_reference_and_back(name, shape):
    for structure in _stages(name, *shape):
        _multiplies_and_back(structure)


def _multiplies_and_back(structure):
    program = affine(lower(structure))
    torch.manual_seed(0)
    x = torch.randn(2, structure.in_features, dtype=torch.float64, requires_grad=True)
    factors = [torch.randn(s, dtype=torch.float64) for s in structure.factor_shapes]
    y = reference.apply(structure, x, factors, None)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    flat_factors = [f.numpy().ravel() for f in factors]
    buffers = [x.detach().numpy(), *(np.zeros((2, n)) for n in program.sizes[1:])]
    np.testing.assert_allclose(_run(program.forward, buffers, flat_factors)[-1], y.detach().numpy(), rtol=0, atol=1e-10)
    back = [*(np.zeros((2, n)) for n in program.sizes[:-1]), dy.numpy()]
    np.testing.assert_allclose(_run(program.backward, back, flat_factors)[0], dx.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("entry", [*GATED, *OWN])
def test_the_digits_of_experts_are_those_of_each_experts_part_of_the_factors(entry):
    """Wherever the expert axis stands among a factor's, and where a factor has none."""
    spec = structures.get(entry) if entry in GATED else own(entry)
    for expert in segments.parts(spec.bind(48, 96))[0]:
        program = affine(lower(expert.structure), expert.experts, expert.apart)
        rng = np.random.default_rng(0)
        factors = [rng.normal(size=shape) for shape in expert.factor_shapes]
        x = rng.normal(size=(2, expert.structure.in_features))
        for e in range(expert.experts):
            held = [f if at < 0 else f.take(e, at) for f, at in zip(factors, expert.places, strict=True)]
            meant = reference.apply(expert.structure, torch.from_numpy(x), [torch.from_numpy(f) for f in held], None)
            blocks = [f.ravel()[e * apart :] for f, apart in zip(factors, expert.apart, strict=True)]
            buffers = [x, *(np.zeros((2, n)) for n in program.sizes[1:])]
            np.testing.assert_allclose(_run(program.forward, buffers, blocks)[-1], meant.numpy(), rtol=0, atol=1e-10)


def test_the_multiplication_by_digits_can_fail():
    program = affine(lower(*_stages("dyad_it", 48, 96)))
    step = program.forward[1]
    x, w = np.random.default_rng(0).normal(size=(2, 48)), np.ones(step.batch * step.contracted * step.cols)
    _, right = _multiply(step, x, w)
    _, wrong = _multiply(dataclasses.replace(step, a_contracted=((1, 0, 1),)), x[:, :48], w)
    assert np.abs(right - wrong).max() > 0.1


def _launch(name, tokens, number=0, width=4096, **options):
    program = affine(lower(*_stages(name, width, width, **options)))
    found = plans.launches(program.forward)
    return found, plans.ways(found[number], tokens, 2, H100)


def test_terms_that_land_in_the_same_tiles_share_a_launch():
    assert [len(launch.steps) for launch in _launch("dyad_it", 1)[0]] == [2]
    assert [len(launch.steps) for launch in _launch("dyad_ot", 1)[0]] == [1, 1]  # the outputs lie otherwise


def test_a_launch_that_reads_with_a_stride_may_copy_or_turn():
    assert {way.form for way in _launch("dyad_it", 128, n_blocks=4)[1]} == {"strided", "copied", "turned"}
    assert {way.form for way in _launch("dyad_it", 128, n_blocks=16)[1]} == {"strided", "copied"}
    assert {way.form for way in _launch("dense", 128)[1]} == {"strided"}


def test_the_price_copies_for_many_tokens_and_not_for_few():
    """Predictions both: they say what the backend tries first, not what is fast."""
    assert _launch("dyad_it", 1, n_blocks=4)[1][0].form == "strided"
    assert _launch("dyad_it", 4096, n_blocks=4)[1][0].form == "copied"


def test_the_plan_of_a_layer_says_what_is_launched_and_that_its_times_are_predictions():
    layer = structures.StructuredLinear("dyad_it", 4096, 4096, backend="triton", dtype=torch.bfloat16, device="meta")
    said = str(layer.plan(tokens=4096, grad=True))
    assert "copied 4 x (1024 -> 1024) + 4 x (1024 -> 1024)" in said and "copy of buffer 0" in said
    assert "predicted on paper" in said and "H200" in said


def test_a_factor_that_lies_interleaved_is_copied_and_a_kept_copy_costs_nothing():
    launch = _launch("kronecker_sparse", 16, a=8, d=8)[0][0]
    every, kept = (plans.ways(launch, 16, 2, H100, kept=keep) for keep in (False, True))
    assert launch.steps[0].factor_run < plans.VECTOR <= kept[0].steps[0].factor_run and kept[0].canonical == (True,)
    copied = next(way for way in every if way.canonical == (True,))
    assert copied.predicted > kept[0].predicted and "kept copy of factor_0" in str(kept[0])
    assert not any(any(way.canonical) for way in plans.ways(_launch("dense", 16)[0][0], 16, 2, H100, kept=True))


def test_the_plan_of_experts_is_of_all_their_launches_for_rows_spread_evenly():
    layer = structures.StructuredLinear("btt_moe", 4096, 4096, backend="triton", dtype=torch.bfloat16, device="meta")
    few, many, train = (layer.plan(tokens=n, grad=grad) for n, grad in ((1, False), (4096, False), (4096, True)))
    assert [way.steps[0].segments for way in few.ways] == [8, 8] and "in 8 segments" in str(few)
    assert few.ways[0].block[0] == 16 < many.ways[0].block[0] and few.seconds < many.seconds
    assert len(train.ways) == 6  # the two again, and back


def test_few_tokens_split_what_is_contracted_and_many_do_not():
    assert _launch("dense", 1)[1][0].split > 1
    assert _launch("dense", 4096)[1][0].split == 1


@pytest.mark.parametrize("name", [*UNGATED, *GATED])
def test_every_launch_of_every_entry_has_a_way(name):
    for width in (96, 250, 4096):
        try:
            found = _stages(name, width, width)
        except ValueError:
            continue  # the entry has no such width
        programs = [made.affine for structure in found for made in gated.programs(structure)]
        for steps in (steps for program in programs for steps in (program.forward, program.backward)):
            for launch in plans.launches(steps):
                for tokens in (1, 64, 4096):
                    found = plans.ways(launch, tokens, 2, H100)
                    assert found and found[0].form in ("strided", "copied", "turned"), str(launch)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.float64, "float32, bfloat16 and float16, x is float64"), (torch.float32, "runs on cuda, x is on cpu")],
)
def test_what_cannot_run_is_refused_with_a_sentence(dtype, words):
    layer = structures.StructuredLinear("monarch", 64, 64, backend="triton", dtype=dtype)
    with pytest.raises(ValueError, match=words):
        layer(torch.zeros(1, 64, dtype=dtype))


def test_without_triton_the_backend_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("structures.backends.triton.importlib.util.find_spec", lambda name: None)
    x = torch.empty(1, 48, device="meta")
    assert "pip install triton" in backends.refusal("triton", structures.get("dense").bind(48, 96), x)


def test_an_operator_of_experts_refuses_a_text_that_names_none():
    with pytest.raises(ValueError, match=r"'\[1, 2\]' names no expert"):
        torch.ops.structures.triton_experts(torch.zeros(1, 4), [torch.zeros(1)], None, "[1, 2]")


@needs_triton
def test_the_interpreter_runs_one_entry_of_each_pattern_of_steps():
    """In a process of its own: one that interprets cannot compile."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/backends/test_triton_values.py",
         "-k", "not every_entry"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="a process that interprets cannot compile")
@pytest.mark.parametrize("capability", [90, 80])
def test_the_machine_code_moves_whole_vectors_and_spills_nothing(capability):
    """16 bytes an access but where features lie apart, no spills, tensor cores; Hopper's own from 64 rows on."""
    done = subprocess.run(
        [sys.executable, "tests/support/machine_code.py", str(capability)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [f"{row['row']}: {fault}" for row in found if not row.get("in_place") for fault in _faults(row)]
    assert not wrong, "\n".join(wrong)
    (in_place,) = [row for row in found if row.get("in_place")]  # a factor with the batch innermost: why it is copied
    assert list(_faults(in_place)), in_place


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="a process that interprets cannot compile")
def test_a_call_and_its_gradients_compile_from_the_arguments_of_their_launches():
    """A gather, a chain of two, terms that share a launch; experts, forward, again without weights, and back. For one
    token, which Triton would take for a constant.
    """
    done = subprocess.run(
        [sys.executable, "tests/support/machine_code.py", "--calls"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line)["kernel"] for line in done.stdout.splitlines()]
    assert kernels[:7].count("gradient") == 3 and kernels[:7].count("step") == 4
    assert kernels[7:] == ["step", "step", "step", "gradient"]


BIAS = 16  # narrow loads of a thread for the bias and a split's counter
STARTS = 8  # and of where a gather's runs start, copied ahead for some turns
ORDERS = 16  # and of where sorted rows come from, and of what weighs them; a tile of x by narrow loads would be more


def _faults(row):
    if row["spilled"]:
        yield f"{row['spilled']} bytes spilled"
    more = ORDERS if row["segments"] else 0
    if sum(n for width, n in row["async"].items() if int(width) < 16) > STARTS + more:
        yield f"copied into shared memory {row['async']}"
    if sum(n for width, n in row["loads"].items() if int(width) < 16) > BIAS + more and not row["strided"]:
        yield f"loaded {row['loads']}"
    narrow = sum(n for width, n in row["stores"].items() if int(width) < 16) > 1 or "16" not in row["stores"]
    if narrow and not row["scattered"]:
        yield f"stored {row['stores']}"
    if not row["wgmma" if row["capability"] >= 90 and row["tile"][0] >= 64 else "mma"]:
        yield "no tensor cores, or not those of this card"


def test_the_reading_of_machine_code_can_fail():
    bad = {
        "spilled": 8, "async": {"2": 9}, "loads": {"2": 33}, "strided": False, "scattered": False, "stores": {"2": 4},
        "tile": [64, 64, 64], "wgmma": 0, "mma": 8, "capability": 90, "segments": False,
    }  # fmt: skip
    assert len(list(_faults(bad))) == 5

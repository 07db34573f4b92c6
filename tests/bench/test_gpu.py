"""The GPU run of ten minutes, as far as it shows without a GPU: what it asks for, its clock, its comparisons."""

import subprocess
import sys

import pytest
import torch

import structures
from bench.sweep import first_minute, gpu, points, request
from structures import reference
from structures.backends.triton import gated


@pytest.mark.parametrize("one", gpu.PORTIONS, ids=lambda p: p.name)
def test_every_portion_of_the_sweep_asks_for_points_that_there_are(one):
    options = {**one.options, "device": "cuda", "cold": True, "no_controls": True}
    found, unreachable = points.points(request.read(options, cuda=True, cores=1))
    assert {point.backend for point in found} >= set(one.options["backend"].split(","))
    assert {point.dtype for point in found} == {one.options["dtypes"]}
    assert any(point.is_dense for point in found) and not unreachable


def test_the_first_portion_is_dyad_and_monarch_at_a_real_models_widths_in_bfloat16():
    first = gpu.PORTIONS[0].options
    assert "4096x11008" in first["shapes"] and first["structures"].startswith("dyad_it")
    assert (first["dtypes"], first["tokens"], first["clock"]) == ("bfloat16", "1,128,4096", "device")


def test_the_stages_fit_into_ten_minutes_with_the_time_to_begin_and_end():
    sweep = sum(one.seconds + gpu.SPARE for one in gpu.PORTIONS[:5])
    assert gpu.CHECK + gpu.FIRST + sweep < 9.5 * 60  # what comes sixth gets what the others leave


def test_a_process_that_is_late_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SPARE", 2.0)
    rented = gpu.RentedRun(tmp_path, 60)
    begun = rented._begin(["-c", "import time; time.sleep(60)"], "late.log")
    assert rented._finish(begun, 0.2) != 0
    assert begun.poll() is not None


def test_a_process_that_is_one_of_several_has_a_thread_and_no_plugin_that_happens_to_be_there(tmp_path):
    rented = gpu.RentedRun(tmp_path, 60)
    said = "import os; print(*(os.environ.get(n) for n in ('OMP_NUM_THREADS', 'PYTEST_DISABLE_PLUGIN_AUTOLOAD')))"
    assert rented._finish(rented._begin(["-c", said], "one.log", threads=1), 60) == 0
    assert rented._lines("one.log") == ["1 1"]


def test_a_portion_that_was_not_finished_is_gone_on_with(tmp_path, monkeypatch):
    rented, begun = gpu.RentedRun(tmp_path, 600), []
    (rented.logs / "6-widths.log").write_text("3 of these were left out for lack of time\n3 skipped\n")
    monkeypatch.setattr(rented, "_begin", lambda words, log: begun.append(words))
    monkeypatch.setattr(rented, "_finish", lambda process, seconds: 0)
    (one,) = (one for one in gpu.PORTIONS if one.name == "6-widths")
    rented.sweep(one)
    assert not rented.unfinished(one) and "--resume" not in begun[0]
    (tmp_path / "6-widths.json.journal").touch()
    rented.sweep(one)
    assert rented.unfinished(one) and begun[1][-2:] == ["--resume", str(tmp_path / "6-widths.json")]


def test_every_kernel_of_the_run_is_compiled_by_one_of_the_parts(monkeypatch, capsys):
    found = []
    monkeypatch.setattr(
        gated,
        "compile_ahead",
        lambda s, tokens, dtype, *, train: found.append((s, gated.programs(s)[0].forced, tokens, train)),
    )
    for part in (1, 2):
        gpu.compile_part(part, 2, rehearsal=True)
    assert len(found) == len(set(found)) and capsys.readouterr().out.count(" calls") == len(found)
    assert {form for _, form, _, _ in found} == {None, "strided", "copied", "turned"}
    assert {train for *_, train in found} == {False, True}
    assert {"dense", "dyad_it", "blast", "pixelfly", "btt_moe"} <= {s.name for s, *_ in found}


def test_what_a_machine_lacks_is_said_with_its_way_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "version", lambda name: "4.0.0")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "yaml" else object())
    assert gpu.main([str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "pyyaml" in said and "pytest-benchmark>=5.3.1 (here is 4.0.0)" in said and "bench/wheels/" in said


def test_without_a_folder_the_command_says_so():
    done = subprocess.run(["bash", "bench/gpu.sh"], capture_output=True, text=True, cwd=gpu.ROOT)
    assert done.returncode and "name a folder" in done.stderr


def test_products_into_ys_blocks_are_dyads():
    structure = structures.get("dyad_it").bind(48, 96, n_blocks=4)
    torch.manual_seed(0)
    x, bias = torch.randn(7, 48), torch.randn(96)
    factors = [torch.randn(shape) for shape in structure.factor_shapes]
    meant = reference.apply(structure, x, factors, bias)
    torch.testing.assert_close(first_minute._into_blocks(x, factors, bias), meant)


def test_a_wrong_result_has_a_reason_in_place_of_a_time():
    structure = structures.get("dyad_it").bind(48, 96, n_blocks=4)
    x, bias = torch.randn(7, 48), torch.randn(96)
    factors = [torch.randn(shape) for shape in structure.factor_shapes]
    with pytest.raises(ValueError, match="from the reference"):
        first_minute._error(structure, x, factors, bias, torch.zeros(7, 96))


def test_the_comparisons_are_those_that_decide():
    found = list(first_minute.comparisons(first_minute.FULL))
    assert [c.tokens for c in found] == [4096, 128, 512, 4096]
    names = [rival.name for rival in found[-1].rivals]
    assert names[0] == "dense, library" and names[-1] == "baddbmm into y's blocks"
    assert {"triton, strided", "triton, copied", "triton, turned"} <= set(names)


def test_it_is_a_command_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep.gpu", "--help"], capture_output=True, text=True, cwd=gpu.ROOT
    )
    assert done.returncode == 0 and "--minutes" in done.stdout

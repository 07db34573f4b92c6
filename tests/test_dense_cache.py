"""The kept dense weight: never stale, never trained, never copied."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from contract import DTYPES, FLOOR, SHAPES, error, layer, tensors, truth
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import structures
from structures import reference
from structures.backends import dense_cache

NAMES = structures.names()
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]


def kept(name: str = "monarch", shape: tuple[int, int] = SHAPES[0], **more):
    return layer(name, shape, backend="dense_cache", **more).eval()


def holds(made, x) -> None:
    """The layer's output is that of its factors as they are now."""
    with torch.no_grad():
        wanted = reference.apply(made.structure, x.double(), [f.double() for f in made.factors], made.bias.double())
        assert error(made(x), wanted) < 100 * torch.finfo(x.dtype).eps
        assert made.ran == "dense_cache"


def ungated(names):
    return [name for name in names if not getattr(structures.get(name), "gate", None)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ungated(NAMES))
def test_it_is_as_exact_as_plain_einsum(name, dtype):
    for shape in SHAPES[:2]:
        made = kept(name, shape, dtype=dtype)
        plain = layer(name, shape, dtype=dtype, backend="einsum")
        for tokens in (1, 63):
            x, dy = tensors(made, tokens, dtype)
            wanted = truth(made, x, dy)[0]
            with torch.no_grad():
                floor = FLOOR * torch.finfo(dtype).eps
                assert error(made(x), wanted) <= 2 * error(plain(x), wanted) + floor


def test_the_weight_is_made_once_and_its_memory_is_shown():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    assert made.cached_bytes == 0 and "made at the next call" in str(made.plan(5)) and "MiB" not in repr(made)
    with torch.no_grad():
        made(x)
        weight = made._keeper._held.weight
        made(x[:2])
        assert made._keeper._held.weight is weight
    assert made.cached_bytes == weight.nbytes == 8 * 48 * 96
    assert str(made.plan(5)).endswith("F.linear with a dense weight of 0.0352 MiB, kept beside the factors, held now")
    assert repr(made).endswith("backend='dense_cache')  # and 0.0352 MiB of a dense weight")
    assert repr(eval(repr(made), {"StructuredLinear": structures.StructuredLinear, "torch": torch})) in repr(made)
    assert made.plan(5).flops(5) == dense_cache.executed_flops(made.structure, 5) == 2 * 5 * 48 * 96


def test_a_wide_layer_is_made_in_pieces(monkeypatch):
    monkeypatch.setattr(dense_cache, "CHUNK", 7)
    made = kept("dyad_dt")
    holds(made, tensors(made, 5, torch.float64)[0])


# -- never stale


def _swap_data(made):
    made.factor_0.data = made.factor_0.data * 2


def _swap_data_until_an_address_comes_back(made):
    """Storages are freed in turn: without a hold on the old one a new one gets its address."""
    for _ in range(20):
        made.factor_0.data = made.factor_0.data * 1.1


def _optimizer(made, **more):
    def step():
        with torch.enable_grad():
            fast = layer("monarch", SHAPES[0])
            fast.factor_0, fast.factor_1, fast.bias = made.factor_0, made.factor_1, made.bias
            fast(torch.randn(4, 48, dtype=torch.float64)).square().sum().backward()
        torch.optim.SGD(made.parameters(), lr=0.1, **more).step()

    step()


def _load(made, **more):
    made.load_state_dict(layer("monarch", SHAPES[0], seed=3).state_dict(), **more)


def _in_place(made):
    with torch.no_grad():
        made.factor_1[0, 0] += 1


def _in_place_under_inference_mode(made):
    with torch.inference_mode():
        made.factor_1.mul_(2)


def _through_a_view(made):
    made.factor_0.detach().view(-1)[3:5].fill_(2)


def _init(made):
    made.reset_parameters()


def _replaced(made):
    made.factor_0 = nn.Parameter(torch.randn_like(made.factor_0))


def _vector(made):
    flat = nn.utils.parameters_to_vector(made.parameters())
    nn.utils.vector_to_parameters(flat.detach() * 1.5, made.parameters())


def _transposed_in_place(made):
    """Same storage, other strides."""
    square = made.factor_0.data
    made.factor_0.data = square.as_strided(square.shape, square.stride()).flip(0).contiguous()


CHANGES = {
    "optimizer": _optimizer,
    "fused loops of an optimizer": lambda made: _optimizer(made, foreach=True),
    "load_state_dict": _load,
    "load_state_dict, assigned": lambda made: _load(made, assign=True),
    ".data swapped": _swap_data,
    ".data swapped until an address comes back": _swap_data_until_an_address_comes_back,
    "in place": _in_place,
    "in place under inference mode": _in_place_under_inference_mode,
    "through a view": _through_a_view,
    "drawn anew": _init,
    "another parameter": _replaced,
    "from a vector": _vector,
    "other order": _transposed_in_place,
    "float32": lambda made: made.float(),
    "bfloat16 and back": lambda made: made.bfloat16().double(),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_change_that_pytorch_counts_is_seen(change):
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    before = made(x.clone().detach()) if not torch.is_grad_enabled() else None
    CHANGES[change](made)
    holds(made, x.to(made.factor_0.dtype))
    assert before is None
    with torch.no_grad():
        first = made._keeper._held
        made(x.to(made.factor_0.dtype))
        assert made._keeper._held is first  # and made once


def test_the_changes_change_something():
    for change in CHANGES.values():
        made = kept()
        x, _ = tensors(made, 5, torch.float64)
        with torch.no_grad():
            before = made(x)
            change(made)
            assert not torch.equal(made(x.to(made.factor_0.dtype)).double(), before)


def test_what_pytorch_does_not_count_is_named_and_release_helps():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    made.factor_0.data.mul_(2)  # a version counter of its own
    with torch.no_grad():
        assert error(made(x), nn.functional.linear(x, made.to_dense(), made.bias)) > 0.1
    assert "in place through `.data`" in dense_cache.__doc__
    made.release()
    holds(made, x)


def test_functional_calls_use_the_parameters_they_are_given():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    other = {name: p.detach() * 2 for name, p in made.named_parameters()}
    with torch.no_grad():
        y = torch.func.functional_call(made, other, (x,))
        factors = list(other.values())
        torch.testing.assert_close(y, reference.apply(made.structure, x, factors[:-1], factors[-1]))
    holds(made, x)


def test_autocast_keeps_one_weight_in_its_dtype():
    made = kept(dtype=torch.float32)
    x = torch.randn(5, 48)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
        first = made._keeper._held
        made(x)
        assert made._keeper._held is first and first.weight.dtype == y.dtype == torch.bfloat16
    holds(made, x)
    assert made._keeper._held.weight.dtype == torch.float32


# -- freed, copied, pickled


def test_train_and_another_backend_free_the_weight():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    for free in (made.train, made.release, lambda: setattr(made, "backend", "auto")):
        made.eval()
        holds(made, x)
        weight = weakref.ref(made._keeper._held.weight)
        free()
        gc.collect()
        assert weight() is None and made.cached_bytes == 0
    assert nn.Sequential(kept()).train()[0].cached_bytes == 0


def test_copies_pickles_and_the_state_dict_carry_none_of_it():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    full = len(pickle.dumps(made))
    assert set(made.state_dict()) == {"factor_0", "factor_1", "bias"}
    made.release()
    assert len(pickle.dumps(made)) == full
    holds(made, x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.backend == "dense_cache" and other.cached_bytes == 0
        with torch.no_grad():
            other.factor_0.mul_(3)
        holds(other, x)
        holds(made, x)


# -- refusals


def test_it_refuses_whatever_would_need_a_gradient_and_says_why():
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    with pytest.raises(ValueError, match=r"gradients of the parameters are wanted.*under torch\.no_grad"):
        made(x)
    with pytest.raises(ValueError, match="gradient of x is wanted"):
        made(x.clone().requires_grad_())
    with torch.no_grad(), pytest.raises(ValueError, match="training mode; call eval"):
        made.train()(x)
    made.eval().requires_grad_(False)
    assert made(x).shape == (5, 96)  # frozen: grad mode may be on
    with pytest.raises(ValueError, match="without gradients only"):
        made.plan(5, grad=True)
    with torch.inference_mode():
        born = kept()
        with pytest.raises(ValueError, match="are not counted; make the layer outside it"):
            born(x)
        holds(made, x)
    with torch.no_grad(), pytest.raises(ValueError, match="inside a function transform"):
        torch.func.vmap(made)(x[None])
    assert made.cached_bytes == 8 * 48 * 96


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_parameters_that_fsdp_gathers_are_refused(one_process):
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    model = nn.Sequential(made)
    fully_shard(model, mesh=one_process)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"FSDP gathers the parameters anew.*choose backend='auto'"):
            model(x)
        made.backend = "auto"
        first = model(x)
        for parameter in model.parameters():
            parameter.mul_(2)
        assert not torch.allclose(model(x), first)


def test_a_collective_is_named_as_not_counted_and_release_helps(one_process):
    made = kept()
    x, _ = tensors(made, 5, torch.float64)
    holds(made, x)
    version = made.factor_0._version
    with torch.no_grad():
        dist.broadcast(made.factor_0, 0)
    assert made.factor_0._version == version and "collective" in dense_cache.__doc__  # else it need not be named
    made.release()
    holds(made, x)


# -- compiled


def test_a_compiled_layer_is_one_graph_and_never_stale():
    torch.compiler.reset()
    made = kept(dtype=torch.float32)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(made, backend=count, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (5, 9):
            x = torch.randn(tokens, 48)
            torch.testing.assert_close(compiled(x), nn.functional.linear(x, made.to_dense(), made.bias))
        made.factor_0.mul_(2)
        torch.testing.assert_close(compiled(x), nn.functional.linear(x, made.to_dense(), made.bias))
        assert len(graphs) == 1 and made.cached_bytes == 4 * 48 * 96
    torch.compiler.reset()

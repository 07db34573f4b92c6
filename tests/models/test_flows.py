"""What is done to nn.Linear is done to every structured layer: each flow runs first on nn.Linear, then on every entry.

A flow that nn.Linear passes and an entry does not is a fault, unless EXCEPTIONS gives the reason.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import structures

NAMES = structures.names()
GATED = [name for name in NAMES if structures.get(name).gate]
WIDE, TALL = 32, 64
Make = Callable[..., nn.Module]
FLOWS: dict[str, Callable[[Make], None]] = {}
EXCEPTIONS: dict[tuple[str, str], str] = {
    **dict.fromkeys((("weight", name) for name in GATED), "W is each token's own: there is no one weight"),
}


def flow(function: Callable[[Make], None]) -> Callable[[Make], None]:
    FLOWS[function.__name__] = function
    return function


def batch(*leading: int, **more: object) -> Tensor:
    return torch.randn(*leading, WIDE, generator=torch.Generator().manual_seed(1), **more)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def trained(layer: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    """A step changes every parameter that takes part."""
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    loss(layer).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


# -- graphs


@flow
def trace(make: Make) -> None:
    layer, file = make(), io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, batch(6)), file)
    file.seek(0)
    again = torch.jit.load(file)
    for tokens in (1, 6, 300):
        close(again(batch(tokens)), layer(batch(tokens)))


@flow
def fx(make: Make) -> None:
    net = nn.Sequential(make(), nn.ReLU())
    graph = torch.fx.symbolic_trace(net)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 2
    close(graph(batch(6)), net(batch(6)))


@flow
def export(make: Make) -> None:
    layer, tokens = make().eval(), torch.export.Dim("tokens", min=1, max=4096)
    free = torch.export.export(layer, (batch(6),), dynamic_shapes=({0: tokens},)).module()
    close(free(batch(300)), layer(batch(300)))
    deep = torch.export.export(layer, (batch(3, 6),), dynamic_shapes=({0: tokens},)).module()
    close(deep(batch(5, 6)), layer(batch(5, 6)))


@flow
def export_in_training(make: Make) -> None:
    layer = make()
    exported = torch.export.export(layer, (batch(6),)).module()
    y = exported(batch(6))
    close(y, layer(batch(6)))
    y.square().sum().backward()


@flow
def onnx_legacy(make: Make) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnx is the extra `onnx`")
    pytest.importorskip("onnx", reason="onnx is the extra `onnx`")
    layer, file = make().eval(), io.BytesIO()
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "tokens"}}}
    torch.onnx.export(layer, (batch(6),), file, dynamo=False, **names)
    session = runtime.InferenceSession(file.getvalue())
    for tokens in (1, 9):
        (found,) = session.run(None, {"x": batch(tokens).numpy()})
        close(torch.from_numpy(found), layer(batch(tokens)).detach())


@flow
def compile_alone(make: Make) -> None:
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    close(compiled(batch(6)), layer(batch(6)))


# -- inputs; what stands behind the layer: backends/test_in_place.py


@flow
def nested(make: Make) -> None:
    layer, parts = make(), [batch(3), batch(5), batch(1)]
    for layout in (torch.jagged, torch.strided):
        x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
        y = layer(x)
        for found, part in zip(y.unbind(), parts, strict=True):
            close(found, layer(part))
        sum(part.sum() for part in y.unbind()).backward()
        assert x.grad is not None


@flow
def leading_dimensions(make: Make) -> None:
    layer = make()
    assert layer(batch()).shape == (TALL,) and layer(batch(0)).shape == (0, TALL)
    close(layer(batch(2, 3, 5)).reshape(30, TALL), layer(batch(2, 3, 5).reshape(30, WIDE)))


@flow
def autocast(make: Make) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(batch(6)).dtype == torch.bfloat16


# -- derivatives


@flow
def transforms(make: Make) -> None:
    layer = make().double()
    x, dx = batch(6, dtype=torch.float64), batch(6, dtype=torch.float64)
    close(torch.func.vmap(layer)(x), layer(x))
    y, _ = torch.func.jvp(layer, (x,), (dx,))
    close(y, layer(x))
    jacobian = torch.func.jacrev(layer)(x[0])
    close(torch.func.jvp(layer, (x[0],), (dx[0],))[1], jacobian @ dx[0])
    named = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    close(
        torch.func.hessian(lambda b: loss({**named, "bias": b}))(named["bias"]).diagonal(),
        torch.full((TALL,), 12.0, dtype=x.dtype),
    )


@flow
def checkpointing(make: Make) -> None:
    layer, x = make(), batch(6).requires_grad_()
    wanted = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    for reentrant in (False, True):
        y = checkpoint(layer, x, use_reentrant=reentrant)
        layer.zero_grad()
        x.grad = None
        y.square().sum().backward()
        close(x.grad, wanted[0])


# -- the module


@flow
def weight(make: Make) -> None:
    layer = make()
    close(nn.functional.linear(batch(6), layer.weight, layer.bias), layer(batch(6)))
    assert layer.weight.shape == (TALL, WIDE) and layer.weight.dtype == torch.float32


@flow
def members(make: Make) -> None:
    layer = make()
    before = repr(sorted(layer.__dict__.items()))
    inspect.getmembers(layer)
    assert repr(sorted(layer.__dict__.items())) == before


@flow
def channels_last(make: Make) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), make())
    x = torch.randn(5, 3, 2, 2)
    y = net(x)
    net.to(memory_format=torch.channels_last)
    close(net(x), y)
    assert all(p.is_contiguous() for p in net[2].parameters())


@flow
def copies(make: Make) -> None:
    layer = make()
    layer(batch(6)).sum().backward()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), whole):
        assert type(other) is type(layer) and repr(other) == repr(layer)
        assert torch.equal(other(batch(6)), layer(batch(6)))
    averaged = torch.optim.swa_utils.AveragedModel(layer, avg_fn=lambda a, b, n: 0.9 * a + 0.1 * b)
    averaged.update_parameters(layer)
    close(averaged(batch(6)), layer(batch(6)))


@flow
def state(make: Make) -> None:
    layer, other, file = make(), make(), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    close(other(batch(6)), layer(batch(6)))
    built = make(device="meta").to_empty(device="cpu")
    built.load_state_dict(layer.state_dict())
    close(built(batch(6)), layer(batch(6)))


@flow
def parametrized(make: Make) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer = make()
    name, plain = next(iter(layer.named_parameters()))
    plain = plain.detach().clone()
    parametrize.register_parametrization(layer, name, Twice())
    trained(layer, lambda m: m(batch(6)).square().sum())
    parametrize.remove_parametrizations(layer, name)
    assert type(getattr(layer, name)) is nn.Parameter and not torch.equal(getattr(layer, name), plain)
    layer(batch(6))


@flow
def pruned(make: Make) -> None:
    layer = make()
    name = next(iter(dict(layer.named_parameters())))
    prune.l1_unstructured(layer, name, amount=0.5)
    trained(layer, lambda m: m(batch(6)).square().sum())
    prune.remove(layer, name)
    assert (getattr(layer, name) == 0).float().mean() >= 0.4
    layer(batch(6))


@flow
def offload(make: Make) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate comes with the extra `peft`")
    net = nn.Sequential(make(), nn.ReLU())
    wanted = net(batch(6))
    accelerate.cpu_offload(net, execution_device="cpu")
    with torch.no_grad():
        close(net(batch(6)), wanted)


@flow
def lora(make: Make) -> None:
    peft = pytest.importorskip("peft", reason="peft is an extra")
    from structures.models.peft import register_lora

    register_lora()
    net = nn.Sequential(make(), nn.ReLU())
    y = net(batch(6))
    adapted = peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"], r=2))
    close(adapted(batch(6)), y)
    trained(adapted, lambda m: m(batch(6)).square().sum())
    changed = adapted(batch(6))
    assert not torch.allclose(changed, y)
    with adapted.disable_adapter():
        close(adapted(batch(6)), y)
    close(adapted.unload()(batch(6)), y)


@flow
def data_parallel(make: Make) -> None:
    net = nn.parallel.DistributedDataParallel(make())
    trained(net, lambda m: m(batch(6)).square().sum())


@flow
def sharded(make: Make) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    layer = make()
    wanted = copy.deepcopy(layer)
    fully_shard(layer, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    close(layer(batch(6)), wanted(batch(6)))
    full = get_model_state_dict(layer, options=StateDictOptions(full_state_dict=True))
    wanted.load_state_dict(full)
    close(layer(batch(6)), wanted(batch(6)))


# -- the tests


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A process group of one, for the flows of torch.distributed."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


IGNORED = [
    "ignore::DeprecationWarning",  # of torch's tracer and legacy exporter, and of what they import
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:.*its weight is read:UserWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
    "ignore:.*None of the inputs have requires_grad:UserWarning",
    "ignore:.*exporting a model while it is in training mode:UserWarning",
    "ignore:.*Backward hook.*:UserWarning",
    "ignore:Constant folding - Only steps=1:UserWarning",  # of the legacy exporter, of the zeros that pad an input
]
pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


def dense(**more: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDE, TALL, **more)


@pytest.mark.parametrize("name", FLOWS)
def test_linear_passes_the_flow(name):
    FLOWS[name](dense)


@pytest.mark.parametrize("structure", NAMES)
@pytest.mark.parametrize("name", FLOWS)
def test_a_structured_layer_passes_the_flow_too(name, structure):
    def make(**more: object) -> nn.Module:
        torch.manual_seed(0)
        return structures.StructuredLinear(structure, WIDE, TALL, **more)

    if (name, structure) in EXCEPTIONS:
        with pytest.raises((AttributeError, ValueError, RuntimeError)):
            FLOWS[name](make)
    else:
        FLOWS[name](make)


def test_a_flow_can_fail():
    class Wrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.shape[0]

    with pytest.raises(AssertionError):
        FLOWS["leading_dimensions"](lambda **more: Wrong(WIDE, TALL, **more))

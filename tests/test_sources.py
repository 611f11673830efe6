"""What people's networks are like: merged as they are, or refused at once, by name and with a way out."""

import copy
import dataclasses
import functools
import io
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_training import task
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from medmerge import Classifier, KernelMerge, zeros_like
from medmerge import merge as merging
from medmerge.training import features

GRANULARITIES = ["kernel", "parameter", "layer", "model"]


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1, **options)


@dataclasses.dataclass
class Stage:
    layer: nn.Module
    gain: float = 2.0


class Net(nn.Module):
    """Two convolutions with a norm between; subclasses reach them in their own ways."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = conv(), nn.BatchNorm2d(3), conv(bias=False)
        self.build()

    def build(self):
        pass

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


class InList(Net):
    def build(self):
        self.stages = [self.a, self.norm, self.b]

    def forward(self, x):
        return functools.reduce(lambda x, layer: layer(x), self.stages, x)


class InDict(Net):
    def build(self):
        self.by_name = {"first": [self.a], "second": {"layer": self.b}}

    def forward(self, x):
        return self.by_name["second"]["layer"](self.by_name["first"][0](x))


class InDataclass(Net):
    def build(self):
        self.stage = Stage(self.b)

    def forward(self, x):
        return self.stage.gain * self.stage.layer(self.a(x))


class BoundMethod(Net):
    def build(self):
        self.run, self.again = self.b.forward, functools.partial(self.a.forward)

    def forward(self, x):
        return self.run(self.again(x))


class Hooked(Net):
    def build(self):
        self.norm.register_forward_hook(self.noted)
        self.a.register_forward_hook(lambda module, inputs, output: output * 2)
        self.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] + module.weight.mean(),))

    def noted(self, module, inputs, output):
        return output + self.b.weight.mean()


class Asks(Net):
    def forward(self, x):
        layers = [m for m in (self.a, self.norm) if isinstance(m, nn.Conv2d) and m.__class__.__name__ == "Conv2d"]
        x = layers[0](x) * self.a.kernel_size[0] / self.a.out_channels
        return F.conv2d(x, self.b.weight, self.b.bias, padding=self.b.padding)


class Arguments(Net):
    def forward(self, x, shift=0.25, *, scale=3.0):
        return {"out": self.b(self.a(x) + shift) * scale}["out"]


class Tied(Net):
    def build(self):
        self.c = conv()
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Scaled(nn.Conv2d):
    """A convolution with a parameter of its own, before and after the others, and a forward of its own."""

    def __init__(self):
        super().__init__(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self.gain * self._conv_forward(x, weight, self.bias)


class Subclass(Net):
    def build(self):
        self.a = Scaled()


class UNet(nn.Module):
    """Down, up by transposed convolutions, one of them in groups, and a skip."""

    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.grouped = nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2)
        self.last = nn.Conv2d(9, 2, 1)

    def forward(self, x):
        return self.last(torch.cat([x, self.grouped(self.up(F.relu(self.norm(self.down(x)))))], 1))


class ThreeD(nn.Sequential):
    def __init__(self):
        layers = nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2), nn.Flatten()
        super().__init__(nn.Unflatten(1, (1, 3)), *layers, nn.Linear(2 * 2 * 15 * 15, 3))


def attention(**options) -> type:
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(16, 2, batch_first=True, **options)

        def forward(self, x):
            x = x.flatten(2)
            return self.attend(x, x, x, need_weights=False)[0]

    return Attention


NETWORKS = {kind.__name__: kind for kind in (Net, InList, InDict, InDataclass, BoundMethod, Hooked, Asks, Arguments)}
NETWORKS |= {kind.__name__: kind for kind in (Tied, Subclass, UNet)}
ATTENTION = {
    "attention": attention(),
    "attention without biases": attention(bias=False),
    "attention with biases of keys": attention(add_bias_kv=True),
    "attention with a zero": attention(add_zero_attn=True),
}


def trained(make, count: int = 2) -> list[nn.Module]:
    """Networks as after training, with no parameter and no running statistic at its initial value."""
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        networks.append(make().eval())
        with torch.no_grad():
            for value in (*networks[-1].parameters(), *networks[-1].buffers()):
                if value.is_floating_point():
                    value.add_(0.2 * torch.rand_like(value))
    return networks


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))


def modes(*models: nn.Module):
    """Eval without and with gradients, and training."""
    for training, gradients in ((False, False), (False, True), (True, True)):
        with torch.set_grad_enabled(gradients):
            yield [model.train(training) for model in models]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", [*NETWORKS, *ATTENTION])
def test_merge_fold_and_ends_agree_to_the_bit(name, x, granularity):
    sources = trained((NETWORKS | ATTENTION)[name])
    for w, end in ((1.0, 0), (0.0, 1), (0.3, None)):
        merge = KernelMerge(sources, granularity=granularity, batchnorm=end or 0)
        merge.set_kernel_weights(w)
        original = copy.deepcopy(sources[end or 0])
        for merged, folded, source in modes(merge, merge.fold(), original):
            out = merged(x)
            assert torch.equal(out, folded(x))
            assert torch.equal(out, source(x)) == (end is not None)
    folded = merge.fold()
    assert list(folded.state_dict()) == list(sources[0].state_dict())
    assert [type(m) for m in folded.modules()] == [type(m) for m in sources[0].modules()]
    assert len(list(folded.parameters())) == len(list(sources[0].parameters())), "ties are kept"


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "three dimensions"])
def test_other_architectures_to_the_bit(name):
    sources = trained(ThreeD if name == "three dimensions" else functools.partial(torchvision.models.get_model, name))
    x = torch.randn(2, *((3, 16, 16) if name == "three dimensions" else (3, 32, 32)))
    with torch.no_grad():
        for end in (0, 1):
            merge = KernelMerge(sources, batchnorm=end).eval()
            merge.set_kernel_weights(1.0 - end)
            assert torch.equal(merge(x), sources[end](x))
        merge.set_kernel_weights({n: torch.rand(w.shape) for n, w in merge.kernel_weights().items()})
        assert torch.equal(merge.fold()(x), merge(x))
        merge = KernelMerge([sources[0], copy.deepcopy(sources[0])]).eval()
        merge.set_kernel_weights(-3.7)
        assert torch.equal(merge(x), sources[0](x))


def test_arguments_are_passed_on(x):
    sources = trained(Arguments)
    merge = KernelMerge(sources).eval()
    merge.set_kernel_weights(1.0)
    merge.merged.norm.load_state_dict(sources[0].norm.state_dict())
    assert torch.equal(merge(x, 0.5, scale=2.0), sources[0](x, 0.5, scale=2.0))


def test_transposed_kernels_lie_along_the_second_axis():
    sources = trained(UNet)
    merge = KernelMerge(sources)
    w = {name: torch.rand(count) for name, count in (("down", 8), ("up", 4), ("grouped", 6), ("last", 2))}
    merge.set_kernel_weights(w)
    b, c, plain = (m.grouped for m in (*sources, merge.fold()))
    for kernel, share in enumerate(w["grouped"]):
        group, column = divmod(kernel, 3)
        rows = slice(2 * group, 2 * group + 2)
        expected = share * b.weight[rows, column] + (1 - share) * c.weight[rows, column]
        torch.testing.assert_close(plain.weight[rows, column], expected)
        torch.testing.assert_close(plain.bias[kernel], share * b.bias[kernel] + (1 - share) * c.bias[kernel])


def test_tied_kernels_are_one_kernel_with_one_weight(x):
    merge = KernelMerge(trained(Tied, 3))
    assert list(merge.kernel_weights()) == ["a", "b"]
    merge(x).square().sum().backward()
    assert all(mean.w.grad.abs().sum() > 0 for _, mean in merge.layers())
    for one in (merge.fold(), copy.deepcopy(merge).fold(), merge.double().fold()):
        assert one.c.weight is one.a.weight and one.c.bias is not one.a.bias


def test_a_parameter_of_a_subclass_follows_the_norms():
    sources = trained(Subclass)
    merge = KernelMerge(sources)
    assert torch.equal(merge.merged.a.gain, torch.stack([s.a.gain for s in sources]).mean(0))
    assert "a.gain" in dict(merge.merged.named_parameters())


def test_requiring_gradients_of_all_thaws_no_kernel():
    merge = KernelMerge(trained(Net)).requires_grad_(True)
    assert {name.rpartition(".")[2] for name, _ in merge.named_parameters()} == {"w", "weight", "bias"}
    assert sum(p.numel() for p in merge.parameters()) == 3 + 3 + 2 * 3


def with_untrainable_kernels(net):
    weight = net.a.weight.detach()
    del net.a.weight
    net.a.register_buffer("weight", weight)


def with_tied_transpose(net):
    net.up = nn.ConvTranspose2d(3, 3, 3)
    net.up.weight = net.a.weight


def quantised(net):
    net.add_module("linear", nn.Linear(3, 3))
    torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, inplace=True)


def over_another_layer(net):
    return lambda module, inputs, output: output + net.norm.weight.sum()


def single(net):
    return type("Single", (nn.Conv2d,), {"__deepcopy__": lambda self, memo: self})


PUT = {
    "run": (lambda net: lambda x: net.b(x), r"run holds a function that keeps the network.*make it a method"),
    "tools": (
        lambda net: {"run": [lambda x, layers=(net.a,): layers[0](x)]},
        r"tools holds a function that keeps a of .*make it a method",
    ),
    "a.parent": (weakref.ref, r"a\.parent holds a weak reference"),
    "regularised": (lambda net: [net.a.weight], r"regularised holds a kernel, a\.weight"),
    "norm.scale": (lambda net: net.norm.weight * 2, r"norm .* holds scale, which is part of a graph.*detach"),
    "last": (lambda net: nn.LazyLinear(2), r"last \(LazyLinear\) holds weight, which has no shape yet"),
    "norm.bias": (lambda net: net.a.bias, r"norm\.bias and a\.bias share .*not one kernel; untie"),
    "b.bias": (lambda net: net.a.bias, r"b\.bias and a\.bias share .*not one kernel; untie"),
    "b.weight": (lambda net: nn.Parameter(net.a.weight.detach()), r"b\.weight and a\.weight share .*tie them"),
    "gain": (lambda net: functools.lru_cache(lambda: net.norm.weight.mean()), r"gain holds a function that keeps the"),
    "lock": (lambda net: threading.Lock(), r"source 0 cannot be copied .*lock"),
    "b.__class__": (single, r"its Single gives itself for its copy"),
    "inner": (lambda net: KernelMerge(trained(Net)), r"inner \(KernelMerge\) is a merge; fold\(\) it"),
    "b": (lambda net: torch.jit.script(conv()), r"b .*compiled; merge the network"),
    "a": (lambda net: torch.compile(conv()), r"a .*compiled; merge the network"),
}
"""What a network may hold, by where it holds it."""

DONE = [
    (lambda net: net.b.register_forward_hook(over_another_layer(net)), r"a hook of b holds a function .*the network"),
    (lambda net: prune.l1_unstructured(net.a, "weight", 0.3), r"a \(Conv2d\).*prune\.remove\(layer, 'weight'\)"),
    (lambda net: prune.random_unstructured(net.norm, "bias", 1), r"norm .*prune\.remove\(layer, 'bias'\)"),
    (lambda net: parametrizations.weight_norm(net.a), r"a \(Param.*remove_parametrizations\(layer, 'weight'"),
    (lambda net: nn.utils.weight_norm(net.b), r"b \(Conv2d\).*remove_weight_norm\(layer, 'weight'\)"),
    (lambda net: parametrizations.spectral_norm(net.b), r"b \(Param.*remove_parametrizations"),
    (lambda net: nn.utils.spectral_norm(net.b), r"b \(Conv2d\).*remove_spectral_norm"),
    (quantised, r"linear.*packed or quantised.*before it is converted"),
    (with_untrainable_kernels, r"a \(Conv2d\) has a weight that is no dense parameter.*nn\.Parameter"),
    (with_tied_transpose, r"up\.weight and a\.weight share .*not one kernel; untie"),
]
"""What may have been done to it."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("where", "change", "message"), [*((k, *v) for k, v in PUT.items()), *(("", *d) for d in DONE)]
)
def test_what_cannot_be_merged_is_named_with_the_way_out(where, change, message):
    sources = trained(Net)
    owner, _, name = where.rpartition(".")
    for source in sources:
        value = change(source)
        if where:
            setattr(source.get_submodule(owner), name, value)
    with pytest.raises(TypeError, match=message):
        KernelMerge(sources)


def test_sources_made_in_inference_mode_are_refused_and_a_merge_made_there_learns(x):
    with torch.inference_mode():
        sources = trained(Net)
        with pytest.raises(TypeError, match=r"a \(Conv2d\) holds weight, which was made in torch\.inference_mode"):
            KernelMerge(sources)
    sources = trained(Net)
    with torch.inference_mode():
        merge = KernelMerge(sources)
        folded = merge.fold()
    for model in (merge, folded):
        model(x).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_merge_as_a_source_is_refused():
    sources = trained(Net)
    with pytest.raises(
        TypeError, match=r"source 1: the network \(KernelMerge\) is a merge; fold\(\) it, or merge its own"
    ):
        KernelMerge([sources[0], KernelMerge(sources)])


def test_a_single_network_is_no_list_of_sources():
    with pytest.raises(TypeError, match="sources is a single Sequential"):
        KernelMerge(nn.Sequential(conv(), conv()))


def test_kernels_are_computed_once_a_pass_over_the_data(monkeypatch):
    computed, mean = [], merging.Mean.forward
    monkeypatch.setattr(merging.Mean, "forward", lambda self, first: computed.append(1) or mean(self, first))
    merge = KernelMerge(trained(lambda: nn.Sequential(Net(), nn.Flatten()))).eval()
    one = task(batch_size=3)
    assert len(one.val) == 2 * 4 * one.protocol.batch_size, "two batches"
    first = features(merge, one.val, one).inputs
    assert len(computed) == 3, "two weights and a bias, not once a batch"
    merge.set_kernel_weights(0.9)
    assert not torch.equal(features(merge, one.val, one).inputs, first) and len(computed) == 6


def hidden_layer(seed):
    torch.manual_seed(seed)
    return [conv()]


DIFFERENT = {
    "a number": ("scale", lambda i: i + 1.5, r"Net\(scale=1\.5\) in source 0 and Net\(scale=2\.5\) in source 1"),
    "a text": ("mode", lambda i: ("bilinear", "nearest")[i], r"mode='bilinear'.*mode='nearest'"),
    "a tensor": ("mean", lambda i: torch.tensor([0.25, i]), r"mean=tensor.*mean=tensor"),
    "a dictionary": ("options", lambda i: {"blocks": [1, {"rate": i / 2}]}, r"options=.*0\.0.*0\.5.*must be alike"),
    "a dataclass": ("stage", lambda i: Stage(None, float(i)), r"stage=.*gain=0\.0.*gain=1\.0"),
    "a function": ("act", lambda i: (F.relu, F.gelu)[i], r"act.*in source 0 and .*act"),
    "what a function keeps": ("act", lambda i: functools.partial(F.leaky_relu, negative_slope=i), r"negative_slope"),
    "a layer that is none of the network's": ("tools", hidden_layer, r"Net\(tools=.*must be alike"),
    "what is there": ("extra", lambda i: [None] * i, r"extra=\[\].*extra=\[None\]"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_other_state_that_differs_is_refused_and_the_same_is_not(what):
    name, value, message = DIFFERENT[what]
    sources = trained(Net)
    for i, source in enumerate(sources):
        setattr(source, name, value(i))
    with pytest.raises(ValueError, match=message):
        KernelMerge(sources)
    setattr(sources[1], name, copy.deepcopy(getattr(sources[0], name)))
    KernelMerge(sources)


def test_integer_tables_and_ties_that_differ_are_refused():
    sources = trained(Net)
    for i, source in enumerate(sources):
        source.norm.register_buffer("order", torch.arange(3) * i, persistent=False)
    with pytest.raises(ValueError, match=r"norm BatchNorm2d\(order="):
        KernelMerge(sources)
    sources = trained(lambda: nn.ModuleDict({name: conv() for name in "abc"}))
    sources[0]["c"].weight, sources[1]["c"].weight = sources[0]["a"].weight, sources[1]["b"].weight
    with pytest.raises(ValueError, match=r"c\.weight .*tied to a\.weight.*tied to b\.weight"):
        KernelMerge(sources)


def test_the_same_weights_under_two_names_are_said(caplog):
    net = trained(Net)[0]
    KernelMerge([net, copy.deepcopy(net)])
    assert "sources 0 and 1 have the same weights" in caplog.text
    caplog.clear()
    KernelMerge(trained(Net))
    assert not caplog.records


def test_hooks_of_one_source_alone_are_said(caplog):
    one, other = (Hooked() for _ in range(2))
    KernelMerge([one, other])
    assert not caplog.text
    other.b.register_forward_hook(lambda module, inputs, output: output + 1)
    merge = KernelMerge([one, other])
    assert "b: source 1 has other hooks; the merge has source 0's" in caplog.text
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(merge.eval()(x), merge.fold().eval()(x))


def test_what_a_recurrent_layer_has_is_no_kernel():
    with pytest.raises(TypeError, match=r"weight_ih_l0 \[16, 3\] of a LSTM is not a kernel of a convolution or linear"):
        KernelMerge([nn.LSTM(3, 4) for _ in range(2)])


def test_layers_of_several_precisions_share_one_weight(x):
    class Mixed(Net):
        def build(self):
            self.b.double()

        def forward(self, x):
            return self.b(self.a(x).double())

    sources = trained(Mixed)
    merge = KernelMerge(sources, granularity="model").eval()
    merge.set_kernel_weights(1.0)
    assert torch.equal(merge(x), sources[0](x)) and torch.equal(merge.fold()(x), sources[0](x))
    merge(x).sum().backward()
    assert merge.merging_parameters()[0].grad.isfinite().all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_states_round_trip_without_a_tensor_twice(x, granularity):
    merge = KernelMerge(trained(UNet), granularity=granularity).eval()
    merge.set_kernel_weights(0.25)
    state = merge.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    other = KernelMerge(trained(UNet)[::-1], granularity=granularity).eval()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(x), merge(x))


def test_copies_and_folds_leave_the_merge_alone(x):
    merge = KernelMerge(trained(Net)).eval()
    before = merge(x)
    twin, folded = copy.deepcopy(merge), merge.fold()
    twin.set_kernel_weights(0.9)
    parametrize_free = [m for m in folded.modules() if parametrize.is_parametrized(m)]
    assert torch.equal(merge(x), before) and not torch.equal(twin(x), before) and not parametrize_free
    assert torch.equal(merge.fold()(x), before) and torch.equal(copy.deepcopy(twin).fold()(x), twin(x))
    assert (
        torch.equal(KernelMerge([folded, trained(Net)[1]], batchnorm=0).fold().a.weight, merge.fold().a.weight) is False
    )


def test_pickling_a_merge_says_how_to_save_it():
    net = trained(Net)
    for source in net:
        source.num_features = 3
    for model in (KernelMerge(net), Classifier(KernelMerge(net), 2)):
        with pytest.raises(TypeError, match=r"medmerge\.save\(merge, path\)"):
            torch.save(model, io.BytesIO())
        with pytest.raises(TypeError, match=r"medmerge\.save"):
            pickle.dumps(model)
    assert torch.equal(pickle.loads(pickle.dumps(KernelMerge(net).fold())).a.weight, KernelMerge(net).fold().a.weight)


@pytest.mark.parametrize("name", ["Net", "UNet", "attention"])
def test_compiled_and_exported_networks_return_the_same(name, x):
    merge = KernelMerge(trained((NETWORKS | ATTENTION)[name])).eval()
    merge.set_kernel_weights({n: torch.rand(w.shape) for n, w in merge.kernel_weights().items()})
    for model in (merge, merge.fold()):
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)
            torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_repr_is_a_line_and_says_what_is_merged():
    merge = KernelMerge(trained(UNet))
    assert repr(merge) == (
        "KernelMerge(UNet, 2 sources, 4 layers, 20 kernels, "
        "granularity='kernel', batchnorm='mean', normalisation='affine')"
    )


def test_zeros_of_transposed_kernels():
    zeros = zeros_like(trained(UNet)[0])
    assert not any(p.any() for n, p in zeros.named_parameters() if not n.startswith("norm")) and zeros.norm.weight.all()

"""Linear layers by oneDNN against those by `F.linear`: results, gradients, and which inputs each takes."""

import pytest
import torch
import torch.nn.functional as F
from test_modeling import small_batch, small_config
from torch import nn

from swinbert import SwinBertForVideoCaptioning, cpu_swinbert
from swinbert.cpu_swinbert import OneDNNLinearMode, fast_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def products(monkeypatch):
    """Counts products by oneDNN."""
    made, product = [], cpu_swinbert.onednn_product
    monkeypatch.setattr(cpu_swinbert, "onednn_product", lambda *args: made.append(1) or product(*args))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (3, 5, 24), (2, 1, 7, 24)], ids=str)
def test_results_and_gradients_are_those_of_the_plain_layer(shape, bias, products):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    states, weights = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 40)
    inputs = [states, *layer.parameters()]
    output = layer(states)
    plain = [output, *torch.autograd.grad((output * weights).sum(), inputs)]
    with OneDNNLinearMode():
        output = layer(states)
    fast = [output, *torch.autograd.grad((output * weights).sum(), inputs)]
    assert len(products) == 3
    for found, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_strided_states(products):
    layer, states = nn.Linear(24, 40), torch.randn(6, 4, 48)
    for part in (states[:, 1:3, :24], states[::2, :, ::2], states[0, :, :24].t().contiguous().t()):
        with OneDNNLinearMode():
            found = layer(part)
        torch.testing.assert_close(found, layer(part), atol=1e-5, rtol=1e-5)
    assert len(products) == 3


def test_only_requested_gradients_are_computed(products):
    layer = nn.Linear(24, 40).requires_grad_(False)
    with OneDNNLinearMode():
        output = layer(torch.randn(3, 24, requires_grad=True))
    output.sum().backward()
    assert len(products) == 2 and layer.weight.grad is None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, states: (layer.bfloat16(), states.bfloat16()),
        lambda layer, states: (layer.to("meta"), states.to("meta")),
        lambda layer, states: (layer, states[:0]),
        lambda layer, states: (layer, states[0]),
    ],
    ids=["bfloat16", "another device", "no rows", "one vector"],
)
def test_other_inputs_go_to_torch(change, products):
    layer, states = change(nn.Linear(24, 40), torch.randn(3, 24))
    with OneDNNLinearMode():
        assert layer(states).shape == (*states.shape[:-1], 40) and not products


def test_autocast_casts(products):
    with torch.autocast("cpu", torch.bfloat16), OneDNNLinearMode():
        assert nn.Linear(24, 40)(torch.randn(3, 24)).dtype == torch.bfloat16 and not products


@pytest.mark.parametrize("is_faster", [True, False])
@pytest.mark.parametrize("enabled", [None, True, False])
def test_the_processor_decides_unless_the_switch_is_set(enabled, is_faster, monkeypatch, products):
    monkeypatch.setattr(cpu_swinbert, "has_faster_onednn", lambda: is_faster)
    monkeypatch.setattr(OneDNNLinearMode, "enabled", enabled)
    fast_linear(F.linear)(torch.randn(3, 24), torch.randn(40, 24))
    assert bool(products) == (is_faster if enabled is None else enabled)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model(checkpointing, monkeypatch, products):
    """Outputs and gradients of both streams, in training too, where backward computes activations again."""
    torch.manual_seed(0)
    model = SwinBertForVideoCaptioning(small_config()).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch, found = small_batch(), {}
    for enabled in (False, True):
        monkeypatch.setattr(OneDNNLinearMode, "enabled", enabled)
        torch.manual_seed(1)
        outputs = model(**batch, labels=batch["input_ids"])
        outputs.loss.backward()
        found[enabled] = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found[enabled]["logits"] = outputs.logits.detach()
        model.zero_grad()
    assert len(products) > 3 * 20 and len(found[True]) > 50 and found[True].keys() == found[False].keys()
    for name, plain in found[False].items():
        torch.testing.assert_close(found[True][name], plain, atol=2e-5, rtol=1e-4, msg=name)

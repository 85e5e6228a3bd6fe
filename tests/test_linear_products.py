"""Products of linear layers on a CPU against those of `F.linear`: results, gradients, and which inputs each takes."""

import pytest
import torch
import torch.nn.functional as F
from test_modeling import small_batch, small_config
from torch import nn

from swinbert import SwinBertForVideoCaptioning, cpu_swinbert
from swinbert.cpu_swinbert import FastLinearMode, fast_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def counted(monkeypatch, name: str) -> list:
    made, product = [], getattr(cpu_swinbert, name)
    monkeypatch.setattr(cpu_swinbert, name, lambda *args: made.append(1) or product(*args))
    return made


@pytest.fixture
def products(monkeypatch):
    """Counts products by oneDNN, which computes all that need a gradient or have more than a few rows."""
    monkeypatch.setattr(cpu_swinbert, "has_faster_onednn", lambda: True)
    return counted(monkeypatch, "onednn_product")


@pytest.fixture
def few_rows_products(monkeypatch):
    """Counts products with the weight on the left."""
    return counted(monkeypatch, "few_rows_product")


@pytest.fixture
def one_row_products(monkeypatch):
    """Counts products of a single row in batches of one for each thread."""
    return counted(monkeypatch, "one_row_product")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (3, 5, 24), (2, 1, 7, 24)], ids=str)
def test_results_and_gradients_are_those_of_the_plain_layer(shape, bias, products):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    states, weights = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 40)
    inputs = [states, *layer.parameters()]
    output = layer(states)
    plain = [output, *torch.autograd.grad((output * weights).sum(), inputs)]
    with FastLinearMode():
        output = layer(states)
    fast = [output, *torch.autograd.grad((output * weights).sum(), inputs)]
    assert len(products) == 3
    for found, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_strided_states(products):
    layer, states = nn.Linear(24, 40), torch.randn(6, 4, 48)
    for part in (states[:, 1:3, :24], states[::2, :, ::2], states[0, :, :24].t().contiguous().t()):
        with FastLinearMode():
            found = layer(part)
        torch.testing.assert_close(found, layer(part), atol=1e-5, rtol=1e-5)
    assert len(products) == 3


def test_only_requested_gradients_are_computed(products):
    layer = nn.Linear(24, 40).requires_grad_(False)
    with FastLinearMode():
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
    with FastLinearMode():
        assert layer(states).shape == (*states.shape[:-1], 40) and not products


def test_autocast_casts(products):
    with torch.autocast("cpu", torch.bfloat16), FastLinearMode():
        assert nn.Linear(24, 40)(torch.randn(3, 24)).dtype == torch.bfloat16 and not products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 24), (3, 24), (2, 2, 24), (4, 1, 24)], ids=str)
def test_few_rows_have_the_weight_on_the_left(shape, bias, products, few_rows_products):
    torch.manual_seed(0)
    layer, states = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad(), FastLinearMode():
        found = layer(states)
    assert found.is_contiguous() and len(few_rows_products) == 1 and not products
    torch.testing.assert_close(found, layer(states), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24)], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_single_row_is_divided_among_threads(threads, shape, bias, monkeypatch, products, one_row_products):
    """40 outputs cannot be divided among three threads: oneDNN computes them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    layer, states = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad(), FastLinearMode():
        found = layer(states)
    assert (len(one_row_products), len(products)) == ((0, 1) if threads == 3 else (1, 0))
    torch.testing.assert_close(found, layer(states), atol=1e-5, rtol=1e-5)


def test_a_strided_row(one_row_products):
    layer, states = nn.Linear(24, 40), torch.randn(2, 3, 48)
    for part in (states[:1, :1, ::2], states[1:, 2:, 3:27]):
        with torch.no_grad(), FastLinearMode():
            found = layer(part)
        torch.testing.assert_close(found, F.linear(part.contiguous(), layer.weight, layer.bias))
    assert len(one_row_products) == 2


@pytest.mark.parametrize("is_faster", [True, False])
@pytest.mark.parametrize("rows", [5, 16, 17])
def test_up_to_sixteen_rows_are_onednns_on_every_processor(
    rows, is_faster, monkeypatch, products, few_rows_products, one_row_products
):
    monkeypatch.setattr(cpu_swinbert, "has_faster_onednn", lambda: is_faster)
    layer, states = nn.Linear(24, 40), torch.randn(rows, 24)
    with torch.no_grad(), FastLinearMode():
        found = layer(states)
    assert len(products) == (is_faster or rows <= 16) and not few_rows_products and not one_row_products
    torch.testing.assert_close(found, layer(states), atol=1e-5, rtol=1e-5)


def test_few_rows_of_more_inputs_than_outputs_are_onednns(products, few_rows_products):
    layer, states = nn.Linear(48, 24), torch.randn(2, 48)
    with torch.no_grad(), FastLinearMode():
        found = layer(states)
    torch.testing.assert_close(found, F.linear(states, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
    assert len(products) == 1 and not few_rows_products


@pytest.mark.parametrize("is_faster", [True, False])
@pytest.mark.parametrize("enabled", [None, True, False])
def test_the_processor_decides_unless_the_switch_is_set(enabled, is_faster, monkeypatch, products, few_rows_products):
    monkeypatch.setattr(cpu_swinbert, "has_faster_onednn", lambda: is_faster)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: is_faster)
    monkeypatch.setattr(FastLinearMode, "enabled", enabled)
    for rows in (3, 20):
        fast_linear(F.linear)(torch.randn(rows, 24), torch.randn(40, 24))
    is_used = is_faster if enabled is None else enabled
    assert len(few_rows_products) == is_used
    assert len(products) == (is_used and is_faster)


def test_a_decoding_step_multiplies_few_rows(products, few_rows_products, one_row_products):
    """The last word and a [MASK]: two rows in every linear layer of the fusion encoder, and one in the head."""
    model = SwinBertForVideoCaptioning(small_config()).eval()
    video = model.encode_video(small_batch()["pixel_values_videos"][:1]).video_key_values
    few_rows_products.clear(), products.clear()
    found = {}
    for enabled in (True, False):
        FastLinearMode.enabled = enabled
        try:
            with torch.no_grad():
                found[enabled] = model(
                    torch.tensor([[2, 5]])[:, :1], video_key_values=video, predict_next=True, logits_to_keep=1
                ).logits
        finally:
            FastLinearMode.enabled = None
    layers = model.config.num_hidden_layers
    assert len(few_rows_products) + len(products) == 6 * layers and len(few_rows_products) >= 5 * layers
    assert len(one_row_products) == 2
    torch.testing.assert_close(found[True], found[False], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model(checkpointing, monkeypatch, products):
    """Outputs and gradients of both streams, in training too, where backward computes activations again."""
    torch.manual_seed(0)
    model = SwinBertForVideoCaptioning(small_config()).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch, found = small_batch(), {}
    for enabled in (False, True):
        monkeypatch.setattr(FastLinearMode, "enabled", enabled)
        torch.manual_seed(1)
        outputs = model(**batch, labels=batch["input_ids"])
        outputs.loss.backward()
        found[enabled] = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found[enabled]["logits"] = outputs.logits.detach()
        model.zero_grad()
    assert len(products) > 3 * 20 and len(found[True]) > 50 and found[True].keys() == found[False].keys()
    for name, plain in found[False].items():
        torch.testing.assert_close(found[True][name], plain, atol=2e-5, rtol=1e-4, msg=name)

"""Attention that skips dead entries of the sparse mask: equal to the dense one, with a plan that is never stale."""

import copy

import pytest
import torch
from golden import TINY
from test_modeling import forward, small_batch, small_config, tiny_model

from swinbert import SparseVideoMask, SwinBertForVideoCaptioning
from swinbert import sparse_attention_swinbert as sparse_attention
from swinbert.sparse_attention_swinbert import plan_attention, planned_attention, score_range

ALIVE, DEAD = 8.0, -4.0


@pytest.fixture
def blocks_cost_nothing(monkeypatch):
    """So that plans of small models have blocks."""
    monkeypatch.setattr(sparse_attention, "_COST_OF_BLOCK", 0)
    monkeypatch.setattr(sparse_attention, "_COST_OF_COLUMN", 0)
    monkeypatch.setattr(sparse_attention, "_ROWS_OF_BLOCK", (2,))


def make_model(path: str, **overrides) -> SwinBertForVideoCaptioning:
    """A model of 32 video tokens; on the path `"blocks"`, some attend to themselves only and some to a few others."""
    torch.manual_seed(0)
    config = small_config(num_hidden_layers=3, image_size=32, **overrides)
    config.vision_config.drop_path_rate = 0.0
    model = SwinBertForVideoCaptioning(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        weight = model.model.sparse_mask.weight
        weight.fill_(ALIVE if path == "dense" else DEAD)
        if path == "blocks":
            weight[torch.rand_like(weight) < 0.05] = ALIVE
            weight[3:9] = DEAD
            weight[7, 20:25] = torch.tensor([5.5, 6.0, 6.5, 7.0, 7.5])
    return model


def make_batch() -> dict[str, torch.Tensor]:
    pixels = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"pixel_values_videos": pixels, "input_ids": small_batch()["input_ids"]}


def plan_of(model) -> sparse_attention.AttentionPlan:
    return model.model.sparse_mask.plan()


def dense(model):
    model = copy.deepcopy(model)
    model.model.sparse_mask.skips_dead_entries = False
    assert plan_of(model).is_dense
    return model


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"sparse_mask": "hard"},
        {"sparse_mask": "hard", "sparse_mask_form": "gate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["identity", "blocks", "dense"])
def test_equals_dense_attention(blocks_cost_nothing, path, mask):
    model, batch = make_model(path, **mask), make_batch()
    plan = plan_of(model)
    assert plan.path == path
    outputs = model.encode_video(batch["pixel_values_videos"], output_hidden_states=True)
    expected = dense(model).encode_video(batch["pixel_values_videos"], output_hidden_states=True)
    assert outputs.hidden_states[-1].std() > 0.1
    torch.testing.assert_close(outputs.hidden_states, expected.hidden_states, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.video_key_values, expected.video_key_values, atol=2e-5, rtol=1e-5)
    if path == "blocks":
        self_only = set(plan.self_only.tolist())
        assert 0 < len(self_only) < 32 and 7 not in self_only
        assert plan.executed < 0.7


@pytest.mark.parametrize("name", [name for name, case in TINY["cases"].items() if case["mask"] != "none"])
def test_equals_the_original(blocks_cost_nothing, name):
    """On the golden cases, whose masks have dead entries."""
    case = TINY["cases"][name]
    model = tiny_model(case["clip"], case["mask"], label_smoothing=case["label_smoothing"])
    assert plan_of(model).path == "blocks"
    outputs, _, _ = forward(model, case)
    assert outputs.caption_loss.item() == pytest.approx(case["loss"], abs=3e-4 if case["mask"] == "soft" else 2e-5)


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("path", ["identity", "blocks"])
def test_gradients_equal_those_of_dense_attention(blocks_cost_nothing, path, checkpointing):
    """That of a dead entry is 0: its weight is."""
    model, batch = make_model(path), make_batch()
    expected = dense(model)
    gradients = []
    for each in (model, expected):
        each.train()
        if checkpointing is not None:
            each.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            each.enable_input_require_grads()
        each(**batch, labels=batch["input_ids"]).caption_loss.backward()
        gradients.append({name: p.grad for name, p in each.named_parameters()})
    assert plan_of(model).path == path
    of_mask = gradients[0]["model.sparse_mask.weight"]
    assert (of_mask != 0).any() == (path == "blocks")
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def by_sgd(mask, wanted):
    mask.weight.grad = mask.weight.detach() - wanted
    torch.optim.SGD([mask.weight], lr=1.0).step()


@pytest.mark.parametrize(
    "change",
    [
        lambda mask, wanted: mask.load_state_dict({"weight": wanted}),
        lambda mask, wanted: mask.load_state_dict({"weight": wanted}, assign=True),
        lambda mask, wanted: mask.weight.data.copy_(wanted),
        lambda mask, wanted: setattr(mask.weight, "data", wanted.clone()),
        lambda mask, wanted: setattr(mask, "weight", torch.nn.Parameter(wanted.clone())),
        by_sgd,
    ],
    ids=["load_state_dict", "assigned", "data in place", "data", "parameter", "optimizer"],
)
def test_changed_weights_have_another_plan(blocks_cost_nothing, change):
    mask = make_model("identity").model.sparse_mask
    assert mask.plan().path == "identity"
    unchanged = copy.deepcopy(mask)
    wanted = make_model("blocks").model.sparse_mask.weight.detach()
    change(mask, wanted)
    with torch.no_grad():
        bias, plan = mask()
    assert plan.path == "blocks"
    rows, columns = plan.blocks[0]
    torch.testing.assert_close(bias[: len(rows) * len(columns)], mask.bias()[rows[:, None], columns].flatten())
    assert unchanged.plan().path == "identity"


def test_a_plan_is_cached_while_nothing_changes():
    mask = make_model("identity").model.sparse_mask
    plan = mask.plan()
    assert mask.plan() is plan
    assert set(mask.state_dict()) == {"weight"}
    with torch.inference_mode():
        assert mask.plan() is plan


def test_a_hardened_mask_has_another_plan(blocks_cost_nothing):
    mask = make_model("identity").model.sparse_mask
    with torch.no_grad():
        mask.weight[0, 1:4] = 0.5  # a penalty of -3775, or none
    assert mask.plan().path == "identity"
    mask.config.sparse_mask = "hard"
    assert mask.plan().path == "blocks"
    mask.config.sparse_mask = "soft"
    assert mask.bfloat16().plan().path == "identity"


def test_a_mask_used_in_inference_mode_can_be_trained(blocks_cost_nothing):
    model, batch = make_model("blocks"), make_batch()
    model.model.sparse_mask.weight.requires_grad_(False)
    with torch.inference_mode():
        model(**batch)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.model.projector.linear_1.weight.grad.abs().sum() > 0


def test_clips_beyond_the_score_margin_go_through_dense_attention(blocks_cost_nothing):
    """Here a penalty of -474 would be dead, but scores differ by more."""
    model, batch = make_model("identity"), make_batch()
    with torch.no_grad():
        model.model.sparse_mask.weight.fill_(3.0)
        for layer in model.model.encoder.layer:
            layer.attention.self.query.weight.mul_(5000.0)
    plan = plan_of(model)
    assert plan.path == "identity" and 256 < plan.score_margin < 474
    outputs = model.encode_video(batch["pixel_values_videos"]).video_key_values
    expected = dense(model).encode_video(batch["pixel_values_videos"]).video_key_values
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    model.model._run_prefix = lambda *_, original=model.model._run_prefix: (original(*_)[0], [])  # compares nothing
    blind = model.encode_video(batch["pixel_values_videos"]).video_key_values
    assert not torch.allclose(blind[-1][0], expected[-1][0], atol=1e-2)


def test_bound_of_scores():
    query, key = torch.randn(2, 30, 4, 16), torch.randn(2, 30, 4, 16) + 5.0
    scores = torch.einsum("vqhd,vkhd->vhqk", query, key) * 0.25
    measured = (scores.amax(dim=-1) - scores.amin(dim=-1)).max()
    assert measured <= score_range(query, key, 0.25) < 4 * measured


def local_bias(size: int, window: int) -> torch.Tensor:
    position = torch.arange(size)
    return torch.where((position[:, None] - position).abs() <= window, 0.0, -10000.0)


@pytest.mark.parametrize("size, window, path", [(784, 0, "identity"), (784, 16, "blocks"), (784, 700, "dense")])
def test_the_cheapest_path_is_chosen(size, window, path):
    bias = local_bias(size, window)
    plan = plan_attention(lambda rows: bias[rows], size, bias.device)
    assert plan.path == path
    assert plan.score_margin == (float("inf") if path == "dense" else 10000 - 104)
    if path == "blocks":
        query, key, value = torch.randn(3, 1, size, 2, 8)
        of_blocks = torch.cat([bias[rows[:, None], columns].flatten() for rows, columns in plan.blocks])
        found = planned_attention(plan, query, key, value, of_blocks, 0.5)
        by_head = (states.transpose(1, 2) for states in (query, key, value))
        expected = torch.nn.functional.scaled_dot_product_attention(*by_head, attn_mask=bias, scale=0.5)
        torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
        assert plan.executed < 0.2


def test_nan_is_not_skipped(blocks_cost_nothing):
    mask = make_model("identity").model.sparse_mask
    with torch.no_grad():
        mask.weight[2, 5] = torch.nan
    assert [rows.tolist() for rows, _ in mask.plan().blocks] == [[2]]


def test_dropout_of_a_token_that_sees_itself():
    """Dropout of a weight of 1: whole heads are dropped, the others scaled."""
    plan = plan_attention(lambda rows: local_bias(64, 0)[rows], 64, torch.device("cpu"))
    value = torch.ones(2, 64, 4, 8)
    dropped = planned_attention(plan, None, value, value, torch.empty(0), 1.0, dropout=0.25)
    assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)


def test_dense_where_the_mask_cannot_be_read():
    config = small_config()
    with torch.device("meta"):
        assert SparseVideoMask(config).plan().is_dense
    model, batch = make_model("identity"), make_batch()
    compiled = torch.compile(model.model.sparse_mask, backend="eager", fullgraph=True)
    assert compiled()[1].is_dense
    assert model.encode_video(batch["pixel_values_videos"], output_attentions=True).attentions[0] is None
    model.set_attn_implementation("eager")
    encoded = model.encode_video(batch["pixel_values_videos"], output_attentions=True)
    torch.testing.assert_close(encoded.attentions[0][0, 0], torch.eye(32))

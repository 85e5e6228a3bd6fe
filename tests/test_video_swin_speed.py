"""The backbone's fast paths against reference paths: window plans, caches, chunks, training, compiling."""

import contextlib
import copy
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import swinbert.modeling_video_swin_swinbert as video_swin
from swinbert import VideoSwinConfig, VideoSwinModel, cpu_swinbert
from swinbert.windows_swinbert import VideoSwinWindowAttention, make_window_plan


def small_model(**fields) -> VideoSwinModel:
    config = VideoSwinConfig(
        **{"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [2, 3, 3], "drop_path_rate": 0.0}
        | fields
    )
    model = VideoSwinModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def clips(batch: int, *shape: int) -> torch.Tensor:
    frames, height, width = shape
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid, window, shift", [((4, 6, 9), (2, 3, 3), (1, 1, 0)), ((3, 7, 5), (2, 3, 5), (1, 1, 0))])
def test_a_plan_puts_every_token_into_its_window(batch, grid, window, shift, split):
    plan = make_window_plan(batch, grid, window, shift, torch.device("cpu"), split)
    tokens = torch.arange(batch * grid[0] * grid[1] * grid[2])
    assert torch.equal(plan.order[plan.inverse], tokens) and torch.equal(plan.order.sort().values, tokens)
    assert torch.equal(plan.clip_of_row, plan.order // (grid[0] * grid[1] * grid[2]))

    # The definition, window by window: pad, roll, cut; ends of a clip that a shift joined do not see each other.
    number = tokens.view(batch, *grid)
    padding = [-size % side for size, side in zip(grid, window, strict=True)]
    number = torch.nn.functional.pad(number, (0, padding[2], 0, padding[1], 0, padding[0]), value=-1)
    place = torch.stack(torch.meshgrid(*map(torch.arange, number.shape), indexing="ij")).flatten(0, 1)
    number, place = (each.roll([-step for step in shift], dims=(-3, -2, -1)) for each in (number, place))

    def cut(grids: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W) -> (B * windows, N)."""
        for axis, side in enumerate(window, start=1):
            grids = grids.unfold(axis, side, side)
        return grids.flatten(4).flatten(0, 3)

    expected = cut(number)
    sees = torch.ones(*expected.shape, plan.num_tokens, dtype=torch.bool)
    for positions, side in zip(place.view(4, *number.shape)[1:], window, strict=True):
        positions = cut(positions)
        sees &= (positions[:, :, None] - positions[:, None]).abs() < side

    rows = torch.full((sum(group.num_rows for group in plan.groups),), -1)
    rows[slice(None) if plan.places is None else plan.places] = plan.order
    found, seen = torch.full_like(expected, -2), torch.zeros_like(sees)
    inside = torch.arange(plan.num_tokens).view(window)
    for group, tokens in zip(plan.groups, rows.split([group.num_rows for group in plan.groups]), strict=True):
        part = inside[group.part].flatten()
        found[group.windows[:, None], part] = tokens.view(-1, len(part))
        visible = torch.ones(len(part), len(part)) if group.mask is None else group.mask == 0
        seen[group.windows[:, None, None], part[:, None], part] = visible.bool()
    assert torch.equal(found, expected) and torch.equal(seen, sees)
    assert all(group.mask is None for group in plan.groups) == split


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", [(8, 48, 72), (7, 47, 50), (6, 40, 36)])
def test_parts_of_windows_equal_masked_windows(monkeypatch, attention, shape):
    model, video = small_model(window_size=[2, 5, 7]), clips(2, *shape)
    model.set_attn_implementation(attention)
    found, calls = [], []
    for least in (1, 1000):
        monkeypatch.setattr(cpu_swinbert, "MIN_TOKENS_TO_SPLIT", least)
        found.append(model(video, output_attentions=True))
        handles = [
            block.attn.register_forward_hook(lambda _, arguments, __: calls.append(len(arguments[1].groups)))
            for block in model.layers[0].blocks
        ]
        torch.testing.assert_close(model(video).last_hidden_state, found[-1].last_hidden_state, atol=1e-5, rtol=1e-5)
        for handle in handles:
            handle.remove()
    assert calls[0] == calls[2] == 1 and calls[1] > calls[3] > 1
    torch.testing.assert_close(found[0].last_hidden_state, found[1].last_hidden_state, atol=1e-5, rtol=1e-5)
    if attention == "eager":
        for parts, masked in zip(found[0].attentions, found[1].attentions, strict=True):
            torch.testing.assert_close(parts, masked, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_clips():
    model, video = small_model(), clips(3, 6, 40, 36)
    alone = torch.cat([model(clip[None]).last_hidden_state for clip in video])
    torch.testing.assert_close(model(video).last_hidden_state, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("windows", [1, 4, 1000])
@pytest.mark.parametrize("shape, is_padded", [((8, 48, 72), False), ((7, 47, 72), False), ((6, 40, 36), True)])
def test_chunks_equal_the_whole(monkeypatch, batch, windows, shape, is_padded):
    monkeypatch.setattr(cpu_swinbert, "CHUNK_BYTES", windows * 18 * 24 * 4)
    model, video = small_model(), clips(batch, *shape)
    rows, frames = [], []
    shifted = model.layers[0].blocks[1]
    shifted.mlp.fc1.register_forward_hook(lambda _, arguments, output: rows.append(len(output)))
    model.patch_embed.proj.register_forward_hook(lambda _, arguments, output: frames.append(output.shape[2]))
    in_chunks = model(video).last_hidden_state
    rows_in_chunks, rows[:] = list(rows), []
    monkeypatch.setattr(cpu_swinbert, "CHUNK_BYTES", float("inf"))
    torch.testing.assert_close(in_chunks, model(video).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert len(rows) == 1 and sum(rows_in_chunks) == rows[0]
    assert len(rows_in_chunks) == 1 if is_padded else max(rows_in_chunks) <= windows * 18
    assert sum(frames[:-1]) == frames[-1] and (len(frames) > 2 or windows == 1000)


@pytest.mark.parametrize("training, grad, chunks", [(False, True, 1), (True, False, 1), (False, False, 4 * 12)])
def test_gradients_and_training_use_no_chunks(monkeypatch, training, grad, chunks):
    monkeypatch.setattr(cpu_swinbert, "CHUNK_BYTES", 1)
    model, rows = small_model().train(training), []
    model.layers[0].blocks[1].mlp.fc1.register_forward_hook(lambda _, arguments, output: rows.append(len(output)))
    with torch.set_grad_enabled(grad):
        model(clips(1, 8, 48, 72))
    assert rows == [4 * 12 * 18 // chunks] * chunks


@pytest.mark.parametrize("shape", [(8, 48, 48), (6, 40, 36)])
@pytest.mark.parametrize("chunk_scores", [1, 1 << 20])
def test_gradients_of_fused_attention_equal_those_of_the_plain_one(monkeypatch, shape, chunk_scores):
    monkeypatch.setattr(cpu_swinbert, "_CHUNK_SCORES", chunk_scores)
    model, video = small_model(window_size=[4, 5, 5]).train(), clips(2, *shape)
    found = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        wanted = video.clone().requires_grad_()
        model(wanted).last_hidden_state.square().mean().backward()
        found[attention] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found[attention]["video"] = wanted.grad
    for name, gradient in found["eager"].items():
        torch.testing.assert_close(found["sdpa"][name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_fused_attention_in_bfloat16(autocast):
    """No further from those in float32 than the plain attention's."""
    model, video = small_model(window_size=[4, 5, 5]).train(), clips(2, 6, 40, 36)
    found = {}
    for name, dtype in (("eager", torch.float32), ("eager in bfloat16", torch.bfloat16), ("sdpa", torch.bfloat16)):
        network = copy.deepcopy(model)
        network.set_attn_implementation(name.split()[0])
        if not autocast:
            network.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
            network(video.to(network.dtype)).last_hidden_state.float().square().mean().backward()
        found[name] = torch.cat([each.grad.float().flatten() for each in network.parameters()])
    distance = {name: (each - found["eager"]).norm() for name, each in found.items()}
    assert 0 < distance["sdpa"] < 1.1 * distance["eager in bfloat16"]


def test_training_keeps_no_attention_weights():
    model = small_model(window_size=[4, 6, 6]).train()
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(clips(2, 16, 48, 48)).last_hidden_state.sum().backward()
    num_tokens = 4 * 6 * 6
    squares = [shape for shape in kept if shape[-2:] == (num_tokens, num_tokens)]
    assert squares and all(len(shape) == 3 for shape in squares)  # the bias (heads, N, N), whatever number of windows


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_recomputes_activations(monkeypatch, checkpointing):
    model, video = small_model().train(), clips(2, 6, 40, 36)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    activations: list[weakref.ref] = []
    for module in model.modules():
        if isinstance(module, video_swin.VideoSwinMLP):
            module.act.register_forward_hook(lambda _, arguments, output: activations.append(weakref.ref(output)))
    found = []
    for recomputes in (True, False):
        if not recomputes:
            monkeypatch.setattr(video_swin, "recompute_in_backward", lambda *_: contextlib.nullcontext())
        activations.clear()
        model.zero_grad()
        output = model(video).last_hidden_state
        assert len(activations) == 4
        assert sum(each() is not None for each in activations) == (0 if recomputes or checkpointing else 4)
        output.square().mean().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name])


def test_training_fuses_attention(monkeypatch):
    """In every window, whole or in parts: the other way computes all scores, and takes four times as long."""
    choices, fused = [], torch.nn.functional.scaled_dot_product_attention

    def choose(*arguments, **options):
        choices.append(torch._fused_sdp_choice(*arguments, **options))
        return fused(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", choose)
    model = small_model(window_size=[4, 6, 6]).train()
    model(clips(2, 16, 48, 48)).last_hidden_state.sum().backward()
    assert len(choices) >= 4 and set(choices) == {torch.nn.attention.SDPBackend.FLASH_ATTENTION.value}


@pytest.mark.parametrize("frozen", [None, "fc1", "norm2"])
@pytest.mark.parametrize(("drop_path_rate", "hidden_bytes"), [(0.0, 40_000), (0.5, 40_000), (0.5, 0)])
def test_checkpointing_computes_half_of_the_mlp_again(monkeypatch, drop_path_rate, hidden_bytes, frozen):
    monkeypatch.setattr(cpu_swinbert, "HIDDEN_BYTES", hidden_bytes)
    model, video = small_model(drop_path_rate=drop_path_rate).train(), clips(2, 6, 40, 36)
    second_layers = []
    for block in (block for stage in model.layers for block in stage.blocks):
        block.mlp.fc2.register_forward_hook(lambda _, arguments, output: second_layers.append(len(output)))
        for parameter in [] if frozen is None else getattr({"fc1": block.mlp}.get(frozen, block), frozen).parameters():
            parameter.requires_grad_(False)
    found, rows = [], []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        second_layers.clear()
        torch.manual_seed(0)
        model(video).last_hidden_state.square().mean().backward()
        found.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        rows.append((sum(second_layers), len(second_layers)))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    plain, checkpointed = rows
    if frozen is None and hidden_bytes:  # otherwise the library's checkpoint computes all of it
        assert checkpointed[0] == plain[0] and checkpointed[1] > plain[1]


def test_paths_are_dropped_for_whole_clips(monkeypatch):
    model, video = small_model(depths=[2], num_heads=[2], drop_path_rate=0.5).train(), clips(3, 6, 40, 36)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.tensor([1.0, 0.0, 1.0]).view(shape))
    dropped = model(video).last_hidden_state
    model.layers[0].blocks[1].drop_path_rate = 0.0
    whole = model(video).last_hidden_state
    model.layers[0].blocks = model.layers[0].blocks[:1]  # whose own rate is 0
    torch.testing.assert_close(dropped[1], model(video).last_hidden_state[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dropped[[0, 2]], whole[[0, 2]])  # scaled by 1 / (1 - 0.5)


def change_by_loading(model):
    other = {name: value * 1.5 for name, value in model.state_dict().items()}
    model.load_state_dict(other)


def change_by_a_step(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_unseen(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def change_parameters(model):
    for module in model.modules():
        if isinstance(module, VideoSwinWindowAttention):
            module.relative_position_bias_table = torch.nn.Parameter(module.relative_position_bias_table.data * 1.5)


@pytest.mark.parametrize("change", [change_by_loading, change_by_a_step, change_unseen, change_parameters])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_changed_weights_invalidate_the_cached_bias(change, mode):
    model, video = small_model(), clips(1, 4, 24, 24)
    with mode():
        before = model(video).last_hidden_state
    change(model)
    fresh = small_model()
    fresh.load_state_dict(model.state_dict())
    with mode():
        after, expected = model(video).last_hidden_state, fresh(video).last_hidden_state
    assert torch.equal(after, expected) and not torch.allclose(after, before)
    # A bias cached in one mode serves in the others.
    torch.testing.assert_close(model(video).last_hidden_state, expected.clone(), atol=1e-5, rtol=1e-5)
    model(video).last_hidden_state.sum().backward()


@torch.no_grad()
def test_the_cached_bias_is_not_saved():
    model, video = small_model(), clips(1, 4, 24, 24)
    names, size = set(model.state_dict()), len(pickle.dumps(model))
    expected = model(video).last_hidden_state
    assert set(model.state_dict()) == names and len(pickle.dumps(model)) == size
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(video).last_hidden_state, expected)
    attention = model.layers[0].blocks[0].attn
    assert attention.position_bias(18) is attention.position_bias(18)
    assert model.train() and attention.position_bias(18) is not attention.position_bias(18)
    model.eval()
    # Another shape of clip, another precision, and back.
    large = clips(1, 8, 56, 40)
    torch.testing.assert_close(model(large).last_hidden_state, small_model()(large).last_hidden_state)
    double = model.double()(video.double()).last_hidden_state
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.float()(video).last_hidden_state, expected)


def test_threads_share_a_model():
    model = small_model()
    videos = [clips(1, 4, 24, 24), clips(1, 8, 56, 40), clips(2, 2, 24, 24)]
    with torch.no_grad():
        expected = [small_model()(video).last_hidden_state for video in videos]
    start = threading.Barrier(6)

    def run(number: int) -> torch.Tensor:
        start.wait()
        with torch.inference_mode():
            return [model(videos[number % 3]).last_hidden_state for _ in range(4)][-1]

    with ThreadPoolExecutor(6) as pool:
        for number, found in enumerate(pool.map(run, range(6))):
            torch.testing.assert_close(found.clone(), expected[number % 3], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
def test_compiles_to_one_graph_once(grad):
    model = small_model(depths=[2], num_heads=[2])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad), torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            video = torch.randn(2, 6, 3, 40, 36, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(
                compiled(video).last_hidden_state, model(video).last_hidden_state, atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
def test_exports_with_any_number_of_clips():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_model()

        def forward(self, video):
            return self.model(video).last_hidden_state

    encoder = Encoder()
    program = torch.export.export(
        encoder, (clips(2, 6, 40, 36),), dynamic_shapes={"video": {0: torch.export.Dim.AUTO}}, strict=False
    )
    for batch in (1, 3):
        video = clips(batch, 6, 40, 36)
        torch.testing.assert_close(program.module()(video), encoder(video), atol=1e-5, rtol=1e-5)

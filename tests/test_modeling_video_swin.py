"""The backbone against the original's outputs and against torchvision's Video Swin."""

import pytest
import torch
from golden import arrays, load_recipe, make_clip, pixels, tiny_vision_config
from torchvision.models.video.swin_transformer import SwinTransformer3d

from swinbert import VideoSwinConfig, VideoSwinModel
from swinbert.benchmarks.peers import name_in_torchvision
from swinbert.modeling_video_swin_swinbert import drop_path

CLIPS = {
    "t6_80x72": (103, 6, 80, 72),  # odd patch merging, padded windows, one clipped in time
    "t24_32x48": (104, 24, 32, 48),  # shifted in time, clipped in space
    "t9_50x45": (105, 9, 50, 45),  # padded patches
    "t32_56x28": (106, 32, 56, 28),  # nothing padded
    "t2_32x32": (107, 2, 32, 32),  # one token in time
}


@pytest.fixture(scope="module")
def golden():
    return arrays("tiny_backbone")


@pytest.fixture(scope="module")
def model():
    return load_recipe(VideoSwinModel(tiny_vision_config()), prefix="model.video_encoder.")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("clip", CLIPS)
@torch.no_grad()
def test_equals_the_original(model, golden, clip, attention):
    model.set_attn_implementation(attention)
    outputs = model(pixels(make_clip(*CLIPS[clip])), output_hidden_states=True)
    expected = golden[f"{clip}.out"].flatten(2).transpose(1, 2)  # (B, C, T, H, W) -> (B, N, C)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=0)
    assert len(outputs.reshaped_hidden_states) == 5
    for stage, states in enumerate(outputs.reshaped_hidden_states[1:]):
        if f"{clip}.layer{stage}" in golden:
            torch.testing.assert_close(states, golden[f"{clip}.layer{stage}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(8, 64, 64), (7, 60, 52), (20, 40, 72)])
@torch.no_grad()
def test_equals_torchvision(shape):
    config = VideoSwinConfig(embed_dim=24, depths=[2, 2, 4], num_heads=[2, 3, 4], window_size=[4, 5, 3])
    model = VideoSwinModel(config).eval()
    peer = SwinTransformer3d(
        list(config.patch_size), config.embed_dim, config.depths, config.num_heads, list(config.window_size)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    weights = {name_in_torchvision(name): value for name, value in model.named_parameters()}
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("relative_position_index" in name or name.startswith("head") for name in missing)

    video = torch.randn(2, 3, *shape, generator=generator)  # (B, C, T, H, W)
    expected = peer.norm(peer.features(peer.pos_drop(peer.patch_embed(video)))).flatten(1, 3)
    torch.testing.assert_close(model(video.transpose(1, 2)).last_hidden_state, expected, atol=2e-5, rtol=1e-5)


def test_attention_weights_are_those_of_the_windows(model):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(pixels(make_clip(1, 6, 80, 72)), output_attentions=True)
    assert len(outputs.attentions) == 8
    assert outputs.attentions[0].shape == (9, 1, 3 * 7 * 7, 3 * 7 * 7)  # 3 x 20 x 18 tokens in 9 padded windows
    torch.testing.assert_close(outputs.attentions[1].sum(-1), torch.ones(9, 1, 147))
    # In a shifted window at the border, what the shift brought from the other end has no weight to speak of.
    corner = outputs.attentions[1].view(3, 3, 3, 7, 7, 3, 7, 7)[2, 2]
    assert corner[:, :4, :, :, 4:].max() < 1e-40


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_keeps_gradients(use_reentrant):
    config = tiny_vision_config(depths=[1, 2], num_heads=[1, 2], drop_path_rate=0.0)
    model = VideoSwinModel(config).train()
    video = pixels(make_clip(3, 4, 32, 32)).requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(video).last_hidden_state.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(10_000, 3)
    dropped = drop_path(ones, 0.25, training=True)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (dropped == dropped[:, :1]).all()
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert drop_path(ones, 0.25, training=False) is ones


def test_buffers_survive_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VideoSwinModel.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name))


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (1, 4, 1, 32, 32), (1, 3, 4, 32, 32)])
def test_wrong_layout_says_what_is_expected(model, shape):
    with pytest.raises(ValueError, match="batch, frames, 3 channels, height, width"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("name, hidden_size, tokens", [("tiny", 768, 784), ("large-384", 1536, 2304)])
def test_presets(name, hidden_size, tokens):
    config = VideoSwinConfig.from_preset(name)
    assert config.hidden_size == hidden_size
    assert torch.tensor(config.output_grid).prod() == tokens
    with pytest.raises(ValueError, match="large-384"):
        VideoSwinConfig.from_preset("huge")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_heads": [3, 8, 16, 32]}, "Stage 0 has 128 channels"),
        ({"depths": [2, 2]}, "one entry for each stage"),
        ({"window_size": [8, 7]}, "window_size"),
        ({"num_frames": 0}, "at least one frame"),
    ],
)
def test_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        VideoSwinConfig(**fields)

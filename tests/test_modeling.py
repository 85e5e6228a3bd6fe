"""The fusion encoder, its sparse mask and its losses against the original's outputs and gradients."""

import hashlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from golden import (
    FOLDER,
    PREFIXES,
    TINY,
    arrays,
    load_recipe,
    make_clip,
    pixels,
    rename,
    tiny_model,
    tiny_pixels,
    tiny_text,
)

from swinbert import SparseVideoMask, SwinBertConfig, SwinBertForVideoCaptioning, VideoSwinConfig

SOFT_TOLERANCE = 3e-4  # (1 - M) * -10000 has a granularity of 6e-4 in float32


@pytest.fixture(scope="module")
def golden():
    return arrays("tiny_e2e")


def small_config(**overrides) -> SwinBertConfig:
    return SwinBertConfig(
        **{
            "vision_config": VideoSwinConfig(
                embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=16, num_frames=4, window_size=[2, 2, 2]
            ),
            "projection_dim": 12,
            "vocab_size": 120,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_caption_length": 8,
            **overrides,
        }
    )


def small_batch(clips: int = 2, length: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values_videos": torch.randn(clips, 4, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(4, 100, (clips, length), generator=generator),
    }


def forward(model, case: dict, **kwargs):
    """A reference case. What the clip sees of a context, and what the text sees, differ there."""
    text = tiny_text(case["tensorizer"])
    video = tiny_pixels(case["clip"])
    batch = {name: text[name] for name in ("input_ids", "attention_mask", "labels")}
    context = {}
    if "context_ids" in text:
        context = {
            "context_ids": text["context_ids"],
            "context_attention_mask": text["context_seen_by_video"],
            "context_token_type_ids": text["context_token_type_ids"],
        }
        batch["video_key_values"] = model.encode_video(video, **context).video_key_values
        batch["context_attention_mask"] = text["context_seen_by_text"]
    outputs = model(pixel_values_videos=video, output_hidden_states=True, **batch, **kwargs)
    return outputs, model.encode_video(video, **context, output_hidden_states=True), text


@pytest.mark.parametrize("name", TINY["cases"])
def test_equals_the_original(golden, name):
    case = TINY["cases"][name]
    model = tiny_model(case["clip"], case["mask"], label_smoothing=case["label_smoothing"])
    tolerance = SOFT_TOLERANCE if case["mask"] == "soft" else 2e-5
    outputs, video, text = forward(model, case)

    features = model.get_video_features(tiny_pixels(case["clip"]))
    swin_out = golden[f"{case['clip']}.swin_out"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.last_hidden_state, swin_out, atol=1e-5, rtol=0)
    projected = model.model.projector.linear_1(features.last_hidden_state)
    torch.testing.assert_close(projected, golden[f"{case['clip']}.fc_out"], atol=1e-5, rtol=0)

    masked = text["labels"] != -100
    torch.testing.assert_close(outputs.logits[masked], golden[f"{name}.masked_logits"], atol=tolerance, rtol=0)
    assert outputs.caption_loss.item() == pytest.approx(case["loss"], abs=tolerance)
    if case["mask"] == "none":
        assert outputs.sparsity_loss is None
        assert torch.equal(outputs.loss, outputs.caption_loss)
    else:
        assert outputs.sparsity_loss.item() == pytest.approx(case["loss_sparsity"], abs=1e-6)
        torch.testing.assert_close(outputs.loss, outputs.caption_loss + 0.5 * outputs.sparsity_loss)
    if f"{name}.sequence_output" in golden:
        states, length = golden[f"{name}.sequence_output"], text["input_ids"].shape[1]
        real = golden[f"{name}.valid_rows"].bool()[:, :length]
        of_text, of_video = states[:, :length], states[:, -model.config.num_video_tokens :]
        torch.testing.assert_close(outputs.hidden_states[-1][real], of_text[real], atol=tolerance, rtol=0)
        video_states = video.hidden_states[-1][:, -model.config.num_video_tokens :]
        torch.testing.assert_close(video_states, of_video, atol=tolerance, rtol=0)

    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    for key, expected in golden.items():
        if key.startswith(f"{name}.grad."):
            gradient = parameters[rename(key.removeprefix(f"{name}.grad."), PREFIXES)].grad
            torch.testing.assert_close(gradient.flatten(), expected.flatten(), atol=1e-5, rtol=1e-4)
    norm = math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None))
    assert norm == pytest.approx(case["grad_global_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def base_model():
    return load_recipe(SwinBertForVideoCaptioning(SwinBertConfig(num_frames=8)), tiny=False)


@pytest.mark.slow
@pytest.mark.parametrize("sparse_mask", ["soft", "hard", "none"])
@torch.no_grad()
def test_equals_the_original_at_the_real_size(base_model, sparse_mask):
    """8 frames of 224 x 224 through the base model."""
    golden = json.loads((FOLDER / "base.json").read_text())
    model = base_model
    model.config.sparse_mask = sparse_mask
    if sparse_mask == "none":
        model.model.sparse_mask = None
    clip = make_clip(1234, 8, 224, 224)
    assert hashlib.sha256(clip.numpy().tobytes()).hexdigest() == golden["input"]["sha256_uint8"]

    def check(name: str, values: torch.Tensor, expected: dict, tolerance: float):
        values = values.flatten().float()
        assert values.mean().item() == pytest.approx(expected["mean"], abs=tolerance), name
        assert values.std(unbiased=False).item() == pytest.approx(expected["std"], abs=10 * tolerance), name
        assert values.abs().max().item() == pytest.approx(expected["abs_max"], abs=10 * tolerance), name
        assert values[:16].tolist() == pytest.approx(expected["first16"], abs=10 * tolerance), name
        assert values[-16:].tolist() == pytest.approx(expected["last16"], abs=10 * tolerance), name

    video = pixels(clip)
    backbone = model.model.video_encoder(video, output_hidden_states=True)
    for stage, states in enumerate(backbone.reshaped_hidden_states[1:]):
        check(f"stage {stage}", states, golden[f"swin_layer{stage}"], 1e-5)
    check("fc", model.model.projector.linear_1(backbone.last_hidden_state), golden["fc_out"], 1e-5)

    case = golden[sparse_mask]
    ids, masked = torch.tensor([case["input_ids"]]), case["masked_pos_idx"]
    labels = torch.full_like(ids, -100)
    labels[0, masked] = torch.tensor(case["masked_ids"])
    text_mask = (torch.arange(ids.shape[1]) < case["n_valid_text_rows"]).long()[None]
    outputs = model(
        input_ids=ids,
        attention_mask=text_mask,
        labels=labels,
        pixel_values_videos=video,
        output_hidden_states=True,
    )
    tolerance = 2e-5 if sparse_mask != "soft" else SOFT_TOLERANCE
    check("masked logits", outputs.logits[0, masked], case["masked_logits"], tolerance)
    assert outputs.logits[0, masked].argmax(-1).tolist() == case["masked_argmax"]
    assert outputs.caption_loss.item() == pytest.approx(case["loss"], abs=10 * tolerance)
    rows = case["n_valid_text_rows"]
    check("layer 0", outputs.hidden_states[1][:, :rows], case["bert_layer0"], tolerance)
    check("layer 5", outputs.hidden_states[6][:, :rows], case["bert_layer5"], tolerance)
    check("text", outputs.hidden_states[-1][:, :rows], case["sequence_output_text_valid"], tolerance)
    video_states = model.encode_video(video, output_hidden_states=True).hidden_states[-1]
    check("video", video_states, case["sequence_output_video"], tolerance)
    if sparse_mask != "none":
        assert outputs.sparsity_loss.item() == pytest.approx(case["loss_sparsity"], abs=1e-5)
    if "generate_greedy" in case:
        ids = model.generate(pixel_values_videos=video, max_length=20, forced_eos_token_id=102)
        assert ids.tolist() == case["generate_greedy"]["ids"][0]


def test_default_is_the_released_size():
    with torch.device("meta"):
        model = SwinBertForVideoCaptioning(SwinBertConfig())
    unused_in_the_original = 2_167_040 + 590_592  # image head and pooler
    mask = 784 * 784
    assert model.num_parameters() == 224_309_010 - unused_in_the_original - 196 * 196 + mask


def test_gate_multiplies_attention_weights_and_renormalises():
    config = small_config(sparse_mask_form="gate")
    mask = SparseVideoMask(config)
    torch.nn.init.normal_(mask.weight, std=2.0)
    scores = torch.randn(config.num_video_tokens, config.num_video_tokens)
    values = torch.sigmoid(mask.weight)
    values = values.detach().fill_diagonal_(1.0)
    expected = F.softmax(scores, dim=-1) * values
    expected = expected / expected.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(F.softmax(scores + mask.bias(), dim=-1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["penalty", "gate"])
def test_hard_mask_drops_what_is_below_one_half(form):
    mask = SparseVideoMask(small_config(sparse_mask="hard", sparse_mask_form=form))
    torch.nn.init.normal_(mask.weight)
    with torch.no_grad():
        mask.weight[0, 1] = 0.0  # exactly one half: kept
    kept = (mask.weight >= 0) | torch.eye(len(mask.weight), dtype=torch.bool)
    assert torch.equal(mask.values().bool(), kept)
    weights = F.softmax(mask.bias(), dim=-1)
    assert torch.equal(weights > 0, kept)
    assert torch.equal(mask.live_entries(), kept)


def test_caption_loss_reaches_the_mask_only_where_it_starts_near_one():
    """Under the penalty form at the original's N(0, 1) initialisation, no entry gets a gradient; under ours, all do."""
    model = SwinBertForVideoCaptioning(small_config())
    mask, batch = model.model.sparse_mask, small_batch()
    live = {}
    for mean in (0.0, 6.0):
        torch.manual_seed(1)
        torch.nn.init.normal_(mask.weight, mean=mean)
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).caption_loss.backward()
        off_diagonal = ~torch.eye(len(mask.weight), dtype=torch.bool)
        live[mean] = (mask.weight.grad[off_diagonal] != 0).float().mean().item()
    assert live[0.0] == 0.0
    assert live[6.0] > 0.9
    model = SwinBertForVideoCaptioning(small_config())
    assert model.model.sparse_mask.weight.mean().item() == pytest.approx(6.0, abs=0.2)


def test_captions_of_one_clip_share_it():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch(clips=2)
    texts = torch.randint(4, 100, (6, 5), generator=torch.Generator().manual_seed(2))
    together = model(input_ids=texts, pixel_values_videos=batch["pixel_values_videos"])
    apart = model(input_ids=texts, pixel_values_videos=batch["pixel_values_videos"].repeat_interleave(3, dim=0))
    torch.testing.assert_close(together.logits, apart.logits, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiple"):
        model(input_ids=texts[:5], pixel_values_videos=batch["pixel_values_videos"])


def test_outputs_carry_the_video_features_of_pixels_encoded_in_the_call():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch()
    outputs, features = model(**batch), model.get_video_features(batch["pixel_values_videos"])
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(outputs.video_outputs[name], features[name])
    encoded = model(input_ids=batch["input_ids"], video_key_values=outputs.video_key_values)
    assert encoded.video_outputs is None
    torch.testing.assert_close(encoded.logits, outputs.logits)
    as_tuple = model(**batch, return_dict=False)
    assert len(as_tuple) == len(outputs) and isinstance(as_tuple[list(outputs).index("video_outputs")], tuple)


def test_the_deprecated_name_of_the_cache_is_renamed_with_a_warning():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch()
    expected = model(**batch).logits[:, -1]
    video = model.encode_video(batch["pixel_values_videos"]).video_key_values
    cache = model(input_ids=batch["input_ids"][:, :-1], video_key_values=video).cache
    with pytest.warns(FutureWarning, match="past_key_values.*Use `cache`"):
        outputs = model(input_ids=batch["input_ids"][:, -1:], video_key_values=video, past_key_values=cache)
    torch.testing.assert_close(outputs.logits[:, -1], expected, atol=1e-5, rtol=0)
    assert outputs.past_key_values is outputs.cache is cache


def test_attention_weights_of_texts_that_share_a_clip():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    model.set_attn_implementation("eager")
    batch = small_batch(clips=1)
    texts = torch.randint(4, 100, (3, 5), generator=torch.Generator().manual_seed(2))
    shared = model(input_ids=texts, pixel_values_videos=batch["pixel_values_videos"], output_attentions=True)
    alone = model(input_ids=texts[1:2], pixel_values_videos=batch["pixel_values_videos"], output_attentions=True)
    assert shared.attentions[0].shape == (3, 2, 5, model.config.num_video_tokens + 5)
    torch.testing.assert_close(shared.attentions[1][1:2], alone.attentions[1], atol=1e-6, rtol=0)


def test_video_never_sees_text_and_text_is_causal():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch(clips=1)
    logits = model(**batch).logits
    changed = batch["input_ids"].clone()
    changed[:, 3] += 1
    other = model(input_ids=changed, pixel_values_videos=batch["pixel_values_videos"]).logits
    torch.testing.assert_close(logits[:, :3], other[:, :3], atol=0, rtol=0)
    assert not torch.allclose(logits[:, 3:], other[:, 3:])


def test_padding_and_given_mask_agree():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch()
    short = model(input_ids=batch["input_ids"][:, :4], pixel_values_videos=batch["pixel_values_videos"]).logits
    padded = batch["input_ids"].clone()
    padded[:, 4:] = 0
    mask = torch.ones_like(padded)
    mask[:, 4:] = 0
    by_2d = model(**{**batch, "input_ids": padded}, attention_mask=mask).logits[:, :4]
    torch.testing.assert_close(by_2d, short, atol=1e-5, rtol=0)


def test_causal_lm_predicts_the_next_token():
    model = SwinBertForVideoCaptioning(small_config(objective="causal_lm", sparse_mask="none")).eval()
    batch = small_batch()
    labels = batch["input_ids"].clone()
    labels[:, 5:] = -100
    outputs = model(**batch, labels=labels)
    expected = F.cross_entropy(outputs.logits[:, :4].flatten(0, 1), batch["input_ids"][:, 1:5].flatten())
    torch.testing.assert_close(outputs.loss, expected)


def test_labels_that_are_shifted_already():
    model = SwinBertForVideoCaptioning(small_config(objective="causal_lm", sparse_mask="none")).eval()
    batch = small_batch()
    shifted = F.pad(batch["input_ids"][:, 1:], (0, 1), value=-100)
    expected = model(**batch, labels=batch["input_ids"]).loss
    torch.testing.assert_close(model(**batch, labels=torch.zeros_like(shifted), shift_labels=shifted).loss, expected)


def test_losses_of_micro_batches_add_up():
    """`Trainer` sums micro-batches, each given the number of predicted tokens of the whole step."""
    model = SwinBertForVideoCaptioning(small_config(label_smoothing=0.1)).eval()
    batch = small_batch(clips=4)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 1:3], labels[1, 2:6], labels[2, 1], labels[3, 4] = 5, 6, 7, 8
    whole = model(**batch, labels=labels)
    parts = [
        model(
            **{name: value[i : i + 2] for name, value in batch.items()}, labels=labels[i : i + 2], num_items_in_batch=8
        )
        for i in (0, 2)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.caption_loss for part in parts), whole.caption_loss)


def test_a_batch_without_labels_has_a_finite_loss():
    model = SwinBertForVideoCaptioning(small_config()).eval()
    batch = small_batch()
    outputs = model(**batch, labels=torch.full_like(batch["input_ids"], -100))
    assert outputs.caption_loss == 0
    assert torch.isfinite(outputs.loss)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("form", ["penalty", "gate"])
def test_checkpointing_keeps_gradients(form, use_reentrant):
    config = small_config(sparse_mask_form=form)
    config.vision_config.drop_path_rate = 0.0
    model, batch = SwinBertForVideoCaptioning(config).train(), small_batch()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_saved_model_loads_equal(tmp_path):
    model = SwinBertForVideoCaptioning(small_config()).eval()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = SwinBertForVideoCaptioning.from_pretrained(tmp_path).eval()
    batch = small_batch()
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert loaded.config.vision_config.window_size == [2, 2, 2]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model, batch: model(pixel_values_videos=batch["pixel_values_videos"]), "generate"),
        (
            lambda model, batch: model(**{**batch, "pixel_values_videos": torch.zeros(2, 8, 3, 16, 16)}),
            "sample 4 frames",
        ),
        (
            lambda model, batch: model(input_ids=batch["input_ids"], context_ids=batch["input_ids"]),
            "pixel_values_videos",
        ),
        (lambda model, batch: model(input_ids=torch.zeros(1, 600, dtype=torch.long)), "600 tokens"),
        (
            lambda model, batch: model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values_videos"]),
            "`pixel_values` would not be read",
        ),
    ],
)
def test_wrong_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(SwinBertForVideoCaptioning(small_config()), small_batch())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sparse_mask": "learned"}, "none, soft, hard"),
        ({"sparse_mask_form": "log"}, "penalty, gate"),
        ({"objective": "mlm"}, "masked_lm, causal_lm"),
        ({"num_attention_heads": 7}, "change one of them"),
        ({"num_video_tokens": 99}, "change `num_frames` or `image_size`"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mask_token_id": None}, r"\[MASK\]"),
    ],
)
def test_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


def test_configuration_survives_json(tmp_path):
    config = small_config(objective="causal_lm", sparse_mask="hard", sparse_mask_form="gate")
    config.save_pretrained(tmp_path)
    assert SwinBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert SwinBertConfig.from_pretrained(tmp_path, num_frames=8).num_video_tokens == 2 * config.num_video_tokens
    assert SwinBertConfig(num_frames=64).num_video_tokens == 1568

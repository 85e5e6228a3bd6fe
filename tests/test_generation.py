"""Captions against the original's, and every mode of `generate` against recomputing the whole sequence."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden import TINY, tiny_model, tiny_pixels, tiny_text
from test_modeling import small_batch, small_config
from torch._dynamo.testing import CompileCounter
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from swinbert import SwinBertForVideoCaptioning

VARIANTS = [
    {},
    {"sparse_mask_form": "gate"},
    {"sparse_mask": "hard"},
    {"sparse_mask": "none", "objective": "causal_lm"},
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    torch.manual_seed(0)
    model = SwinBertForVideoCaptioning(small_config(**request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from a uniform distribution, so that tokens differ
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture
def clips():
    return small_batch()["pixel_values_videos"]


@torch.no_grad()
def recompute(model, video, ids) -> torch.Tensor:
    """Next-token log-probabilities (B, V) from the whole sequence, with a `[MASK]` at its end for a masked model."""
    if model.config.objective == "masked_lm":
        ids = torch.cat([ids, torch.full((len(ids), 1), model.config.mask_token_id)], dim=1)
    return model(input_ids=ids, pixel_values_videos=video, use_cache=False).logits[:, -1].log_softmax(-1)


@torch.no_grad()
def greedy_by_recomputation(model, video, steps: int) -> torch.Tensor:
    ids = torch.full((len(video), 1), model.config.bos_token_id)
    for _ in range(steps):
        ids = torch.cat([ids, recompute(model, video, ids).argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("name", TINY["generation"])
def test_equals_the_original(name):
    case = TINY["generation"][name]
    model, video, wanted = tiny_model(case["clip"], case["mask"]), tiny_pixels(case["clip"]), case["overrides"]
    inputs = {"pixel_values_videos": video}
    if "textb" in case["tensorizer"]:
        text = tiny_text(case["tensorizer"])
        encoded = model.encode_video(
            video,
            context_ids=text["context_ids"],
            context_attention_mask=text["context_seen_by_video"],
            context_token_type_ids=text["context_token_type_ids"],
        )
        inputs = {
            "video_key_values": encoded.video_key_values,
            "context_attention_mask": text["context_seen_by_text"],
        }
    outputs = model.generate(
        **inputs,
        max_length=20,
        forced_eos_token_id=102,
        num_beams=wanted.get("num_beams", 1),
        num_return_sequences=wanted.get("num_keep_best", 1),
        length_penalty=float(wanted.get("length_penalty", 1.0)),
        repetition_penalty=float(wanted.get("repetition_penalty", 1.0)),
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = torch.tensor(case["ids"]).flatten(0, 1)
    ids = torch.nn.functional.pad(outputs.sequences, (0, expected.shape[1] - outputs.sequences.shape[1]))
    assert ids.tolist() == expected.tolist()
    if "num_beams" in wanted:
        scores = torch.tensor(case["logprobs"]).flatten()
        torch.testing.assert_close(outputs.sequences_scores, scores, atol=2e-5, rtol=0)


def test_greedy_equals_recomputation(model, clips):
    expected = greedy_by_recomputation(model, clips, 12)
    assert len(expected.unique()) > 3
    generated = model.generate(pixel_values_videos=clips, max_length=13, eos_token_id=None)
    assert torch.equal(generated, expected)
    for options in ({"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}):
        batch = clips[:1] if "prompt_lookup_num_tokens" in options else clips
        again = model.generate(pixel_values_videos=batch, max_length=13, eos_token_id=None, **options)
        assert torch.equal(again, expected[: len(batch)]), options


def test_beams_equal_recomputation(model, clips):
    """A plain beam search over whole sequences."""
    beams, steps = 3, 5
    outputs = model.generate(
        pixel_values_videos=clips[:1],
        num_beams=beams,
        num_return_sequences=beams,
        max_length=steps + 1,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids, scores = torch.full((1, 1), model.config.bos_token_id), torch.zeros(1)
    for _ in range(steps):
        totals = (scores[:, None] + recompute(model, clips[:1], ids)).flatten()
        scores, best = totals.topk(beams)
        vocabulary = model.config.vocab_size
        ids = torch.cat([ids[best // vocabulary], (best % vocabulary)[:, None]], dim=1)
    assert torch.equal(outputs.sequences, ids)
    torch.testing.assert_close(outputs.sequences_scores, scores / steps, atol=1e-5, rtol=0)


def test_sampling_draws_from_the_model(model, clips):
    torch.manual_seed(0)
    outputs = model.generate(
        pixel_values_videos=clips,
        do_sample=True,
        num_return_sequences=3,
        max_length=6,
        eos_token_id=None,
        top_k=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert outputs.sequences.shape == (6, 6)
    assert len({tuple(row) for row in outputs.sequences.tolist()}) > 2
    for step, logits in enumerate(outputs.logits):
        prefix = outputs.sequences[:, : step + 1]
        expected = recompute(model, clips.repeat_interleave(3, dim=0), prefix)
        torch.testing.assert_close(logits.log_softmax(-1), expected, atol=2e-5, rtol=0)


def test_a_prompt_is_continued(model, clips):
    prompt = torch.tensor([[101, 7, 8], [101, 9, 4]])
    outputs = model.generate(
        input_ids=prompt,
        pixel_values_videos=clips,
        max_new_tokens=3,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(outputs.sequences[:, :3], prompt)
    torch.testing.assert_close(outputs.logits[0].log_softmax(-1), recompute(model, clips, prompt), atol=2e-5, rtol=0)


def test_a_clip_is_encoded_once_and_no_mask_stays_in_the_cache(model, clips):
    calls = []
    model.model.video_encoder.register_forward_hook(lambda *_: calls.append(1))
    outputs = model.generate(
        pixel_values_videos=clips, num_beams=2, max_length=8, eos_token_id=None, return_dict_in_generate=True
    )
    assert len(calls) == 1
    assert outputs.cache.get_seq_length() == outputs.sequences.shape[1] - 1
    key, _ = outputs.cache.video_key_values[0]
    assert key.shape[0] == len(clips)  # not once for each beam


def test_a_caption_continues_from_its_cache(model, clips):
    options = {"eos_token_id": None, "return_dict_in_generate": True}
    whole = model.generate(pixel_values_videos=clips, max_new_tokens=6, **options).sequences
    first = model.generate(pixel_values_videos=clips, max_new_tokens=3, **options)
    rest = model.generate(input_ids=first.sequences, cache=first.cache, max_new_tokens=3, **options)
    assert torch.equal(rest.sequences, whole)


def test_encoded_clips_can_be_reused(model, clips):
    expected = model.generate(pixel_values_videos=clips, max_length=8)
    encoded = model.encode_video(clips)
    assert torch.equal(model.generate(video_key_values=encoded.video_key_values, max_length=8), expected)
    assert torch.equal(model.generate(clips, max_length=8), expected)


def test_context_changes_the_caption_and_its_padding_does_not(model, clips):
    context = torch.tensor([[11, 12, 13], [14, 15, 16]])
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(pixel_values_videos=clips, **options).logits[0]
    told = model.generate(pixel_values_videos=clips, context_ids=context, **options).logits[0]
    padded = model.generate(
        pixel_values_videos=clips,
        context_ids=torch.nn.functional.pad(context, (0, 2)),
        context_attention_mask=torch.tensor([[1, 1, 1, 0, 0]] * 2),
        num_beams=1,
        **options,
    ).logits[0]
    assert not torch.allclose(plain, told, atol=1e-3)
    torch.testing.assert_close(told, padded, atol=2e-5, rtol=0)


def test_processors_criteria_and_streamers(model, clips):
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    def never_seven(ids, scores):
        return scores.index_fill(1, torch.tensor([7]), -torch.inf)

    streamer = Collect()
    ids = model.generate(
        pixel_values_videos=clips[:1],
        max_length=10,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([never_seven]),
        stopping_criteria=StoppingCriteriaList([lambda ids, scores: torch.full((len(ids),), ids.shape[1] >= 5)]),
        streamer=streamer,
    )
    assert ids.shape[1] == 5
    assert streamer.tokens == ids[0].tolist() and streamer.ended
    assert 7 not in ids


def test_two_threads_generate_at_once(model):
    videos = [torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    expected = [model.generate(pixel_values_videos=video, max_length=10, num_beams=2) for video in videos]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda video: model.generate(pixel_values_videos=video, max_length=10, num_beams=2), videos)
        )
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_step_compiles_to_one_graph_for_all_lengths(model, clips):
    """With a static cache, whose tensors a first graph makes; and the encoder and the prefix to one more."""
    options = {"max_length": 13, "eos_token_id": None, "cache_implementation": "static"}
    expected = model.generate(pixel_values_videos=clips, **options)
    torch._dynamo.reset()
    of_step, of_prefix = CompileCounter(), CompileCounter()
    encode = torch.compile(model.encode_video, backend=of_prefix, fullgraph=True)
    encoded = encode(clips).video_key_values
    model.forward = torch.compile(model.forward, backend=of_step, fullgraph=True)
    assert torch.equal(model.generate(video_key_values=encoded, **options), expected)
    assert (of_prefix.frame_count, of_step.frame_count) == (1, 2)


def test_pixels_and_features_together_are_refused(model, clips):
    features = {"video": model.get_video_features(clips)}
    expected = model.generate(pixel_values_videos=clips, max_length=6)
    assert torch.equal(model.generate(mm_encoder_outputs=features, max_length=6), expected)
    with pytest.raises(ValueError, match="cannot pass both"):
        model.generate(pixel_values_videos=clips, mm_encoder_outputs={"video": model.get_video_features(clips)})

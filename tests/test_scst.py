"""Self-critical training: log-probabilities of samples, rewards, the gradient, a run."""

import golden
import numpy as np
import pytest
import torch

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning
from swinbert.processing import SwinBertProcessor, SwinBertVideoProcessor
from swinbert.training.arguments import SwinBertTrainingArguments
from swinbert.training.data.collators import CaptionCollator
from swinbert.training.scst import CaptionReward, SelfCriticalTrainer, self_critical_loss, sequence_log_probs
from swinbert.training.tokenization import build_tokenizer


@pytest.mark.parametrize(("sparse_mask", "objective"), [("soft", "masked_lm"), ("none", "causal_lm")])
def test_log_probs_are_those_of_generation(sparse_mask, objective):
    """Captions of several lengths: some end with [SEP], some are truncated."""
    model, clips = golden.tiny_model("e8", sparse_mask, objective=objective), golden.tiny_pixels("e8")
    torch.manual_seed(0)
    free = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_length": 12}
    out = model.generate(clips, **free, output_scores=True, return_dict_in_generate=True)
    ended = (out.sequences == 102).any(dim=1)
    assert 0 < ended.sum() < len(ended)
    expected = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    past_end = (out.sequences[:, :-1] == 102).cumsum(dim=1) > 0
    found = sequence_log_probs(model, out.sequences, 102, pixel_values_videos=clips)
    torch.testing.assert_close(found, expected.masked_fill(past_end, 0.0), atol=3e-4, rtol=0)
    found.sum().backward()
    assert all(p.grad is not None for p in model.model.video_encoder.parameters())


def test_a_step_makes_captions_likelier_by_their_advantage():
    model, clips = golden.tiny_model("e8", "none"), golden.tiny_pixels("e8")
    ids = torch.tensor([[101, 7, 8, 9, 102], [101, 11, 12, 102, 0], [101, 14, 15, 16, 17]])
    advantage = torch.tensor([0.5, -0.5, 0.0])
    before = sequence_log_probs(model, ids, 102, pixel_values_videos=clips)
    assert before[1, 3] == 0 and (before[:, 0] < 0).all()
    loss = self_critical_loss(before, advantage)
    assert loss.item() == pytest.approx(-(0.5 * before[0].sum() - 0.5 * before[1].sum()).item() / 3, abs=1e-6)
    loss.backward()
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter -= 1e-2 * parameter.grad
        after = sequence_log_probs(model, ids, 102, pixel_values_videos=clips)
    assert after[0].sum() > before[0].sum() and after[1].sum() < before[1].sum()


def test_reward_is_cider_d_and_counts_the_end():
    reward = CaptionReward([["a red ball rolls", "the red ball rolls away"], ["a dog sleeps"], ["two cats play"]])
    captions = ["a red ball rolls", "a red ball rolls", "a dog sleeps", "A red ball, rolls."]
    right, cut, wrong, spelt = reward(captions, [True, False, True, True], [0, 0, 0, 0]).tolist()
    assert right > cut > wrong
    assert spelt == pytest.approx(right)


# The captions of each clip: the model is pretrained on both, and rewarded for the first.
CAPTIONS = [
    ["a red ball rolls", "there it goes"],
    ["a blue box falls", "there it lies"],
    ["the green dog runs", "there it plays"],
]


class ColouredClips(torch.utils.data.Dataset):
    """Clips of one colour."""

    def __len__(self):
        return len(CAPTIONS)

    def __getitem__(self, index):
        frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
        frames[..., index] = 255
        return {"frames": frames, "captions": CAPTIONS[index], "index": index, "seed": (0, 0, index)}


@pytest.fixture
def make_trainer(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(caption for captions in CAPTIONS for caption in captions)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = SwinBertProcessor(SwinBertVideoProcessor(num_frames=2, **size), tokenizer)
    vision = {"num_frames": 2, "image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
    config = SwinBertConfig(
        vision_config={**vision, "drop_path_rate": 0.0, "patch_size": [2, 8, 8]},
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "projection_dim": 32},
        **{"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4},
        **{"sparse_mask": "none", "initializer_range": 0.1},
    )
    model = SwinBertForVideoCaptioning(config)
    model.generation_config.max_length = 8

    def make(max_steps, captions_per_clip):
        arguments = SwinBertTrainingArguments(
            **{"output_dir": str(tmp_path), "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
            **{"backbone_lr_factor": 1.0, "weight_decay": 0.0, "per_device_train_batch_size": 3, "logging_steps": 1},
            **{"max_steps": max_steps, "learning_rate": 2e-3},
        )
        return SelfCriticalTrainer(
            model=model,
            args=arguments,
            data_collator=CaptionCollator(processor, captions_per_clip=captions_per_clip),
            train_dataset=ColouredClips(),
            processing_class=processor,
            references=[captions[:1] for captions in CAPTIONS],
        )

    return make


def pretrain(trainer, steps):
    """Trains the model on both captions of every clip."""
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1e-2)
    for epoch in range(steps):
        examples = [{**ColouredClips()[index], "seed": (0, epoch, index)} for index in range(len(CAPTIONS))]
        batch = trainer.data_collator(examples)
        del batch["index"]
        optimizer.zero_grad()
        trainer.model(**batch).loss.backward()
        optimizer.step()


def test_reward_rises(make_trainer):
    trainer = make_trainer(max_steps=20, captions_per_clip=8)
    pretrain(trainer, 60)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    greedy = [row["greedy_reward"] for row in trainer.state.log_history if "reward" in row]
    assert np.mean(rewards[-4:]) > 1.3 * np.mean(rewards[:4])
    assert np.mean(greedy[-4:]) >= np.mean(greedy[:4])


def test_a_step_weighs_each_sample_by_its_advantage(make_trainer, monkeypatch):
    """Two samples of each clip, with the greedy caption of their own clip as baseline."""
    trainer = make_trainer(max_steps=1, captions_per_clip=2)
    batch = trainer.data_collator([ColouredClips()[index] for index in range(2)])
    sampled = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 8, 3]])
    rewards = {"sampled": torch.tensor([1.0, 0.5, 0.25, 2.0]), "greedy": torch.tensor([0.5, 1.0])}
    monkeypatch.setattr(trainer, "_generate", lambda model, pixels: (sampled, sampled[:2]))
    monkeypatch.setattr(trainer, "_reward_of", lambda ids, clips: rewards["sampled" if len(ids) == 4 else "greedy"])
    model = trainer.model.train()
    loss = trainer.compute_loss(model, batch)
    log_probs = sequence_log_probs(model, sampled, 3, pixel_values_videos=batch["pixel_values_videos"]).sum(dim=1)
    torch.testing.assert_close(loss, -(torch.tensor([0.5, 0.0, -0.75, 1.0]) * log_probs).mean())
    assert batch["index"].tolist() == [0, 1] and not model.config.hidden_dropout_prob

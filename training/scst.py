"""Self-critical sequence training (arXiv:1612.00563): the model is trained on sampled captions, rewarded by CIDEr-D.

The gradient of the expected reward is estimated by (r(w) - r(w')) * grad log p(w) of a sampled caption w, with the
greedy caption w' as baseline: captions better than the greedy one become likelier, worse ones less likely.
"""

from collections.abc import Sequence
from typing import Any

import torch

from swinbert.training.metrics import CiderD, ptb_tokenize
from swinbert.training.trainer import VideoCaptioningTrainer

# Counts as a word of complete captions, so that a caption that was cut off has a lower reward.
_END = " <end>"


def sequence_log_probs(model: Any, ids: torch.Tensor, eos_token_id: int, **clips: Any) -> torch.Tensor:
    """
    Log-probabilities of the tokens of captions, in one differentiable forward pass; equal to the scores of `generate`.

    Each token is an input once, and the next token is predicted from it and the tokens before; under `masked_lm` at a
    `[MASK]` in the next token's place, which attends to the tokens before it.

    Args:
        ids: (B, L) captions, from `[CLS]` on; tokens after an end token are ignored.
        clips: `pixel_values_videos` or `video_key_values`.

    Returns:
        (B, L - 1) float32, of the second token and later ones; 0 after an end token.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = model(input_ids=inputs, predict_next=True, use_cache=False, **clips).logits
    log_probs = torch.log_softmax(logits.float(), dim=-1).gather(2, targets[..., None]).squeeze(2)
    return log_probs * ((inputs == eos_token_id).cumsum(dim=1) == 0)


class CaptionReward:
    """
    CIDEr-D of captions, with the document frequencies of all training captions.

    Args:
        references: the captions of each clip, in the order of the clips.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        tokenised = iter(ptb_tokenize(caption for captions in references for caption in captions))
        self._cider = CiderD(
            {str(number): [next(tokenised) + _END for _ in captions] for number, captions in enumerate(references)}
        )

    def __call__(self, captions: Sequence[str], ended: Sequence[bool], clips: Sequence[int]) -> torch.Tensor:
        """
        Args:
            captions: B generated captions.
            ended: which of them end with `[SEP]`.
            clips: the index of the clip of each.

        Returns:
            (B,) rewards.
        """
        words = ptb_tokenize(captions)
        words = [text + _END if end else text for text, end in zip(words, ended, strict=True)]
        return torch.tensor(self._cider(words, [str(clip) for clip in clips]))


class SelfCriticalTrainer(VideoCaptioningTrainer):
    """
    Trains on captions that the model samples, `captions_per_clip` (of the collator) for each clip; evaluates as
    [`VideoCaptioningTrainer`].

    Args:
        references: the captions of each training clip, in the order of the clips.
    """

    def __init__(self, *args: Any, references: Sequence[Sequence[str]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reward = CaptionReward(references)
        self.captions_per_clip: int = self.data_collator.captions_per_clip
        # The loss is a mean over captions: `Trainer` must not divide it by the number of tokens.
        self.model_accepts_loss_kwargs = False
        self._rewards: list[tuple[float, float]] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        pixels, clips = inputs["pixel_values_videos"], inputs["index"].tolist()
        captioner = self.captioner(model)
        sampled, greedy = self._generate(captioner, pixels)
        clips_of_samples = [clip for clip in clips for _ in range(self.captions_per_clip)]
        reward = self._reward_of(sampled, clips_of_samples)
        baseline = self._reward_of(greedy, clips)
        advantage = reward - baseline.repeat_interleave(self.captions_per_clip)

        log_probs = sequence_log_probs(model, sampled, captioner.config.eos_token_id, pixel_values_videos=pixels)
        loss = self_critical_loss(log_probs, advantage.to(log_probs))
        self._stop_unless_finite(loss, model)
        self._rewards.append((reward.mean().item(), baseline.mean().item()))
        if captioner.model.sparse_mask is not None:
            loss = loss + captioner.config.sparsity_loss_weight * captioner.model.sparse_mask.sparsity_loss()
        return (loss, {"loss": loss}) if return_outputs else loss

    @torch.no_grad()
    def _generate(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled (V * captions_per_clip, L) and greedy (V, L') captions; clips are encoded once for both."""
        model.eval()
        try:
            encoded = model.encode_video(pixels).video_key_values
            # The policy gradient needs samples of the full distribution, without a forced end token.
            common = {"num_beams": 1, "forced_eos_token_id": None, "video_key_values": encoded}
            sampled = model.generate(
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                num_return_sequences=self.captions_per_clip,
                **common,
            )
            return sampled, model.generate(do_sample=False, **common)
        finally:
            model.train()

    def _reward_of(self, ids: torch.Tensor, clips: Sequence[int]) -> torch.Tensor:
        ended = (ids == self.processing_class.tokenizer.sep_token_id).any(dim=1).tolist()
        return self.reward(self.processing_class.batch_decode(ids, skip_special_tokens=True), ended, clips)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean rewards of the sampled and of the greedy captions."""
        if self._rewards and "loss" in logs:
            for name, column in zip(("reward", "greedy_reward"), zip(*self._rewards, strict=True), strict=True):
                logs[name] = round(sum(column) / len(column), 4)
            self._rewards.clear()
        super().log(logs, start_time)


def self_critical_loss(log_probs: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Mean of -(r(w) - r(w')) * log p(w) over captions, from log-probabilities (B, L) of tokens and advantages (B,)."""
    return -(advantage.detach() * log_probs.sum(dim=1)).mean()

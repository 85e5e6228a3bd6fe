"""Chat models that watch videos (SmolVLM2, Qwen-VL, InternVL, LLaVA-OneVision...): transformers' image-text-to-text
models whose processor has a chat template with videos.

The model is asked one question about each clip, and its answer is the caption.

Shapes: B clips, T frames, C channels, H and W pixels, L tokens.
"""

import hashlib
import threading
from typing import Any

import torch
from torch.nn.functional import pad

from swinbert.captioning.families.sampler import frame_sampler
from swinbert.processing.clip_reading_swinbert import CaptionerFamily, concatenate
from swinbert.processing.video_sources_swinbert import is_encoded_source
from swinbert.processing.video_timeline_swinbert import VideoMetadata

DEFAULT_PROMPT = "Describe in one plain sentence what happens in this video."
NUM_FRAMES = 16
MAX_NEW_TOKENS = 64
# Of frames that come without a rate: what the processors of transformers assume.
DEFAULT_FPS = 24.0

# Fast tokenizers are changed by a call: two threads must not use one at the same time.
_PROCESSOR_LOCK = threading.Lock()


def has_video_chat(processor: Any) -> bool:
    """Whether a processor has a chat template, and reads videos."""
    return bool(getattr(processor, "chat_template", None)) and getattr(processor, "video_processor", None) is not None


class ChatFamily(CaptionerFamily):
    """
    Frames are sampled by our video processor, uniformly over the clip, and never a second time by the model's own. The
    model's processor turns them, with the times at which they are shown, and the prompt into model inputs.
    """

    video_backend = "auto"
    frame_sampling = "uniform"
    num_frames = NUM_FRAMES
    prompt = DEFAULT_PROMPT

    def __init__(self, config: Any, processor: Any):
        self._processor = processor
        self._sampler = frame_sampler(self.num_frames, self.frame_sampling)
        tokenizer = processor.tokenizer
        self._pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # A caption should not change from call to call: without sampling, whatever the model's own configuration says.
        self.generation = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": self._pad_token_id}
        video_token = getattr(processor, "video_token", None)
        if video_token is not None and video_token not in self._conversation(self.prompt):
            raise ValueError(f"The chat template of this {type(processor).__name__} has no place for a video.")

    def check_num_frames(self, num_frames: int) -> None:
        """Any number will do; only memory sets a limit."""

    def check_fps(self) -> None:
        """Any rate will do."""

    def read(self, video: Any, prompt: str | None = None, **sampling: Any) -> dict[str, Any]:
        """The outputs of the model's processor for one clip and the prompt: `input_ids` (1, L), pixels, and others."""
        # Files are uint8 already; of arrays the values may have to be scaled.
        scaling = {"do_rescale": False} if is_encoded_source(video) else {}
        clip = self._sampler(video, return_tensors="pt", return_metadata=True, **scaling, **sampling)
        frames = clip.pixel_values_videos[0].round().to(torch.uint8)
        metadata = _of_range(clip.video_metadata[0], sampling.get("start"), sampling.get("end"))
        text = self._conversation(self.prompt if prompt is None else prompt)
        with _PROCESSOR_LOCK:
            inputs = self._processor(
                text=[text],
                videos=[frames],
                video_metadata=[metadata],
                do_sample_frames=False,
                return_tensors="pt",
                **self._processor_options(text),
            )
        tensors = {name: _as_tensor(value) for name, value in inputs.items()}
        return {**tensors, "video_metadata": clip.video_metadata}

    def _conversation(self, prompt: str) -> str:
        """The video and the prompt as the user's turn, up to where the answer begins."""
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        return str(self._processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))

    def _processor_options(self, text: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        bos = self._processor.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            options["add_special_tokens"] = False
        if getattr(self._processor.video_processor, "cap_pixels_per_frame", False) is None:
            # Qwen's processors warn until one is chosen; this is what the models were trained with.
            options["cap_pixels_per_frame"] = True
        return options

    def collate(self, clips: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pads texts on the left, where answers do not follow, and videos of fewer frames with empty frames."""
        length = max(clip["input_ids"].shape[1] for clip in clips)
        frames = max((_num_frames(clip) for clip in clips), default=0)
        padded = []
        for clip in clips:
            missing = length - clip["input_ids"].shape[1]
            inputs = {}
            for name, value in clip.items():
                if value.shape == clip["input_ids"].shape and not name.startswith("pixel"):
                    value = pad(value, (missing, 0), value=self._pad_token_id if name == "input_ids" else 0)
                elif name in ("pixel_values", "pixel_attention_mask") and "pixel_attention_mask" in clip:
                    # SmolVLM's: it drops empty frames.
                    value = pad(value, (0, 0) * (value.ndim - 2) + (0, frames - value.shape[1]))
                inputs[name] = value
            padded.append(inputs)
        return concatenate(padded)

    def generation_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`max_length` and `min_length` would count the prompt and the frames."""
        names = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
        return {names.get(name, name): value for name, value in arguments.items()}

    def captions(self, sequences: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The answers, which follow the prompt."""
        return sequences[:, inputs["input_ids"].shape[1] :]

    def settings(self, prompt: str | None) -> dict[str, Any]:
        conversation = self._conversation(self.prompt if prompt is None else prompt)
        digest = hashlib.sha256(conversation.encode()).hexdigest()
        return {**super().settings(prompt), "conversation_sha256": digest}


def _num_frames(clip: dict[str, torch.Tensor]) -> int:
    """T of a clip whose pixels have an axis of frames."""
    return clip["pixel_values"].shape[1] if "pixel_attention_mask" in clip else 0


def _of_range(metadata: VideoMetadata, start: float | None, end: float | None) -> VideoMetadata:
    """Metadata of the part of a video that was asked for: the model shall take it for a video of its own."""
    fps = metadata.fps or DEFAULT_FPS
    times = metadata.frame_times or [index / fps for index in metadata.frames_indices or ()]
    begin = start or 0.0
    whole = metadata.duration if metadata.duration is not None else metadata.total_num_frames / fps
    duration = max(min(whole, whole if end is None else end) - begin, 1 / fps)
    times = [max(0.0, time - begin) for time in times]
    return VideoMetadata(
        total_num_frames=max(1, round(duration * fps)),
        fps=fps,
        width=metadata.width,
        height=metadata.height,
        duration=duration,
        video_backend=metadata.video_backend,
        frames_indices=[round(time * fps) for time in times],
        frame_times=times,
    )


def _as_tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


__all__ = ["ChatFamily", "has_video_chat"]

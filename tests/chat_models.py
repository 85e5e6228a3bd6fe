"""Tiny chat models with random weights, in the layout that their published checkpoints have, for tests of captioning.

Every folder holds `config.json`, `model.safetensors`, `generation_config.json`, the files of a tokenizer, a chat
template, and the settings of the image and the video processor in files of their own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

PROMPTS = "Describe in one plain sentence what happens this video . How many dogs are there ?".split()
TEXT = "User user Assistant assistant : system You are provided the following series of frames from a Frame".split()
NUMBERS = [f"{number:02d}" for number in range(60)]
ANSWERS = [f"{noun}{number}" for noun in ("dog", "man", "ball", "car", "runs", "red", "left") for number in range(12)]
PAD, EOS = 0, 3
CHATML = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Sizes that weights of 4 bits, which come in blocks of 64, can have too.
TEXT_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    # Large enough that captions depend on the clip and most end before the length limit.
    "initializer_range": 0.25,
}


def _template(turn: str, video: str, end: str, answer: str) -> str:
    """A chat template: what stands for the role of a turn, for a video, at the end of a turn, before the answer."""
    parts = f"{{% if part['type'] == 'video' %}}{video}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    return (
        f"{{% for message in messages %}}{turn}{{% for part in message['content'] %}}{parts}{{% endfor %}}{end}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def _tokenizer(end_of_turn: str, special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Splits at spaces; each word of the prompts and of the answers is one token."""
    words = dict.fromkeys(["<pad>", "<unk>", "<s>", end_of_turn, *special, *PROMPTS, *TEXT, *NUMBERS, *ANSWERS])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word) for word in ("<pad>", "<unk>", "<s>", end_of_turn, *special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=end_of_turn,
        extra_special_tokens=named,
        # As some published ones do, which must not matter.
        padding_side="right",
    )


def _write(folder: Path, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        # Answers end now and then, and hold no special tokens, which could stand for frames.
        head[EOS] *= 2
        head[[number for number in processor.tokenizer.added_tokens_decoder if number != EOS]] = 0
    model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    for name, file in (("image_processor", "preprocessor_config"), ("video_processor", "video_preprocessor_config")):
        (folder / f"{file}.json").write_text(json.dumps(settings.pop(name)))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def write_qwen(folder: Path) -> Path:
    """Qwen2.5-VL: patches of all clips in one tensor, positions from the seconds between frames."""
    tokenizer = _tokenizer("<|im_end|>", CHATML, image_token="<|image_pad|>", video_token="<|video_pad|>")
    image, video, start, end = tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT_MODEL,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "bos_token_id": 2,
            "eos_token_id": EOS,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}}
    turn = "<|im_start|>{{ message['role'] }}\n"
    template = _template(turn, "<|vision_start|><|video_pad|><|vision_end|>", "<|im_end|>\n", "<|im_start|>assistant\n")
    images, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    return _write(folder, config, Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template))


def write_qwen3(folder: Path) -> Path:
    """Qwen3-VL: as Qwen2.5-VL, but the seconds of every pair of frames stand in the text."""
    tokenizer = _tokenizer("<|im_end|>", CHATML, image_token="<|image_pad|>", video_token="<|video_pad|>")
    image, video, start, end = tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    config = Qwen3VLConfig(
        text_config={
            **TEXT_MODEL,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
            "bos_token_id": 2,
            "eos_token_id": EOS,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.5,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32})
    videos = Qwen3VLVideoProcessor(patch_size=8, size={"shortest_edge": 16 * 16 * 16, "longest_edge": 16 * 32 * 32})
    turn = "<|im_start|>{{ message['role'] }}\n"
    template = _template(turn, "<|vision_start|><|video_pad|><|vision_end|>", "<|im_end|>\n", "<|im_start|>assistant\n")
    return _write(folder, config, Qwen3VLProcessor(images, tokenizer, videos, chat_template=template))


def write_smolvlm(folder: Path) -> Path:
    """SmolVLM2: frames in `pixel_values`, and the time of every frame in words."""
    special = ["<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>", "<video>"]
    tokenizer = _tokenizer(
        special[0],
        ["<|im_start|>", *special[1:]],
        image_token="<image>",
        video_token="<video>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    config = SmolVLMConfig(
        text_config={**TEXT_MODEL, "vocab_size": len(tokenizer), "model_type": "llama", "pad_token_id": PAD},
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    videos = SmolVLMVideoProcessor(
        size={"longest_edge": 32},
        max_image_size={"longest_edge": 32},
        num_frames=64,
        fps=1,
        do_sample_frames=True,
    )
    template = _template("{{ message['role'] | capitalize }}: ", "<video>", "<end_of_utterance>\n", "Assistant:")
    processor = SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=template)
    return _write(folder, config, processor)


def write_internvl(folder: Path) -> Path:
    """InternVL: frames of all clips in one `pixel_values`, a line of text for each frame."""
    special = ["<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokenizer = _tokenizer(
        "<|im_end|>",
        special,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        text_config={**TEXT_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
            "initializer_range": 0.2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    template = _template("<|im_start|>{{ message['role'] }}\n", "<video>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )
    return _write(folder, config, processor)


def write_llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: clips in `pixel_values_videos` with an axis for the clip."""
    tokenizer = _tokenizer("<|im_end|>", ["<|im_start|>", "<image>", "<video>"])
    config = LlavaOnevisionConfig(
        text_config={**TEXT_MODEL, "vocab_size": len(tokenizer), "model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32]],
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    template = _template("<|im_start|>{{ message['role'] }} ", "<video>\n", "<|im_end|>", "<|im_start|>assistant\n")
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[32, 32]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    return _write(folder, config, processor)


WRITERS = {
    "qwen2_5_vl": write_qwen,
    "qwen3_vl": write_qwen3,
    "smolvlm": write_smolvlm,
    "internvl": write_internvl,
    "llava_onevision": write_llava_onevision,
}

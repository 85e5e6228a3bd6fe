"""Short clips, and a tiny GIT model with random weights in the published layout, for tests of captioning."""

import json
from pathlib import Path

import av
import numpy as np
import torch
from transformers import BertTokenizer, GitConfig, GitForCausalLM

WORDS = "a the man woman dog car is are runs turns and then on in left right red blue ball grass . ##s ##ing".split()
# [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102 and [MASK] 103, as in bert-base-uncased.
VOCABULARY = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def write_clip(path: Path, seed: int) -> Path:
    """Writes 25 frames of 72 x 48 at 10 frames per second: noise in blocks so large that encoding preserves them."""
    grain = np.random.default_rng(seed).integers(0, 256, (25, 6, 9, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 72, 48, "yuv420p"
        for picture in grain.repeat(8, 1).repeat(8, 2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_git_folder(
    folder: Path, num_image_with_embedding: int | None = 6, image_processor_type: str = "VideoMAEImageProcessor"
) -> Path:
    """Writes model, `preprocessor_config.json` and tokenizer files; published models have no `processor_config.json`.

    Args:
        num_image_with_embedding: 6 for the video checkpoints, `None` for those that were trained on images only.
        image_processor_type: `VideoMAEImageProcessor` as in the video checkpoints, else `CLIPImageProcessor`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(folder, num_image_with_embedding)
    _write_tokenizer(folder)
    preprocessor = {
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": image_processor_type,
        "image_std": [0.229, 0.224, 0.225],
        "processor_class": "GitProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    return folder


def _write_model(folder: Path, num_image_with_embedding: int | None) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GitConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        num_image_with_embedding=num_image_with_embedding,
        # Large enough that captions depend on the clip and most end before the length limit.
        initializer_range=0.35,
    )
    torch.manual_seed(0)
    model = GitForCausalLM(config).eval()
    with torch.no_grad():
        for position in getattr(model.git, "img_temporal_embedding", []):
            position.normal_(std=1.0)
        # Generates words, and [SEP] now and then, but no other special tokens.
        model.output.bias[:104] = -1e4
        model.output.bias[102] = 1.0
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["processor_class"] = "GitProcessor"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))

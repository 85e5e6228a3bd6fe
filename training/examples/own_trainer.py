"""Fine-tunes a SwinBERT with transformers' own `Trainer`: python own_trainer.py DATASET MODEL OUTPUT STEPS"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import swinbert  # noqa: F401 - registers the model with transformers
from swinbert.training.data.collators import CaptionCollator

dataset, name, output, steps = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(name)


def rows(split):
    """Rows {"video": path, "caption": a text or a list of texts}."""
    lines = load_dataset("json", data_files=f"{dataset}/metadata.jsonl", split="train")
    lines = lines.filter(lambda line: line["split"] == split)
    lines = lines.map(lambda line: {"video": f"{dataset}/{line['file_name']}", "caption": line["captions"]})
    return lines.select_columns(["video", "caption"])


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output, max_steps=int(steps), learning_rate=1e-3, remove_unused_columns=False, logging_steps=10, save_steps=100
    ),
    data_collator=CaptionCollator(processor, model.config.objective, model.config.max_caption_length),
    train_dataset=rows("train"),
    eval_dataset=rows("validation"),
    processing_class=processor,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()

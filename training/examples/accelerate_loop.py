"""Fine-tunes a SwinBERT in a loop of one's own with accelerate: python accelerate_loop.py DATASET MODEL OUTPUT STEPS"""

import itertools
import sys

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor, get_scheduler

import swinbert  # noqa: F401 - registers the model with transformers
from swinbert.training.data.collators import CaptionCollator

dataset, name, output, steps = sys.argv[1:]
accelerator = Accelerator()
model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(name)
lines = load_dataset("json", data_files=f"{dataset}/metadata.jsonl", split="train")
lines = lines.filter(lambda line: line["split"] == "train")
rows = lines.map(lambda line: {"video": f"{dataset}/{line['file_name']}", "caption": line["captions"]})
collator = CaptionCollator(processor, model.config.objective, model.config.max_caption_length)
loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collator)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=int(steps))
model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)

batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
for step, batch in enumerate(itertools.islice(batches, int(steps)), 1):
    loss = model(**batch).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        accelerator.print(step, loss.item())
accelerator.unwrap_model(model).save_pretrained(output, is_main_process=accelerator.is_main_process)
processor.save_pretrained(output)

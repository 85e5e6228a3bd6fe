"""LoRA: an adapter of the fusion encoder is trained, saved, pushed, loaded, merged."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_run
import torch
from hub_server import Repository, captions_of_process, git_oid
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import swinbert
from swinbert import SwinBertForVideoCaptioning
from swinbert.deployment.hub import PushError, check_folder, push
from swinbert.training import train
from swinbert.training.adapters import adapted_model, add_lora, refuse_local_base

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed (the extra peft)")
SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"


@pytest.fixture
def model():
    return SwinBertForVideoCaptioning.from_pretrained(swinbert.bundled_model())


@pytest.fixture(scope="module")
def pixels():
    processor = AutoProcessor.from_pretrained(swinbert.bundled_model())
    return processor(videos=SAMPLE, return_tensors="pt")["pixel_values_videos"]


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@needs_peft
def test_adapted_layers(model, pixels):
    before = model.generate(pixel_values_videos=pixels)
    adapted = add_lora(model, rank=2)
    names = trained_names(adapted)
    lora = {name for name in names if "lora_" in name}
    layers = model.config.num_hidden_layers
    assert len(lora) == layers * len(("query", "key", "value", "output", "intermediate", "output")) * len("AB")
    assert all(re.search(r"\.model\.encoder\.layer\.\d+\.", name) for name in lora)
    assert all(re.search(r"\.sparse_mask\.modules_to_save\.", name) for name in names - lora) and names - lora
    assert torch.equal(adapted.generate(pixel_values_videos=pixels), before), "an adapter begins with no change"
    assert adapted_model(adapted) == swinbert.bundled_model() and adapted_model(torch.nn.Linear(1, 1)) is None


@needs_peft
@pytest.mark.parametrize("change", ["frozen", "hard"])
def test_a_mask_that_is_not_trained_is_not_saved_with_the_adapter(model, change):
    if change == "frozen":
        model.model.sparse_mask.requires_grad_(False)
    model.config.sparse_mask = {"frozen": "soft", "hard": "hard"}[change]
    assert all("lora_" in name for name in trained_names(add_lora(model, rank=1)))


@needs_peft
def test_gradients_reach_adapter_and_mask(model, pixels):
    adapted = add_lora(model, rank=2)
    ids = torch.tensor([[model.config.bos_token_id, model.config.mask_token_id]])
    adapted(pixel_values_videos=pixels, input_ids=ids, labels=torch.tensor([[-100, 7]])).loss.backward()
    assert {name for name, each in adapted.named_parameters() if each.grad is not None} == trained_names(adapted)


@needs_peft
def test_an_adapter_of_a_local_folder_is_not_pushed(model):
    with pytest.raises(ValueError, match="push that model first"):
        refuse_local_base(add_lora(model, rank=1))


@needs_peft
def test_folders_of_adapters(model, tmp_path):
    add_lora(model, rank=1).save_pretrained(tmp_path)
    with pytest.raises(PushError, match="base_model_name_or_path.*ORG/NAME"):
        check_folder(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    check_folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(PushError, match="(?s)adapter_model.safetensors is missing.*adapter_model.bin is a pickle"):
        check_folder(tmp_path)


@needs_peft
def test_a_pickled_adapter_is_an_error(hub, model, tmp_path, monkeypatch):
    add_lora(model, rank=1).save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    repository = hub.repositories["org/pickled"] = Repository()
    names = ("adapter_config.json", "adapter_model.bin")
    repository.commit("main", {name: (tmp_path / name).read_bytes() for name in names})
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(OSError, match="adapter_model.safetensors"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="org/pickled"):
        AutoModelForImageTextToText.from_pretrained("org/pickled")
    with pytest.raises(OSError, match="adapter_model.bin is not opened"):
        model._load_pretrained_model(model, None, [str(tmp_path / "adapter_model.bin")])


@needs_peft
@pytest.mark.parametrize(
    ("repository", "damaged", "from_folder"),
    [
        ("org/adapter", "adapter_model.safetensors", False),
        ("org/base", "model.safetensors", False),
        ("org/base", "model.safetensors", True),
    ],
)
def test_a_damaged_download_is_an_error(hub, model, tmp_path, repository, damaged, from_folder):
    pipeline("video-captioning", model=swinbert.bundled_model(), device="cpu").push_to_hub("org/base")
    add_lora(model, rank=1).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    push(tmp_path, "org/adapter")
    weights = hub.repositories[repository].files()[damaged]
    hub.served[git_oid(weights)] = weights[:-1] + bytes([weights[-1] ^ 1])
    source = tmp_path if from_folder else "org/adapter"
    for load in (AutoModelForImageTextToText.from_pretrained, SwinBertForVideoCaptioning.from_pretrained):
        with pytest.raises(OSError, match=f"{damaged} from {repository} is damaged"):
            load(source)
    hub.served.clear()
    assert SwinBertForVideoCaptioning.from_pretrained(source).num_parameters() == model.num_parameters()


def test_lora_without_peft_or_rank(model, monkeypatch):
    if find_spec("peft"):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            add_lora(model, rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'swinbert\[peft\]'"):
        add_lora(model, rank=1)


def test_lora_needs_a_model(tmp_path):
    dataset = tiny_run.make_shapes(tmp_path)
    with pytest.raises(ValueError, match="name one as --model"):
        train.build_trainer(tiny_run.arguments(dataset, tmp_path / "out", lora_rank=2))


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["swinbert"] = None  # import swinbert fails
from transformers import pipeline
captioner = pipeline("video-captioning", model="org/adapter", trust_remote_code=True, device="cpu")
assert type(captioner.model).__module__.startswith("transformers_modules"), type(captioner.model)
print("captions:", json.dumps(captioner(sys.argv[1])))
"""


@needs_peft
@pytest.mark.slow
def test_train_push_load_merge(hub, pixels, tmp_path):
    from peft import PeftModel

    captioner = pipeline("video-captioning", model=swinbert.bundled_model(), device="cpu")
    captioner.push_to_hub("org/base")
    arguments = {
        "dataset": tiny_run.make_shapes(tmp_path),
        "output_dir": tmp_path / "out",
        "model": "org/base",
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "metrics": "cider",
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
        "hub_model_id": "org/adapter",
    }
    argv = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    trainer = train.build_trainer(argv)
    train.run(trainer)

    files = hub.repositories["org/adapter"].files()
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "README.md"} <= files.keys()
    assert "model.safetensors" not in files and not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    card = ModelCard(files["README.md"].decode(), ignore_metadata_errors=False)
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base") and "lora" in card.data.tags
    assert str(tmp_path) not in card.content and "`lora_rank`: 4" in card.content

    # Resumed from its first checkpoint, the run has the same adapter.
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    train.run(train.build_trainer(argv))
    resumed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    pushed = load_file(tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in pushed.items())

    trained = trainer.captioner(trainer.model).eval()
    ids = torch.tensor([[captioner.model.config.bos_token_id, captioner.model.config.mask_token_id]])

    def logits(model):
        with torch.no_grad():
            return model.eval()(pixel_values_videos=pixels, input_ids=ids).logits

    expected = logits(trained)
    assert not torch.allclose(expected, logits(captioner.model), atol=1e-3)
    loaded = AutoModelForImageTextToText.from_pretrained("org/adapter")
    torch.testing.assert_close(logits(loaded), expected)
    base = AutoModelForImageTextToText.from_pretrained("org/base")
    merged = PeftModel.from_pretrained(base, "org/adapter").merge_and_unload()
    assert type(merged) is SwinBertForVideoCaptioning
    merged.save_pretrained(tmp_path / "merged")
    again = SwinBertForVideoCaptioning.from_pretrained(tmp_path / "merged")
    assert again.state_dict().keys() == captioner.model.state_dict().keys()
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)

    (tmp_path / "out" / "README.md").unlink()
    push(tmp_path / "out", "org/again")
    assert hub.repositories["org/again"].files()["adapter_model.safetensors"] == files["adapter_model.safetensors"]

    captions = captions_of_process(hub, tmp_path, WITHOUT_THE_PACKAGE, str(SAMPLE))
    captioner.model = again
    assert captions[0]["generated_text"] == captioner(str(SAMPLE))[0]["generated_text"]

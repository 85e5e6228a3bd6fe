"""Initialisation: where every tensor of a model comes from; freezing, and hardening of the mask."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BertConfig, BertForMaskedLM, BertModel
from typer.testing import CliRunner

from swinbert import SwinBertConfig, SwinBertForVideoCaptioning, VideoSwinConfig, VideoSwinModel
from swinbert.cli import app
from swinbert.processing import SwinBertProcessor
from swinbert.training.arguments import ModelArguments
from swinbert.training.hardening import harden
from swinbert.training.initialization import freeze, load_model, resize_mask, video_processor_for
from swinbert.training.tokenization import build_tokenizer

CAPTIONS = ["a red ball rolls", "a blue box falls"]
VISION = {"num_frames": 4, "image_size": 32, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 2]}
CONFIG = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    **{"projection_dim": 24, "vision_config": VISION},
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A SwinBERT of 2 x 2 x 2 video tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "swinbert", build_tokenizer(CAPTIONS)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
    torch.manual_seed(1)
    model = SwinBertForVideoCaptioning(SwinBertConfig(**CONFIG, **ids))
    torch.nn.init.normal_(model.model.sparse_mask.weight, std=3.0)
    model.generation_config.max_length = 9
    model.save_pretrained(folder)
    SwinBertProcessor(video_processor_for(model.config), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    torch.manual_seed(2)
    folder = str(tmp_path_factory.mktemp("models") / "backbone")
    VideoSwinModel(VideoSwinConfig(**VISION)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    torch.manual_seed(3)
    folder, tokenizer = tmp_path_factory.mktemp("models") / "bert", build_tokenizer(["a dog rolls", *CAPTIONS])
    sizes = {name: CONFIG[name] for name in CONFIG if name not in ("projection_dim", "vision_config")}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=40)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- sources


def test_a_new_model_is_initialised_from_scratch():
    model, processor, report = load_model(ModelArguments(generation_max_length=7), CONFIG, CAPTIONS)
    assert len(report) == 1 and report[0].startswith(f"{len(model.state_dict())} tensors are initialised from scratch")
    assert (model.config.vocab_size, model.config.objective) == (len(processor.tokenizer), "masked_lm")
    assert model.generation_config.max_length == 7
    assert load_model(ModelArguments(objective="causal_lm"), CONFIG, CAPTIONS)[0].config.objective == "causal_lm"


def test_backbone_gives_weights_and_configuration(backbone_folder, model_folder):
    config = {name: value for name, value in CONFIG.items() if name != "vision_config"}
    changes = {"num_frames": 8, "vision_config": {"drop_path_rate": 0.0}}
    model, processor, report = load_model(ModelArguments(backbone=backbone_folder), {**config, **changes}, CAPTIONS)
    backbone = VideoSwinModel.from_pretrained(backbone_folder)
    assert equal(backbone, model.model.video_encoder)
    assert (model.config.num_frames, model.config.vision_config.drop_path_rate) == (8, 0.0)
    assert (processor.video_processor.num_frames, model.config.num_video_tokens) == (8, 4 * 2 * 2)
    assert report[0] == f"{len(backbone.state_dict())} tensors from {backbone_folder}"
    assert "model.video_encoder" not in report[-1] and "model.projector (4)" in report[-1]

    of_captioner, _, _ = load_model(ModelArguments(backbone=model_folder), config, CAPTIONS)
    assert equal(
        AutoModelForImageTextToText.from_pretrained(model_folder).model.video_encoder, of_captioner.model.video_encoder
    )


def test_fusion_encoder_of_a_bert(bert_folder):
    config = {"vision_config": VISION, "projection_dim": 24, "hidden_dropout_prob": 0.3}
    model, processor, report = load_model(ModelArguments(text_encoder=bert_folder), config, CAPTIONS)
    bert = BertForMaskedLM.from_pretrained(bert_folder)
    assert equal(bert.bert.encoder, model.model.encoder) and equal(bert.bert.embeddings, model.model.embeddings)
    assert equal(bert.cls.predictions.transform, model.lm_head.transform)
    assert torch.equal(bert.cls.predictions.decoder.weight, model.lm_head.decoder.weight)
    assert torch.equal(bert.cls.predictions.bias, model.lm_head.decoder.bias)
    assert (model.config.max_position_embeddings, model.config.hidden_dropout_prob) == (40, 0.3)
    assert "dog" in processor.tokenizer.get_vocab()
    assert "lm_head" not in report[-1] and "model.embeddings" not in report[-1]


def test_a_bert_without_a_head_leaves_the_head_from_scratch(bert_folder, tmp_path):
    BertModel(BertConfig.from_pretrained(bert_folder)).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(bert_folder).save_pretrained(tmp_path)
    config = {"vision_config": VISION, "projection_dim": 24}
    report = load_model(ModelArguments(text_encoder=str(tmp_path)), config, CAPTIONS)[2]
    assert any(line.startswith("not used") and "pooler" in line for line in report)
    assert "lm_head.transform" in report[-1] and "lm_head.decoder" in report[-1]


def test_tokens_of_a_new_tokenizer_keep_their_weights(bert_folder, model_folder):
    args = ModelArguments(text_encoder=bert_folder, tokenizer="captions")
    model, processor, report = load_model(args, {"vision_config": VISION, "projection_dim": 24}, CAPTIONS)
    assert "dog" not in processor.tokenizer.get_vocab() and "tokens keep their weights" in report[0]
    old, new = AutoProcessor.from_pretrained(bert_folder).get_vocab(), processor.tokenizer.get_vocab()
    bert = BertForMaskedLM.from_pretrained(bert_folder)
    for word in ("ball", "[SEP]", "##a"):
        rows = bert.bert.embeddings.word_embeddings.weight[old[word]], model.model.embeddings.word_embeddings.weight
        assert torch.equal(rows[0], rows[1][new[word]])

    args = ModelArguments(model=model_folder, tokenizer="captions")
    model, processor, report = load_model(args, {}, ["a zebra falls"])
    assert {"zebra", "falls"} < set(processor.tokenizer.get_vocab()) and model.config.vocab_size == len(
        processor.tokenizer
    )
    ids, source = processor.tokenizer.get_vocab(), AutoModelForImageTextToText.from_pretrained(model_folder)
    old = AutoProcessor.from_pretrained(model_folder).tokenizer.get_vocab()
    assert torch.equal(model.lm_head.decoder.weight[ids["falls"]], source.lm_head.decoder.weight[old["falls"]])
    assert equal(source.model.encoder, model.model.encoder)
    assert model.generate(torch.rand(1, 4, 3, 32, 32)).shape[1] <= 9


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ({"model": "BACKBONE"}, {}, "type 'video_swin'; expected a SwinBERT.*--backbone"),
        ({"model": "BERT"}, {}, "type 'bert'; expected a SwinBERT"),
        ({"backbone": "BERT"}, CONFIG, "expected a Video Swin"),
        ({"text_encoder": "BACKBONE"}, CONFIG, "expected a BERT"),
        ({"mask": "BACKBONE"}, CONFIG, "expected a SwinBERT"),
        ({"model": "MODEL", "backbone": "BACKBONE"}, {}, "--backbone.*omit"),
        ({"objective": "scst"}, CONFIG, "name one as --model"),
        ({"mask": "MODEL"}, {**CONFIG, "sparse_mask": "none"}, "the model to train has no sparse mask"),
        ({"backbone": "BACKBONE"}, {**CONFIG, "vision_config": {"embed_dim": 32}}, "does not fit.*instead of"),
        ({"model": "MODEL"}, {"hidden_size": 64}, "does not fit"),
        ({}, {**CONFIG, "hiden_size": 64}, "no field hiden_size.*hidden_size"),
        ({}, {**CONFIG, "vision_config": {"embed_dims": 32}}, "no field vision_config.embed_dims"),
    ],
)
def test_incompatible_sources_are_an_error(arguments, config, message, model_folder, backbone_folder, bert_folder):
    folders = {"MODEL": model_folder, "BACKBONE": backbone_folder, "BERT": bert_folder}
    arguments = {name: folders.get(value, value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        load_model(ModelArguments(**arguments), config, CAPTIONS)


# ------------------------------------------------------------------------------------------------- transfer of the mask


def test_entire_model_at_another_frame_rate_and_resolution(model_folder):
    source = AutoModelForImageTextToText.from_pretrained(model_folder)
    args, config = ModelArguments(model=model_folder), {"num_frames": 8, "image_size": 48, "label_smoothing": 0.1}
    model, processor, report = load_model(args, config, CAPTIONS)
    assert any("2 x 2 x 2 to 4 x 3 x 3" in line and "interpolate" in line for line in report)
    assert not any("scratch" in line for line in report)
    mask = model.model.sparse_mask.weight
    assert torch.equal(mask, resize_mask(source.model.sparse_mask.weight, (2, 2, 2), (4, 3, 3)))
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in source.state_dict().items()
        if "sparse_mask" not in name
    )
    assert (model.config.label_smoothing, model.generation_config.max_length) == (0.1, 9)
    video_processor = processor.video_processor
    assert (video_processor.num_frames, video_processor.crop_size["height"], video_processor.size["shortest_edge"]) == (
        8,
        48,
        48,
    )
    assert model.generate(torch.rand(1, 8, 3, 48, 48)).shape[0] == 1


def test_other_changes_leave_the_processor_as_it_was(model_folder, tmp_path):
    """Self-critical training changes dropout; the model was saved in half precision."""
    AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(model_folder)
    processor.video_processor.size = {"shortest_edge": 40}
    processor.save_pretrained(tmp_path)
    for arguments in ({}, {"objective": "scst"}):
        model, processor, _ = load_model(ModelArguments(model=str(tmp_path), **arguments), {}, CAPTIONS)
        assert processor.video_processor.size["shortest_edge"] == 40 and model.dtype == torch.float32
    config = model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.objective) == (
        0.0,
        0.0,
        "masked_lm",
    )
    assert config.vision_config.drop_path_rate == 0.0


def test_mask_alone(model_folder, backbone_folder):
    source = AutoModelForImageTextToText.from_pretrained(model_folder)
    args = ModelArguments(mask=model_folder, backbone=backbone_folder)
    model, _, report = load_model(args, CONFIG, CAPTIONS)
    assert torch.equal(model.model.sparse_mask.weight, source.model.sparse_mask.weight)
    assert any("sparse mask" in line and model_folder in line for line in report)
    assert not torch.equal(
        model.model.encoder.layer[0].output.dense.weight, source.model.encoder.layer[0].output.dense.weight
    )
    assert equal(VideoSwinModel.from_pretrained(backbone_folder), model.model.video_encoder)


def test_interpolated_mask():
    torch.manual_seed(0)
    old, new = (2, 2, 3), (4, 2, 3)
    weight = 4 * torch.randn(12, 12)
    assert torch.equal(resize_mask(weight, old, old), weight)
    constant = resize_mask(torch.full((12, 12), -2.0), old, (5, 3, 4))
    assert constant.shape == (60, 60)
    # Far from the diagonal, the values do not change.
    assert constant[0, -1].item() == pytest.approx(-2.0)
    assert constant[0, 0] > 5 and constant.min().item() == pytest.approx(-2.0)
    mask = torch.sigmoid(weight.double()).fill_diagonal_(1.0).view(*old, *old)
    resized = torch.sigmoid(resize_mask(weight, old, new).double()).view(*new, *new)
    # Twice the frames: the outermost keep their values, the next ones are interpolated with weights 3/4 and 1/4.
    torch.testing.assert_close(resized[0, :, :, -1], mask[0, :, :, -1], atol=1e-6, rtol=0)
    between = 0.75 * mask[0, :, :, 1] + 0.25 * mask[1, :, :, 1]
    torch.testing.assert_close(resized[1, :, :, -1], between, atol=1e-6, rtol=0)
    # Only time is interpolated: positions do not mix.
    moved = weight.clone().view(*old, *old)
    moved[:, 0, 0] += 1.0
    differs = (resize_mask(moved.view(12, 12), old, new) - resize_mask(weight, old, new)).view(*new, *new).abs() > 1e-6
    assert differs[:, 0, 0].any() and not differs[:, 1].any() and not differs[:, :, 1:].any()


def test_diagonal_mask():
    weight = torch.randn(6, 6)
    resized = resize_mask(weight, (2, 1, 3), (6, 1, 3), "diagonal")
    for part in range(3):
        own = slice(6 * part, 6 * part + 6)
        assert torch.equal(resized[own, own], weight)
        resized[own, own] = torch.nan
    assert (resized[~resized.isnan()] <= -6).all()
    for impossible in ((3, 1, 3), (4, 2, 3)):
        with pytest.raises(ValueError, match="interpolate"):
            resize_mask(weight, (2, 1, 3), impossible, "diagonal")


# ------------------------------------------------------------------------------------------- freezing, and a hard mask


def test_freezing(model_folder):
    args = ModelArguments(model=model_folder, freeze=["video_encoder", "embeddings$|word_embeddings"])
    model, _, report = load_model(args, {}, CAPTIONS)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("video_encoder" in name or "word_embeddings" in name for name in trained)
    assert "model.embeddings.LayerNorm.weight" in trained and report[-1].startswith("frozen: ")
    with pytest.raises(ValueError, match="--freeze backbone.*model.video_encoder"):
        freeze(model, ["backbone"])


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_harden(model_folder, tmp_path, threshold):
    report = harden(model_folder, tmp_path / "hard", threshold)
    soft, hard = (AutoModelForImageTextToText.from_pretrained(each) for each in (model_folder, tmp_path / "hard"))
    wanted = soft.model.sparse_mask.soft_values() >= threshold
    assert torch.equal(hard.model.sparse_mask.soft_values() >= 0.5, wanted)
    assert torch.equal(hard.model.sparse_mask.values().bool(), wanted | torch.eye(8, dtype=torch.bool))
    assert hard.config.sparse_mask == "hard" and 0 < wanted.sum() < 56
    assert f"{wanted.sum()} ({wanted.sum() / 56:.2%})" in report
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "hard"), SwinBertProcessor)
    model, _, lines = load_model(ModelArguments(model=str(tmp_path / "hard")), {}, CAPTIONS)
    assert not model.model.sparse_mask.weight.requires_grad and "frozen: 64 parameters" in lines[-1]
    with pytest.raises(ValueError, match="binary mask already"):
        harden(str(tmp_path / "hard"), tmp_path / "again")


def test_harden_command(model_folder, backbone_folder, tmp_path):
    result = CliRunner().invoke(app, ["harden", model_folder, "--output", str(tmp_path / "hard")])
    assert result.exit_code == 0 and "before: " in result.output and "after: " in result.output
    for arguments, message in (
        ([backbone_folder], "expected a SwinBERT"),
        ([model_folder, "--threshold", "1.5"], "between 0 and 1"),
    ):
        result = CliRunner().invoke(app, ["harden", *arguments, "--output", str(tmp_path / "other")])
        assert result.exit_code == 1 and message in result.output and not (tmp_path / "other").exists()
    none = SwinBertForVideoCaptioning(SwinBertConfig(**CONFIG, sparse_mask="none", vocab_size=200, bos_token_id=2))
    none.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no sparse mask"):
        harden(str(tmp_path / "none"), tmp_path / "other")

"""The video processor: pixels equal to the original's, forms of clips, stored settings, and errors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_clips import encode, read_numbers
from PIL import Image
from safetensors.numpy import load_file
from torchvision.transforms import InterpolationMode
from transformers import AutoVideoProcessor
from transformers.image_utils import SizeDict

import swinbert  # noqa: F401 - registers the classes
from swinbert.processing import SwinBertVideoProcessor, VideoDecodeError, VideoMetadata, decode_video, sample_indices

FIXTURES = Path(__file__).parent / "fixtures"
PIXELS = load_file(FIXTURES / "preprocess.safetensors")
GEOMETRY = json.loads((FIXTURES / "preprocess.json").read_text())
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def make_processor(size: int = 32, num_frames: int = 4, **options) -> SwinBertVideoProcessor:
    crop_size = {"height": size, "width": size}
    return SwinBertVideoProcessor(size={"shortest_edge": size}, crop_size=crop_size, num_frames=num_frames, **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", range(60))


@pytest.fixture
def clip() -> np.ndarray:
    """9 frames of 40 x 48."""
    return np.random.default_rng(0).integers(0, 256, (9, 40, 48, 3), dtype=np.uint8)


def pixels_of(processor, videos, **arguments) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **arguments)["pixel_values_videos"]


def kind_of(videos, **arguments) -> str:
    with pytest.raises(VideoDecodeError) as raised:
        make_processor()(videos, return_tensors="pt", **arguments)
    return raised.value.kind


# --- The original's pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted({name.rsplit(".")[0] for name in PIXELS}))
def test_pixels_equal_the_originals(case):
    processor = make_processor(int(case.split("_")[2]), num_frames=1)
    expected = (PIXELS[f"{case}.pixels"].astype(np.float32) / np.float32(255) - MEAN) / STD
    frame = PIXELS[f"{case}.frame"]
    for clip in (frame[None], frame, torch.from_numpy(frame).permute(2, 0, 1), Image.fromarray(frame)):
        pixels = pixels_of(processor, clip)
        assert pixels.shape == (1, 1, *expected.shape) and pixels.dtype == torch.float32
        np.testing.assert_allclose(pixels[0, 0].numpy(), expected, rtol=0, atol=1e-6)


def test_sizes_and_crops_equal_the_originals():
    processor = SwinBertVideoProcessor()
    crop = SizeDict(height=224, width=224)
    for case, (width, height) in GEOMETRY["resized_224"].items():
        original_width, original_height = map(int, case.split("x"))
        frame = torch.zeros(1, 1, original_height, original_width, dtype=torch.uint8)
        assert processor.resize(frame, processor.size).shape[-2:] == (height, width), case
        rows, columns = torch.arange(height)[:, None] * 1000, torch.arange(width)
        cropped = processor.center_crop((rows + columns)[None], crop)
        left, top = GEOMETRY["crop_224"][case]
        assert cropped.shape == (1, 224, 224) and cropped[0, 0, 0] == 1000 * top + left, case
    for margin, offset in GEOMETRY["crop_offset"].items():
        cropped = processor.center_crop(torch.arange(224 + int(margin)).expand(1, 224, -1), crop)
        assert cropped[0, 0, 0] == offset


def test_torchvision_resizes_what_is_not_uint8(clip):
    processor = make_processor(24)
    by_pillow = processor.resize(torch.from_numpy(clip).permute(0, 3, 1, 2), processor.size).float()
    by_torchvision = processor.resize(torch.from_numpy(clip).permute(0, 3, 1, 2).float(), processor.size)
    assert by_pillow.shape == by_torchvision.shape == (9, 3, 24, 28)
    assert (by_pillow - by_torchvision).abs().max() <= 1


def test_two_channels_are_resized_as_three(clip):
    processor = make_processor(24)
    video = torch.from_numpy(clip).permute(0, 3, 1, 2)
    assert torch.equal(processor.resize(video[:, :2], processor.size), processor.resize(video, processor.size)[:, :2])


# --- Forms of a clip --------------------------------------------------------------------------------------------------


def test_decoded_clips_of_every_form(clip):
    processor = make_processor()
    expected = pixels_of(processor, clip)
    assert expected.shape == (1, 4, 3, 32, 32)
    chosen = torch.from_numpy(clip[[0, 2, 5, 8]])  # uniform, truncated
    assert torch.equal(pixels_of(processor, chosen, do_sample_frames=False), expected)
    for form in (
        clip.transpose(0, 3, 1, 2),
        torch.from_numpy(clip),
        torch.from_numpy(clip).permute(0, 3, 1, 2),
        list(clip),
        [Image.fromarray(frame) for frame in clip],
        tuple(torch.from_numpy(frame) for frame in clip),
        clip.astype(np.int64),
        clip.astype(np.float64),
        clip.astype(np.float32) / 255,
        torch.from_numpy(clip).double() / 255,
    ):
        assert torch.equal(pixels_of(processor, form), expected)


def test_several_clips(clip, path):
    processor = make_processor()
    one, other = pixels_of(processor, clip), pixels_of(processor, path)
    both = torch.cat([one, other])
    for videos in ([clip, path], [list(clip), str(path)], [[clip], [path]], [clip, path.read_bytes()]):
        assert torch.equal(pixels_of(processor, videos), both)
    assert torch.equal(pixels_of(processor, np.stack([clip, clip])), torch.cat([one, one]))
    pictures = [Image.fromarray(clip[0]), path]  # not all are images, so the image is a clip of its own
    assert torch.equal(pixels_of(processor, pictures)[1:], other)


def test_encoded_clips_of_every_form(path):
    processor = make_processor()
    expected = pixels_of(processor, str(path))
    assert torch.equal(expected, pixels_of(processor, decode_video(path)[0]))
    for form in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), {"path": str(path), "bytes": None}):
        assert torch.equal(pixels_of(processor, form), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"height": 20, "width": 30}, "crop_size": {"height": 20, "width": 20}},
        {"size": {"shortest_edge": 24, "longest_edge": 40}, "do_center_crop": False},
        {"do_resize": False},
        {"resample": Image.Resampling.BICUBIC},
        {"resample": InterpolationMode.BILINEAR},
    ],
    ids=str,
)
def test_resizing_while_decoding_changes_no_pixel(path, options, monkeypatch):
    seen = []
    resize = SwinBertVideoProcessor.resize
    monkeypatch.setattr(
        SwinBertVideoProcessor,
        "resize",
        lambda self, image, *rest, **k: seen.append(image) or resize(self, image, *rest, **k),
    )
    processor = make_processor(16)
    expected = pixels_of(processor, decode_video(path, num_frames=4)[0], do_sample_frames=False, **options)
    assert torch.equal(pixels_of(processor, path, **options), expected)
    if not options:
        assert [tuple(image.shape[-2:]) for image in seen] == [(32, 96), (16, 48)]  # resized already at the second call


def test_a_picture_is_a_clip_of_one_frame(clip):
    processor = make_processor()
    expected = pixels_of(processor, clip[:1])
    assert torch.equal(expected[0, 0], expected[0, 3])
    for picture in (clip[0], torch.from_numpy(clip[0]), Image.fromarray(clip[0]), [clip[0]]):
        assert torch.equal(pixels_of(processor, picture), expected)


def test_grey_and_transparent_frames(clip):
    processor = make_processor()
    grey = clip[..., :1]
    expected = pixels_of(processor, grey.repeat(3, -1))
    pictures = [Image.fromarray(frame[..., 0]) for frame in grey]
    for form in (grey, pictures, [frame[..., 0] for frame in grey]):
        assert torch.equal(pixels_of(processor, form), expected)
    opaque = np.concatenate([clip, np.full_like(grey, 255)], axis=-1)
    assert torch.equal(pixels_of(processor, opaque), pixels_of(processor, clip))
    glass = np.concatenate([clip, np.zeros_like(grey)], axis=-1)
    assert torch.equal(pixels_of(processor, glass), pixels_of(processor, np.full_like(clip, 255)))
    assert pixels_of(processor, opaque, do_convert_rgb=False, image_mean=0.0, image_std=1.0).shape[2] == 4


def test_normalised_frames_pass(clip):
    frames = torch.randn(4, 3, 32, 32)
    pixels = pixels_of(make_processor(), frames, do_rescale=False, do_normalize=False)
    assert torch.equal(pixels[0], frames)


# --- Sampling ---------------------------------------------------------------------------------------------------------


def test_short_clips_repeat_frames(clip):
    pixels = pixels_of(make_processor(num_frames=4), clip[:2])
    assert torch.equal(pixels[0, 0], pixels[0, 2]) and not torch.equal(pixels[0, 2], pixels[0, 3])


def test_fps_overrides_the_stored_number_of_frames(path, clip):
    processor = make_processor(num_frames=4)
    metadata = processor(path, fps=5, return_metadata=True)["video_metadata"][0]
    assert metadata.frames_indices == sample_indices(60, 10).tolist()
    about = {"total_num_frames": 9, "fps": 3}
    assert pixels_of(processor, clip, fps=2, video_metadata=about).shape[1] == 6
    assert pixels_of(make_processor(fps=2), clip, video_metadata=[[about]]).shape[1] == 6
    assert pixels_of(make_processor(fps=2), clip, num_frames=3).shape[1] == 3
    with pytest.raises(ValueError, match="exclude"):
        processor(path, fps=5, num_frames=3)
    with pytest.raises(ValueError, match="video_metadata"):
        processor(clip, fps=2)


def test_ranges(path, clip):
    processor = make_processor(num_frames=4)
    found = processor([path, path], start=[0.5, None], end=1, return_metadata=True)["video_metadata"]
    assert [about.frames_indices for about in found] == [[15, 20, 25, 31], [0, 10, 20, 31]]
    about = VideoMetadata(total_num_frames=9, fps=3)
    found = processor(clip, start=1, end=2, video_metadata=about, return_metadata=True)["video_metadata"][0]
    assert found.frames_indices == [3, 4, 5, 7] and about.frames_indices is None
    assert kind_of(clip, start=1) == "bad_range"  # the frame rate is unknown
    assert kind_of(path, start=1, end=1) == kind_of(path, start=5) == kind_of([path], start=[0, 1]) == "bad_range"


def test_sampling_for_training(path):
    processor = make_processor(num_frames=8)
    frames, metadata = processor.load_frames(path, frame_sampling="random", generator=3, start=0.5)
    assert read_numbers(frames) == (15 + sample_indices(45, 8, "random", 3)).tolist() == metadata.frames_indices
    assert torch.equal(
        pixels_of(processor, frames, do_sample_frames=False),
        pixels_of(processor, path, frame_sampling="random", generator=3, start=0.5),
    )
    assert len(processor.load_frames(path, do_sample_frames=False)[0]) == 60
    assert make_processor(num_frames=3, frame_sampling="round").load_frames(path)[1].frames_indices == [0, 30, 59]


# --- What is refused --------------------------------------------------------------------------------------------------


def test_invalid_arrays_are_refused(clip):
    broken = clip.astype(np.float32)
    broken[3, 2, 1, 0] = np.nan
    assert kind_of(broken) == kind_of(np.where(np.isnan(broken), np.inf, broken)) == "bad_array"
    assert kind_of(clip.astype(np.float32) - 1) == kind_of(clip.astype(np.int32) * 2) == "bad_array"
    assert kind_of(clip > 9) == kind_of(clip.astype(complex)) == kind_of(clip.astype(object)) == "bad_array"
    assert kind_of(torch.from_numpy(clip) > 9) == "bad_array"
    for shape in (
        (0, 40, 48, 3),
        (4, 0, 48, 3),
        (4, 40, 0, 3),
        (4, 40, 48, 2),
        (5, 40, 48),
        (4,),
        (1, 1, 4, 40, 48, 3),
    ):
        assert kind_of(np.zeros(shape, np.uint8)) == "bad_array", shape
    assert kind_of(np.zeros((2, 3, 40, 3), np.uint8)) == "bad_array"  # could be either layout
    assert pixels_of(make_processor(), np.zeros((2, 3, 40, 3), np.uint8), input_data_format="channels_last").any()
    assert kind_of(clip, input_data_format="channels_first") == "bad_array"
    assert kind_of([clip[0], clip[0, :20]]) == "bad_array"
    assert kind_of(np.broadcast_to(np.uint8(0), (1, 20000, 20000, 3))) == "too_large"


@pytest.mark.parametrize("videos", [[], None, 3, {}, [[]], ["clip.mp4", None]])
def test_invalid_sources_are_refused(videos):
    assert kind_of(videos) in ("bad_source", "not_found")


@pytest.mark.parametrize("arguments", [{"num_frames": 0}, {"num_frames": -1}, {"num_frames": 2.5}, {"fps": 0}])
def test_invalid_numbers_are_refused(clip, path, arguments):
    assert kind_of(clip, **arguments) == kind_of(path, **arguments) == "bad_sampling"
    with pytest.raises(ValueError):
        SwinBertVideoProcessor(**arguments)


def test_an_unknown_sampling():
    with pytest.raises(ValueError, match="uniform or round or random"):
        SwinBertVideoProcessor(frame_sampling="first")


def test_an_error_names_its_item(clip, path, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError, match="text.mp4: expected a video file") as raised:
        make_processor()([path, tmp_path / "text.mp4"])
    assert raised.value.source == str(tmp_path / "text.mp4")
    with pytest.raises(VideoDecodeError, match=r"^videos\[1\] <ndarray of shape \(2, 5, 5, 7\)"):
        make_processor()([clip, np.zeros((2, 5, 5, 7), np.uint8)])


# --- Stored and loaded ------------------------------------------------------------------------------------------------


def test_geometry_and_sampling_are_stored(tmp_path, clip):
    processor = make_processor(24, num_frames=6, frame_sampling="round", image_mean=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert stored["size"] == {"shortest_edge": 24} and stored["frame_sampling"] == "round"
    assert stored["auto_map"] == {"AutoVideoProcessor": "video_processing_swinbert.SwinBertVideoProcessor"}
    for name in ("processing", "decoding", "backends", "timeline", "sources"):
        assert (tmp_path / f"video_{name}_swinbert.py").is_file()
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SwinBertVideoProcessor
    assert torch.equal(pixels_of(loaded, clip), pixels_of(processor, clip))


def test_a_configuration_cannot_open_the_private_network(tmp_path):
    processor = SwinBertVideoProcessor.from_dict({"allow_private_urls": True})
    assert "allow_private_urls" not in processor.to_dict()
    with pytest.raises(VideoDecodeError) as raised:
        processor("http://127.0.0.1:9/clip.mp4")
    assert raised.value.kind == "refused_url"


def test_defaults_are_the_originals():
    processor = SwinBertVideoProcessor()
    assert processor.num_frames == 32 and processor.frame_sampling == "uniform"
    assert processor.size == {"shortest_edge": 224} and processor.crop_size == {"height": 224, "width": 224}
    assert processor.model_input_names == ["pixel_values_videos"]

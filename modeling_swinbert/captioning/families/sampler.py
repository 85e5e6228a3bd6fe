"""Reading and sampling of a clip for models that preprocess the frames themselves."""

from swinbert.processing.video_processing_swinbert import SwinBertVideoProcessor


def frame_sampler(num_frames: int, frame_sampling: str) -> SwinBertVideoProcessor:
    """A video processor that decodes and samples a clip and leaves its pixels as they are."""
    return SwinBertVideoProcessor(
        do_resize=False,
        do_center_crop=False,
        do_normalize=False,
        rescale_factor=1.0,
        num_frames=num_frames,
        frame_sampling=frame_sampling,
    )

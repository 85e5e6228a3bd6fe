"""Draws and encodes clips of moving shapes."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from swinbert.training.moving_shapes.contents import WORLDS, Content

NUM_FRAMES, FRAME_SIZE, FRAMES_PER_SECOND = 24, 64, 12
_PALETTE = {name: rgb for world in WORLDS.values() for name, rgb in world.colours.items()}


class Scene(NamedTuple):
    """
    A clip with what a caption of it is read from.

    Args:
        frames: (T, H, W, C) uint8.
        shape: (T, H, W) in [0, 1], the share of each pixel that shows the moving shape.
        turn: number of the frame with which the second action begins; T if there is none.
    """

    frames: np.ndarray
    shape: np.ndarray
    turn: int


def _trajectory(content: Content, turn: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """x, y and radius in pixels, and visibility (0 or 1) of a shape, each (T,)."""
    size = (9 if content.size == "small" else 15) * rng.uniform(0.95, 1.05)
    parts: list[np.ndarray] = []
    for action, length in zip(content.actions, (turn, NUM_FRAMES - turn), strict=False):
        x, y, radius = parts[-1][:3, -1] if parts else (0.0, 0.0, size)
        parts.append(_motion(action, np.arange(1, length + 1) / length, x, y, radius, rng))
    x, y, radius, visible = np.concatenate(parts, axis=1)
    return _shift_into_frame(x, radius, rng), _shift_into_frame(y, radius, rng), radius, visible


def _motion(action: str, u: np.ndarray, x: float, y: float, radius: float, rng: np.random.Generator) -> np.ndarray:
    """
    x, y, radius and visibility during an action, (4, T).

    Args:
        u: (T,) shares of the action's time, in (0, 1].
        x, y, radius: where the last action ended.
    """
    # The shape must stay within the frame.
    distance = min(rng.uniform(30, 36), FRAME_SIZE - 2 - 2 * radius)
    path = np.stack([np.full_like(u, x), np.full_like(u, y), np.full_like(u, radius), np.ones_like(u)])
    match action:
        case "left" | "right":
            path[0] += distance * u * (1 if action == "right" else -1)
        case "up" | "down":
            path[1] += distance * u * (1 if action == "down" else -1)
        case "grow" | "shrink":
            path[2] *= 1.65 ** (u if action == "grow" else -u)
        case "blink":
            path[3] = np.cos(4 * np.pi * u) > 0
        case "bounce":
            path[1] -= 0.6 * distance * np.abs(np.sin(2 * np.pi * u))
    return path


def _shift_into_frame(path: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifts coordinates at random so that the shape stays within the frame, or centres it if it does not fit."""
    low, high = np.max(radius - path) + 1, FRAME_SIZE - 1 - np.max(radius + path)
    return path + (rng.uniform(low, high) if high > low else (low + high) / 2)


def _passage(content: Content, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Colour and opacity (T, H, W) of the passing shape and of the wall, the farther one first."""
    u = np.clip(np.linspace(-1, 1, NUM_FRAMES) * rng.uniform(1.0, 1.1), -1, 1)
    along = FRAME_SIZE / 2 + u * rng.uniform(21.5, 22.5) * (1 if content.actions[0] in ("right", "down") else -1)
    across = np.full(NUM_FRAMES, rng.uniform(12, FRAME_SIZE - 12))
    upright = content.actions[0] in ("left", "right")
    x, y = (along, across) if upright else (across, along)
    shape = _draw_shape(content.shape, x, y, np.full(NUM_FRAMES, rng.uniform(9, 9.5)), np.ones(NUM_FRAMES))
    from_middle = np.abs(np.arange(FRAME_SIZE) + 0.5 - FRAME_SIZE / 2 - rng.uniform(-1, 1))
    wall = np.clip(rng.uniform(10.5, 11.5) + 0.5 - from_middle, 0, 1).astype(np.float32)
    wall = np.broadcast_to(wall if upright else wall[:, None], shape.shape)
    layers = [(content.colour, shape), (str(content.wall), wall)]
    return layers if content.relation == "behind" else layers[::-1]


def _draw_shape(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The share of each pixel that a shape covers, (T, H, W) in [0, 1], from signed distances."""
    rows, columns = np.mgrid[:FRAME_SIZE, :FRAME_SIZE].astype(np.float32) + 0.5
    paths = np.stack([x, y, radius, visible])
    x, y, r, visible = paths.astype(np.float32)[..., None, None]
    dx, dy = np.abs(columns - x), np.abs(rows - y)
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - 0.95 * r
        case "ring":
            distance = np.abs(np.hypot(dx, dy) - 0.75 * r) - 0.2 * r
        case "cross":
            distance = np.minimum(np.maximum(dx - r, dy - 0.28 * r), np.maximum(dy - r, dx - 0.28 * r))
        case "square":
            distance = np.maximum(dx, dy) - 0.85 * r
        case "triangle":
            distance = np.maximum(rows - y - 0.8 * r, 0.894 * dx + 0.447 * (y - rows) - 0.447 * r)
        case "frame":
            distance = np.abs(np.maximum(dx, dy) - 0.7 * r) - 0.2 * r
    return np.clip(0.5 - distance, 0, 1) * visible


def render(content: Content, rng: np.random.Generator) -> np.ndarray:
    """
    Draws a clip of `content`.

    Args:
        rng: draws place, pace, shade and background.

    Returns:
        uint8 frames (T, H, W, C) = (24, 64, 64, 3).
    """
    return render_scene(content, rng).frames


def render_scene(content: Content, rng: np.random.Generator) -> Scene:
    """As [`render`], with the place of the shape and the time of its second action."""
    # The background gets greener downwards, bluer to the right and redder with time. Video Swin has no absolute
    # positions: from the background, a small model can tell places and times apart.
    light: np.ndarray = np.zeros((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    light += rng.uniform(10, 20) + np.linspace(0, 70, NUM_FRAMES)[:, None, None, None] * np.array([1, 0, 0])
    light[..., 1] += np.linspace(0, 75, FRAME_SIZE)[:, None]
    light[..., 2] += np.linspace(0, 75, FRAME_SIZE)
    frames = light + rng.normal(0, 2, (FRAME_SIZE, FRAME_SIZE, 1)).astype(np.float32)
    turn = NUM_FRAMES
    if content.kind == "passage":
        layers = _passage(content, rng)
    else:
        if len(content.actions) == 2:
            turn = int(rng.integers(11, 14))
        layers = [(content.colour, _draw_shape(content.shape, *_trajectory(content, turn, rng)))]
    shape = np.zeros_like(layers[0][1])
    for colour, opacity in layers:
        # A nearer wall covers the shape; its colour is another one.
        shape = opacity if colour == content.colour else shape * (1 - opacity)
        shade = np.clip(np.array(_PALETTE[colour]) + rng.uniform(-12, 12, 3), 0, 255)
        frames = frames + opacity[..., None] * (shade.astype(np.float32) - frames)
    return Scene(frames.round().clip(0, 255).astype(np.uint8), shape, turn)


def write_clip(path: str | Path, frames: np.ndarray) -> None:
    """Encodes uint8 frames (T, H, W, C) as H.264. The same frames give the same bytes."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())

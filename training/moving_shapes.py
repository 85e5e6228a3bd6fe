"""A world to learn from: short clips of moving shapes, with captions that only motion and order can tell.

There are two kinds of clip, 24 frames of 64 x 64 pixels each, H.264 at 12 frames per second:

- a *sequence*: one shape does two things, one after the other ("a small red circle moves left, then it gets larger");
- a *passage*: one shape passes behind or in front of another ("a small red circle moves up and passes behind a large
  blue square").

No single frame says which way a shape is going, whether it is growing or shrinking, what came first, or how large a
shape that grows or shrinks was at the start. `Content` holds what a caption says, `wordings` says it in many ways, and
`content` reads any of these ways back, so that captions are compared by what they say and not by how.

The test split consists of combinations that the other two never show (`held_out`): of a colour with a shape, of an
action with the one that follows, of a direction with behind or in front. Each colour, shape, action, direction and
relation by itself is in the training split.

    make_shapes("shapes", train=6000, validation=200, test=300, seed=0)
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.progress import track

NUM_FRAMES, FRAME_SIZE, FRAMES_PER_SECOND = 24, 64, 12

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (190, 50, 200),
    "white": (240, 240, 240),
}
SHAPES = {"circle": ("circle",), "square": ("square",), "triangle": ("triangle",), "cross": ("cross",)}
SIZES = {"small": ("small",), "large": ("large",)}
ACTIONS = {
    "left": ("moves left", "slides left"),
    "right": ("moves right", "slides right"),
    "up": ("moves up", "slides up"),
    "down": ("moves down", "slides down"),
    "grow": ("gets larger", "grows larger"),
    "shrink": ("gets smaller", "grows smaller"),
    "blink": ("blinks twice", "flashes twice"),
    "bounce": ("bounces twice", "hops twice"),
}
DIRECTIONS = ("left", "right", "up", "down")
RELATIONS = {"behind": ("behind",), "front": ("in front of",)}

_UNSEEN_THINGS = {("red", "circle"), ("blue", "triangle"), ("white", "square")}

# Whatever the wording, a part of a sentence has one place in it: a small model need not first learn to count.
_SEQUENCE_TEMPLATES = ("{subject} {first}, then it {second}", "{subject} {first} and after that {second}")
_PASSAGE_TEMPLATES = (
    "{subject} {first}, passing {relation} {other}",
    "{subject} {first} and passes {relation} {other}",
)


@dataclass(frozen=True)
class Content:
    """What a caption says: a shape, its size at the start and two `actions`; or, of a passage, a small shape, one
    direction as its action, a `relation` ("behind" or "front") and the large shape that it passes."""

    colour: str
    shape: str
    size: str
    actions: tuple[str, ...]
    relation: str | None = None
    other_colour: str | None = None
    other_shape: str | None = None


def all_contents() -> list[Content]:
    """Every content of the world: sequences first, then passages."""
    sequences = [
        Content(colour, shape, size, actions)
        for colour, shape, size in itertools.product(COLOURS, SHAPES, SIZES)
        for actions in itertools.permutations(ACTIONS, 2)
    ]
    passages = [
        Content(colour, shape, "small", (direction,), relation, other_colour, other_shape)
        for colour, other_colour in itertools.permutations(COLOURS, 2)
        for shape, other_shape in itertools.product(SHAPES, repeat=2)
        for direction, relation in itertools.product(DIRECTIONS, RELATIONS)
    ]
    return sequences + passages


def held_out(content: Content) -> list[str]:
    """The combinations of `content` that only the test split shows: empty for what may be trained on."""
    actions, found = list(ACTIONS), []
    for colour, shape in ((content.colour, content.shape), (content.other_colour, content.other_shape)):
        if (colour, shape) in _UNSEEN_THINGS:
            found.append(f"{colour} {shape}")
    if len(content.actions) == 2:
        first, second = content.actions
        if (actions.index(second) - actions.index(first)) % len(actions) == 4:
            found.append(f"{first} then {second}")
    elif (content.actions[0], content.relation) in (("up", "behind"), ("left", "front")):
        found.append(f"{content.actions[0]} {content.relation}")
    return found


# ---------------------------------------------------------------------------------------------------- content <-> words


def wordings(content: Content) -> list[str]:
    """Every way to say `content`."""
    subjects = _thing_words(content.colour, content.shape, content.size)
    firsts = ACTIONS[content.actions[0]]
    if content.relation is None:
        said = itertools.product(_SEQUENCE_TEMPLATES, subjects, firsts, ACTIONS[content.actions[1]], ("",), ("",))
    else:
        others = _thing_words(content.other_colour, content.other_shape, "large")
        said = itertools.product(_PASSAGE_TEMPLATES, subjects, firsts, ("",), RELATIONS[content.relation], others)
    return [
        template.format(subject=subject, first=first, second=second, relation=relation, other=other)
        for template, subject, first, second, relation, other in said
    ]


def _thing_words(colour: str | None, shape: str | None, size: str) -> list[str]:
    return [f"a {size_word} {colour} {shape_word}" for size_word in SIZES[size] for shape_word in SHAPES[str(shape)]]


def content(caption: str) -> Content | None:
    """What `caption` says, or `None` where it is no sentence of this world.

    Capitals, a final full stop, the space before punctuation and "the" for "a" do not matter; everything else does.
    """
    text = re.sub(r"\s+", " ", re.sub(r"\s*([,.])", r"\1", caption.lower())).strip().removesuffix(".")
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            said = match.groupdict()
            break
    else:
        return None
    first, second = _MEANING[said["first"]], _MEANING.get(said.get("second"))
    result = Content(
        colour=said["subject_colour"],
        shape=_MEANING[said["subject_shape"]],
        size=_MEANING[said["subject_size"]],
        actions=(first, second) if second else (first,),
        relation=_MEANING.get(said.get("relation")),
        other_colour=said.get("other_colour"),
        other_shape=_MEANING.get(said.get("other_shape")),
    )
    if result.relation is None:
        return result if first != second else None
    sizes = result.size, _MEANING[said["other_size"]]
    sensible = sizes == ("small", "large") and result.colour != result.other_colour and first in DIRECTIONS
    return result if sensible else None


def _one_of(name: str, words) -> str:
    return f"(?P<{name}>{'|'.join(map(re.escape, words))})"


def _sentence_patterns() -> Iterator[re.Pattern]:
    def thing(name: str) -> str:
        size = _one_of(f"{name}_size", itertools.chain(*SIZES.values()))
        shape = _one_of(f"{name}_shape", itertools.chain(*SHAPES.values()))
        return f"(?:a|the) {size} {_one_of(f'{name}_colour', COLOURS)} {shape}"

    verbs = list(itertools.chain(*ACTIONS.values()))
    for template in _SEQUENCE_TEMPLATES + _PASSAGE_TEMPLATES:
        yield re.compile(
            template.format(
                subject=thing("subject"),
                other=thing("other"),
                first=_one_of("first", verbs),
                second=_one_of("second", verbs),
                relation=_one_of("relation", itertools.chain(*RELATIONS.values())),
            )
        )


_PATTERNS = tuple(_sentence_patterns())
_MEANING: dict[str | None, str] = {
    word: meaning for table in (SHAPES, SIZES, RELATIONS, ACTIONS) for meaning, words in table.items() for word in words
}


# ------------------------------------------------------------------------------------------------------ content -> clip


def render(content: Content, rng: np.random.Generator) -> np.ndarray:
    """Draws `content`: `uint8` frames (24, 64, 64, 3). `rng` chooses place, pace, shade and background."""
    # A dusky scene: greener towards the ground, bluer towards one side, brighter with time. Video Swin has no absolute
    # positions; here every place and moment looks a little different, which a small model learns motion from.
    light: np.ndarray = np.zeros((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    light += rng.uniform(10, 20) + np.linspace(0, 70, NUM_FRAMES)[:, None, None, None] * np.array([1, 0, 0])
    light[..., 1] += np.linspace(0, 90, FRAME_SIZE)[:, None]
    light[..., 2] += np.linspace(0, 90, FRAME_SIZE)
    frames = light + rng.normal(0, 2, (FRAME_SIZE, FRAME_SIZE, 1)).astype(np.float32)
    if content.relation is None:
        layers = [_sequence_layer(content, rng)]
    else:
        layers = _passage_layers(content, rng)
        if content.relation == "behind":
            layers.reverse()
    # The first layer is the nearest.
    for colour, shape, x, y, radius, visible in reversed(layers):
        shade = np.clip(np.array(COLOURS[colour]) + rng.uniform(-12, 12, 3), 0, 255)
        opacity = _coverage(shape, x, y, radius)[..., None] * visible[:, None, None, None].astype(np.float32)
        frames = frames + opacity * (shade.astype(np.float32) - frames)
    return frames.round().clip(0, 255).astype(np.uint8)


def _sequence_layer(content: Content, rng: np.random.Generator) -> tuple:
    """(colour, shape, x, y, radius, visible): the last four as arrays over frames, in pixels."""
    x, y, scale, visible = np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
    turn = int(rng.integers(11, 14))
    for action, length in zip(content.actions, (turn, NUM_FRAMES - turn), strict=True):
        last = (x[-1], y[-1], scale[-1]) if len(x) else (0.0, 0.0, 0.0)
        moved = _act(action, np.arange(1, length + 1) / length, rng)
        x, y, scale = (
            np.concatenate([old, start + new]) for old, start, new in zip((x, y, scale), last, moved[:3], strict=True)
        )
        visible = np.concatenate([visible, moved[3]])
    radius = (8 if content.size == "small" else 13) * rng.uniform(0.94, 1.06) * np.exp(scale)
    x, y = (path + _place(path, radius, rng) for path in (x, y))
    return content.colour, content.shape, x, y, radius, visible


def _act(action: str, u: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What an action does over its time `u` in (0, 1]: x and y in pixels, logarithm of the scale, visibility."""
    x, y, scale, visible = np.zeros_like(u), np.zeros_like(u), np.zeros_like(u), np.ones_like(u)
    distance = rng.uniform(16, 20)
    match action:
        case "left" | "right":
            x = distance * u * (1 if action == "right" else -1)
        case "up" | "down":
            y = distance * u * (1 if action == "down" else -1)
        case "grow" | "shrink":
            scale = np.log(1.45) * u * (1 if action == "grow" else -1)
        case "blink":
            visible = (np.cos(4 * np.pi * u) > -0.2).astype(float)
        case "bounce":
            y = -0.6 * distance * np.abs(np.sin(2 * np.pi * u))
    return x, y, scale, visible


def _place(path: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> float:
    """A random start for `path`, such that the shape never leaves the frame."""
    low, high = np.max(radius - path) + 1, FRAME_SIZE - 1 - np.max(radius + path)
    return rng.uniform(low, high) if high > low else (low + high) / 2


def _passage_layers(content: Content, rng: np.random.Generator) -> list[tuple]:
    """The passing shape and then the one that it passes."""
    u = np.clip(np.linspace(-1, 1, NUM_FRAMES) * rng.uniform(1.0, 1.25), -1, 1)
    middle = FRAME_SIZE / 2 + np.asarray(rng.uniform((-1, -3), (1, 3)))
    along = middle[0] + u * rng.uniform(22, 23) * (1 if content.actions[0] in ("right", "down") else -1)
    across = np.full(NUM_FRAMES, middle[1] + rng.uniform(-4, 4))
    still = np.ones(NUM_FRAMES)
    position, place = (along, across), (middle[0] * still, middle[1] * still)
    if content.actions[0] in ("up", "down"):
        position, place = position[::-1], place[::-1]
    return [
        (content.colour, content.shape, *position, rng.uniform(7.5, 8.5) * still, still),
        (content.other_colour, content.other_shape, *place, rng.uniform(11.5, 13) * still, still),
    ]


def _coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers: (T, H, W) in [0, 1], from its signed distance."""
    rows, columns = np.mgrid[:FRAME_SIZE, :FRAME_SIZE].astype(np.float32) + 0.5
    x, y, r = (np.asarray(path, dtype=np.float32)[:, None, None] for path in (x, y, radius))
    dx, dy = np.abs(columns - x), rows - y
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - 0.95 * r
        case "square":
            distance = np.maximum(dx, np.abs(dy)) - 0.85 * r
        case "triangle":
            distance = np.maximum(dy - 0.8 * r, (1.8 * dx - (dy + r)) / np.hypot(1.8, 1.0))
        case "cross":
            arms = np.maximum(dx - r, np.abs(dy) - 0.32 * r), np.maximum(np.abs(dy) - r, dx - 0.32 * r)
            distance = np.minimum(*arms)
    return np.clip(0.5 - distance, 0, 1)


def write_clip(path: str | Path, frames: np.ndarray) -> None:
    """Encodes `uint8` frames (T, H, W, 3) as H.264; the same frames give the same bytes."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


# ---------------------------------------------------------------------------------------------------------- the dataset


def make_shapes(
    output_dir: str | Path, *, train: int = 6000, validation: int = 200, test: int = 300, seed: int = 0
) -> Path:
    """Writes a VideoFolder of moving shapes: `<split>/<number>.mp4` and `metadata.jsonl`.

    A line of `metadata.jsonl` has `file_name`, `split`, `captions` (four wordings of one content), `content` (what they
    say) and `held_out` (the combinations that the training split lacks; empty outside the test split). The
    same numbers and seed give the same bytes; a larger split begins with the clips of a smaller one.

    Args:
        output_dir: a folder that does not exist or is empty.
        train, validation, test: number of clips of each split.
        seed: seed of everything random.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: a negative number of clips, or none at all.
        FileExistsError: `output_dir` holds something already.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    if min(sizes.values()) < 0 or not sum(sizes.values()) or seed < 0:
        raise ValueError(f"Expected numbers of clips >= 0, not all 0, and a seed >= 0; got {sizes} and seed {seed}.")
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty: name another folder, or empty this one.")

    known: list[Content] = []
    unseen: list[Content] = []
    for each in all_contents():
        (unseen if held_out(each) else known).append(each)
    clips = [(split, number) for split, size in sizes.items() for number in range(size)]
    console = Console(stderr=True)
    lines = []
    for split, number in track(clips, "Moving shapes", console=console, disable=not console.is_terminal):
        rng = np.random.default_rng([seed, list(sizes).index(split), number])
        line = _write_example(output_dir, split, number, unseen if split == "test" else known, rng)
        lines.append(json.dumps(line) + "\n")
    # Written last, so that a folder with this file is complete.
    (output_dir / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return output_dir


def _write_example(folder: Path, split: str, number: int, contents: list[Content], rng: np.random.Generator) -> dict:
    passages = rng.random() < 0.25
    kind = [each for each in contents if (each.relation is not None) == passages]
    chosen = kind[rng.integers(len(kind))]
    file_name = f"{split}/{number:06d}.mp4"
    (folder / split).mkdir(parents=True, exist_ok=True)
    write_clip(folder / file_name, render(chosen, rng))
    captions = rng.choice(wordings(chosen), 4, replace=False).tolist()
    return {
        "file_name": file_name,
        "split": split,
        "captions": captions,
        "content": asdict(chosen),
        "held_out": held_out(chosen),
    }

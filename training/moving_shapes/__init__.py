"""A world to learn from: short clips of moving shapes, with captions that only motion and order can tell.

There are three kinds of clip, 24 frames of 64 x 64 pixels each, H.264 at 12 frames per second:

- a *solo*: one shape does one thing ("a small red circle moves left and nothing else");
- a *sequence*: one shape does two things, one after the other ("a small red circle moves left, then it gets larger");
- a *passage*: a small shape passes behind or in front of a wall ("a small red circle moves up, passing behind a blue
  wall").

No single frame says which way a shape is going, whether it is growing or shrinking, what came first, or how large a
shape that grows or shrinks was at the start. `Content` holds what a caption says, `wordings` says it in several ways,
and `content` reads any of these ways back, so that captions are compared by what they say and not by how.

The test split consists of contents that the other two never show (`held_out`), though they show any three parts of
each together.

A second world, "tiles", has other colours, shapes and words for the same events: for transfer between datasets.

    make_shapes("shapes", train=16000, validation=200, test=300, seed=0)
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    "green": (50, 205, 70),
    "blue": (60, 105, 250),
    "yellow": (240, 220, 50),
    "purple": (190, 50, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "ring", "cross")
SIZES = ("small", "large")
ACTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "gets larger",
    "shrink": "gets smaller",
    "blink": "blinks twice",
    "bounce": "bounces twice",
}
DIRECTIONS = ("left", "right", "up", "down")
RELATIONS = {"behind": "behind", "front": "in front of"}

# Whatever the wording, a part of a sentence has one place in it: a small model need not first learn to count.
_TEMPLATES = {
    "solo": (
        "{subject} {first}",
        "{subject} {first} and nothing else",
        "{subject} {first} in this clip",
        "{subject} {first}, that is all",
    ),
    "sequence": (
        "{subject} {first}, then it {second}",
        "{subject} {first} and then it {second}",
        "{subject} {first} and next it {second}",
        "{subject} {first} and after that {second}",
    ),
    "passage": (
        "{subject} {first}, passing {relation} a {wall} wall",
        "{subject} {first}, going {relation} a {wall} wall",
        "{subject} {first} and passes {relation} a {wall} wall",
        "{subject} {first} and goes {relation} a {wall} wall",
    ),
}
# How often each kind of clip is drawn.
KINDS = {"solo": 0.4, "sequence": 0.4, "passage": 0.2}


@dataclass(frozen=True)
class World:
    """What clips show, and the words for it: `sizes`, `actions` and `relations` by the names that `Content` has."""

    colours: dict[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    sizes: dict[str, str]
    actions: dict[str, str]
    relations: dict[str, str]
    templates: Mapping[str, Sequence[str]]


# No two worlds share a colour, a shape or a word for a size: a content, and a sentence, is of one world.
WORLDS = {
    "shapes": World(COLOURS, SHAPES, dict(zip(SIZES, SIZES, strict=True)), ACTIONS, RELATIONS, _TEMPLATES),
    "tiles": World(
        colours={
            "orange": (245, 140, 30),
            "cyan": (50, 220, 225),
            "pink": (250, 150, 190),
            "lime": (170, 235, 60),
            "grey": (150, 150, 150),
            "brown": (130, 75, 35),
        },
        shapes=("square", "triangle", "frame"),
        sizes={"small": "tiny", "large": "big"},
        actions={
            "left": "slides leftwards",
            "right": "slides rightwards",
            "up": "climbs",
            "down": "sinks",
            "grow": "swells",
            "shrink": "dwindles",
            "blink": "flashes two times",
            "bounce": "hops two times",
        },
        relations={"behind": "beneath", "front": "across"},
        templates={
            "solo": (
                "watch {subject} that {first}",
                "watch {subject} that {first} all alone",
                "watch {subject} that {first} from start to end",
                "watch {subject} that {first} once more",
            ),
            "sequence": (
                "watch {subject} that {first} before it {second}",
                "watch {subject} that {first} until it {second}",
                "watch {subject} that {first}, whereupon it {second}",
                "watch {subject} that {first} and finally {second}",
            ),
            "passage": (
                "watch {subject} that {first} {relation} a {wall} beam",
                "watch {subject} that {first} right {relation} a {wall} beam",
                "watch {subject} that {first}, moving {relation} a {wall} beam",
                "watch {subject} that {first} straight {relation} a {wall} beam",
            ),
        },
    ),
}


@dataclass(frozen=True)
class Content:
    """What a caption says: a shape, its size at the start, and one or two `actions`; of a passage, a small shape, one
    direction as its action, a `relation` ("behind" or "front") and the colour of the `wall` that it passes."""

    colour: str
    shape: str
    size: str
    actions: tuple[str, ...]
    relation: str | None = None
    wall: str | None = None

    @property
    def kind(self) -> str:
        if self.relation is not None:
            return "passage"
        return "solo" if len(self.actions) == 1 else "sequence"

    @property
    def world(self) -> World:
        return next(each for each in WORLDS.values() if self.shape in each.shapes)


def all_contents(world: str = "shapes") -> list[Content]:
    """Every content of a world: solos, sequences, passages."""
    colours, shapes = WORLDS[world].colours, WORLDS[world].shapes
    things = list(itertools.product(colours, shapes, SIZES))
    one_or_two = [(action,) for action in ACTIONS] + list(itertools.permutations(ACTIONS, 2))
    alone = [Content(*thing, actions) for actions in one_or_two for thing in things]
    passages = [
        Content(colour, shape, "small", (direction,), relation, wall)
        for colour, wall in itertools.permutations(colours, 2)
        for shape, direction, relation in itertools.product(shapes, DIRECTIONS, RELATIONS)
    ]
    return alone + passages


def held_out(content: Content) -> bool:
    """Whether only the test split may show `content`: an eighth of all, so chosen that training shows any three of its
    parts (colour, shape, size, first action; second action, or relation and wall) together in a clip of its kind."""
    world = content.world
    parts: list[tuple[Iterable[str], str | None]] = [
        (world.colours, content.colour),
        (world.shapes, content.shape),
        (world.sizes, content.size),
        *((world.actions, action) for action in content.actions),
        (world.relations, content.relation),
        (world.colours, content.wall),
    ]
    return sum(list(names).index(name) for names, name in parts if name is not None) % 8 == 0


# ---------------------------------------------------------------------------------------------------- content <-> words


def wordings(content: Content) -> list[str]:
    """Every way to say `content`."""
    world = content.world
    return [
        template.format(
            subject=f"a {world.sizes[content.size]} {content.colour} {content.shape}",
            first=world.actions[content.actions[0]],
            second=world.actions[content.actions[-1]],
            relation=world.relations.get(content.relation or ""),
            wall=content.wall,
        )
        for template in world.templates[content.kind]
    ]


def content(caption: str) -> Content | None:
    """What `caption` says, or `None` where it is no sentence of any of the worlds.

    Capitals, a final full stop, the space before punctuation and "the" for "a" do not matter; everything else does.
    """
    text = re.sub(r"\s+", " ", re.sub(r"\s*([,.])", r"\1", caption.lower())).strip().removesuffix(".")
    text = re.sub(r"\bthe\b", "a", text)
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _PATTERNS)), None)
    if match is None:
        return None
    said = match.groupdict()
    actions = tuple(_MEANING[said[name]] for name in ("first", "second") if name in said)
    relation = _MEANING.get(said.get("relation", ""))
    result = Content(said["colour"], said["shape"], _MEANING[said["size"]], actions, relation, said.get("wall"))
    return result if result in _EVERYTHING else None


def _sentence_patterns() -> Iterator[re.Pattern]:
    def one_of(name: str, words) -> str:
        return f"(?P<{name}>{'|'.join(map(re.escape, words))})"

    for world in WORLDS.values():
        for template in itertools.chain(*world.templates.values()):
            subject = f"a {one_of('size', world.sizes.values())} {one_of('colour', world.colours)}"
            yield re.compile(
                template.format(
                    subject=f"{subject} {one_of('shape', world.shapes)}",
                    first=one_of("first", world.actions.values()),
                    second=one_of("second", world.actions.values()),
                    relation=one_of("relation", world.relations.values()),
                    wall=one_of("wall", world.colours),
                )
            )


_PATTERNS = tuple(_sentence_patterns())
_MEANING = {
    words: meaning
    for world in WORLDS.values()
    for table in (world.sizes, world.actions, world.relations)
    for meaning, words in table.items()
}
_EVERYTHING = frozenset(itertools.chain(*map(all_contents, WORLDS)))
_PALETTE = {name: rgb for world in WORLDS.values() for name, rgb in world.colours.items()}


# ------------------------------------------------------------------------------------------------------ content -> clip


def render(content: Content, rng: np.random.Generator) -> np.ndarray:
    """Draws `content`: `uint8` frames (24, 64, 64, 3). `rng` chooses place, pace, shade and background."""
    # A dusky scene: greener towards the ground, bluer towards one side, redder with time. Video Swin has no absolute
    # positions; here every place and moment looks a little different, which a small model learns order from.
    light: np.ndarray = np.zeros((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    light += rng.uniform(10, 20) + np.linspace(0, 70, NUM_FRAMES)[:, None, None, None] * np.array([1, 0, 0])
    light[..., 1] += np.linspace(0, 75, FRAME_SIZE)[:, None]
    light[..., 2] += np.linspace(0, 75, FRAME_SIZE)
    frames = light + rng.normal(0, 2, (FRAME_SIZE, FRAME_SIZE, 1)).astype(np.float32)
    if content.kind == "passage":
        layers = _passage(content, rng)
    else:
        layers = [(content.colour, _draw_shape(content.shape, *_act_out(content, rng)))]
    for colour, opacity in layers:
        shade = np.clip(np.array(_PALETTE[colour]) + rng.uniform(-12, 12, 3), 0, 255)
        frames = frames + opacity[..., None] * (shade.astype(np.float32) - frames)
    return frames.round().clip(0, 255).astype(np.uint8)


def _act_out(content: Content, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """x, y and radius in pixels, and visibility, of one shape over the frames."""
    turn = int(rng.integers(11, 14)) if len(content.actions) == 2 else NUM_FRAMES
    size = (9 if content.size == "small" else 15) * rng.uniform(0.95, 1.05)
    parts: list[np.ndarray] = []
    for action, length in zip(content.actions, (turn, NUM_FRAMES - turn), strict=False):
        x, y, radius = parts[-1][:3, -1] if parts else (0.0, 0.0, size)
        parts.append(_act(action, np.arange(1, length + 1) / length, x, y, radius, rng))
    x, y, radius, visible = np.concatenate(parts, axis=1)
    return _place(x, radius, rng), _place(y, radius, rng), radius, visible


def _act(action: str, u: np.ndarray, x: float, y: float, radius: float, rng: np.random.Generator) -> np.ndarray:
    """What an action does over its time `u` in (0, 1], from where the last one ended: x, y, radius, visibility."""
    # As far as there is room.
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


def _place(path: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`path`, moved to a random place where the shape stays within the frame (to the middle if there is none)."""
    low, high = np.max(radius - path) + 1, FRAME_SIZE - 1 - np.max(radius + path)
    return path + (rng.uniform(low, high) if high > low else (low + high) / 2)


def _passage(content: Content, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """The passing shape and the wall, the farther one first."""
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
    """How much of each pixel a shape covers: (T, H, W) in [0, 1], from its signed distance."""
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
    output_dir: str | Path,
    *,
    train: int = 16000,
    validation: int = 200,
    test: int = 300,
    seed: int = 0,
    world: str = "shapes",
    kinds: Sequence[str] = tuple(KINDS),
) -> Path:
    """Writes a VideoFolder of moving shapes: `<split>/<number>.mp4` and `metadata.jsonl`.

    A line of `metadata.jsonl` has `file_name`, `split`, `captions` (the wordings of one content) and `content` (what
    they say). The same numbers and seed give the same bytes; a larger split begins with the clips of a smaller one.

    Args:
        output_dir: a folder that does not exist or is empty.
        train, validation, test: number of clips of each split.
        seed: seed of everything random.
        world: one of `WORLDS`.
        kinds: some of `KINDS`, which keep their relative frequencies.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: a negative number of clips, or none at all; a world or kind that does not exist.
        FileExistsError: `output_dir` holds something already.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    if min(sizes.values()) < 0 or not sum(sizes.values()) or seed < 0:
        raise ValueError(f"Expected numbers of clips >= 0, not all 0, and a seed >= 0; got {sizes} and seed {seed}.")
    if world not in WORLDS:
        raise ValueError(f"No world {world!r}; there are {', '.join(WORLDS)}.")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"Expected some of the kinds {', '.join(KINDS)}; got {', '.join(kinds) or 'none'}.")
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty: name another folder, or empty this one.")

    known: list[Content] = []
    unseen: list[Content] = []
    for each in all_contents(world):
        (unseen if held_out(each) else known).append(each)
    weights = {kind: weight for kind, weight in KINDS.items() if kind in kinds}
    clips = [(split, number) for split, size in sizes.items() for number in range(size)]
    console = Console(stderr=True)
    lines = []
    for split, number in track(clips, "Moving shapes", console=console, disable=not console.is_terminal):
        rng = np.random.default_rng([seed, list(sizes).index(split), number])
        line = _write_example(output_dir, split, number, unseen if split == "test" else known, weights, rng)
        lines.append(json.dumps(line) + "\n")
    # Written last, so that a folder with this file is complete.
    (output_dir / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return output_dir


def _write_example(
    folder: Path,
    split: str,
    number: int,
    contents: list[Content],
    kinds: dict[str, float],
    rng: np.random.Generator,
) -> dict:
    kind = rng.choice(list(kinds), p=[weight / sum(kinds.values()) for weight in kinds.values()])
    of_kind = [each for each in contents if each.kind == kind]
    chosen = of_kind[rng.integers(len(of_kind))]
    file_name = f"{split}/{number:06d}.mp4"
    (folder / split).mkdir(parents=True, exist_ok=True)
    write_clip(folder / file_name, render(chosen, rng))
    return {
        "file_name": file_name,
        "split": split,
        "captions": wordings(chosen),
        "content": asdict(chosen),
    }

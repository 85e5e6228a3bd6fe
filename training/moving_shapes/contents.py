"""What clips of moving shapes can show, and the sentences for it."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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

# Every part has the same position in all wordings, so that a small model need not learn to count words first.
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
# Kind of clip -> its relative frequency.
KINDS = {"solo": 0.4, "sequence": 0.4, "passage": 0.2}


@dataclass(frozen=True)
class World:
    """
    What the clips of a world show, and the words for it.

    Args:
        colours: name -> RGB.
        shapes: names of the shapes.
        sizes, actions, relations: name in `Content` -> words.
        templates: kind of clip -> sentences with `{subject}`, `{first}`, `{second}`, `{relation}` and `{wall}`.
    """

    colours: dict[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    sizes: dict[str, str]
    actions: dict[str, str]
    relations: dict[str, str]
    templates: Mapping[str, Sequence[str]]


# No two worlds share a colour, a shape or a word for a size: a content, or a sentence, belongs to one world.
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
    """
    The meaning of a caption.

    Args:
        colour, shape: of the moving shape.
        size: its size at the start, "small" or "large"; in a passage always "small".
        actions: one or two of `ACTIONS`; in a passage one of `DIRECTIONS`.
        relation: of a passage, "behind" or "front": how the shape passes the wall.
        wall: of a passage, the colour of the wall.
    """

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
    """All contents of a world: solos, sequences, passages."""
    colours, shapes = WORLDS[world].colours, WORLDS[world].shapes
    subjects = list(itertools.product(colours, shapes, SIZES))
    one_or_two = [(action,) for action in ACTIONS] + list(itertools.permutations(ACTIONS, 2))
    without_wall = [Content(*subject, actions) for actions in one_or_two for subject in subjects]
    passages = [
        Content(colour, shape, "small", (direction,), relation, wall)
        for colour, wall in itertools.permutations(colours, 2)
        for shape, direction, relation in itertools.product(shapes, DIRECTIONS, RELATIONS)
    ]
    return without_wall + passages


def held_out(content: Content) -> bool:
    """
    Whether `content` is reserved for the test split, as one eighth of all contents are.

    The training split shows any three parts of a held-out content (colour, shape, size, first action; second action, or
    relation and wall) together in a clip of the same kind, but never all of them.
    """
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


def wordings(content: Content) -> list[str]:
    """All sentences that express `content`."""
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
_NAME_OF_WORDS = {
    words: name
    for world in WORLDS.values()
    for table in (world.sizes, world.actions, world.relations)
    for name, words in table.items()
}
_ALL_CONTENTS = frozenset(itertools.chain(*map(all_contents, WORLDS)))


def content(caption: str) -> Content | None:
    """
    The content that `caption` expresses, or `None` if it is not a sentence of any world.

    Upper case, a final full stop, space before punctuation and "the" instead of "a" are ignored; every other difference
    matters.
    """
    text = re.sub(r"\s+", " ", re.sub(r"\s*([,.])", r"\1", caption.lower())).strip().removesuffix(".")
    text = re.sub(r"\bthe\b", "a", text)
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _PATTERNS)), None)
    if match is None:
        return None
    parts = match.groupdict()
    actions = tuple(_NAME_OF_WORDS[parts[name]] for name in ("first", "second") if name in parts)
    relation = _NAME_OF_WORDS.get(parts.get("relation", ""))
    result = Content(
        parts["colour"], parts["shape"], _NAME_OF_WORDS[parts["size"]], actions, relation, parts.get("wall")
    )
    return result if result in _ALL_CONTENTS else None

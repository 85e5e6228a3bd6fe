"""Moving shapes: captions are parsed to their contents, clips show them, and scores compare contents."""

import filecmp
import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from swinbert.processing import decode_video
from swinbert.training import moving_shapes
from swinbert.training.moving_shapes import (
    WORLDS,
    Content,
    all_contents,
    content,
    held_out,
    make_shapes,
    render,
    wordings,
)
from swinbert.training.moving_shapes.scoring import exact_content, exact_content_scores

SOLO = Content("red", "circle", "small", ("left",))
SEQUENCE = Content("red", "circle", "small", ("left", "grow"))
PASSAGE = Content("red", "circle", "small", ("left",), relation="behind", wall="blue")


def drawn(what: Content, seed: int = 0) -> np.ndarray:
    return render(what, np.random.default_rng(seed))


def centre(frame: np.ndarray, colour: str) -> np.ndarray:
    """Mean (row, column) of the pixels that are nearest to a colour, and their number."""
    distance = np.abs(frame.astype(int) - moving_shapes.COLOURS[colour]).sum(-1)
    rows, columns = np.nonzero(distance < 90)
    return np.array([rows.mean(), columns.mean(), len(rows)])


@pytest.mark.parametrize("world", WORLDS)
def test_every_wording_is_parsed_to_its_content(world):
    # Hence no two contents share a wording.
    for what in random.Random(0).sample(all_contents(world), 60):
        captions = wordings(what)
        assert len(set(captions)) == len(captions) == 4
        assert {content(caption) for caption in captions} == {what}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A small red circle moves left.", SOLO),
        ("a small red circle moves left and nothing else", SOLO),
        ("A small red circle moves left , then it gets larger .", SEQUENCE),
        ("the small red circle moves left and after that gets larger", SEQUENCE),
        ("a small red circle moves left, passing behind the blue wall", PASSAGE),
        ("a small red circle gets larger, then it moves left", replace(SEQUENCE, actions=("grow", "left"))),
    ],
)
def test_content(caption, expected):
    assert content(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a small red circle",
        "a red circle moves left, then it gets larger",
        "a small red circle moves left, then it moves left",
        "a small red red circle moves left, then it gets larger",
        "a small red circle moves left, then it gets larger and larger",
        "a small red circle moves left and nothing",
        "a small red circle gets larger and passes behind a blue wall",
        "a large red circle moves left and passes behind a blue wall",
        "a small red circle moves left and passes behind a red wall",
        "a small red circle moves left and passes a blue wall",
        "a small red circle moves left and passes behind a wall",
    ],
)
def test_malformed_sentences_have_no_content(caption):
    assert content(caption) is None


@pytest.mark.parametrize("world", WORLDS)
def test_training_shows_any_three_parts_of_held_out_contents(world):
    known: set[tuple] = set()
    unseen: set[tuple] = set()
    for what in all_contents(world):
        parts = (what.colour, what.shape, what.size, *what.actions, what.relation, what.wall)
        triples = {(what.kind, each) for each in itertools.combinations(enumerate(parts), 3)}
        (unseen if held_out(what) else known).update(triples)
    assert unseen and unseen <= known
    share = sum(map(held_out, all_contents(world))) / len(all_contents(world))
    assert share == pytest.approx(1 / 8, abs=0.01)


def test_clips_show_their_contents():
    moves = drawn(SEQUENCE)
    start, turn, end = (centre(moves[t], "red") for t in (0, 10, 23))
    assert turn[1] < start[1] - 20  # to the left ...
    assert turn[2] == pytest.approx(start[2], rel=0.15)
    assert end[2] > 2.3 * start[2]  # ... and then larger
    assert end[1] == pytest.approx(turn[1], abs=4)

    blinks = drawn(replace(SEQUENCE, actions=("blink", "up")))
    seen = [np.abs(frame.astype(int) - moving_shapes.COLOURS["red"]).sum(-1).min() < 90 for frame in blinks]
    assert not all(seen[:13]) and all(seen[14:])


def test_only_walls_in_front_hide_the_shape():
    for seed in range(5):
        behind, front = (drawn(replace(PASSAGE, relation=relation), seed) for relation in ("behind", "front"))
        red = [[(np.abs(f.astype(int) - [225, 40, 40]).sum(-1) < 90).sum() for f in clip] for clip in (behind, front)]
        assert min(red[0]) < 0.3 * max(red[0])
        assert min(red[1]) > 0.8 * max(red[1])


@pytest.mark.parametrize("action", ["left", "up"])
def test_single_frames_do_not_show_the_direction(action):
    """In reverse order, the positions of a shape in a passage are those of the opposite passage."""
    opposite = {"left": "right", "up": "down"}[action]
    there, back = (drawn(replace(PASSAGE, relation="front", actions=(each,))) for each in (action, opposite))
    for frame, other in zip(there[::-1], back, strict=True):
        np.testing.assert_allclose(centre(frame, "red")[:2], centre(other, "red")[:2], atol=0.5)


def test_make_shapes(tmp_path):
    folder = make_shapes(tmp_path / "a", train=3, validation=1, test=2, seed=5)
    again = make_shapes(tmp_path / "b", train=4, validation=1, test=2, seed=5)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train"] * 3 + ["validation"] + ["test"] * 2
    for line in lines:
        clip, known = folder / line["file_name"], line["content"]
        frames, metadata = decode_video(clip)
        assert frames.shape == (24, 64, 64, 3)
        assert metadata.fps == 12
        assert clip.stat().st_size < 20_000
        assert filecmp.cmp(clip, again / line["file_name"], shallow=False)
        shown = Content(**{**known, "actions": tuple(known["actions"])})
        assert len(set(line["captions"])) == 4
        assert {content(caption) for caption in line["captions"]} == {shown}
        assert held_out(shown) == (line["split"] == "test")


def test_worlds_share_no_colours_shapes_and_words_of_size():
    first, second = (
        {*world.colours, *world.shapes, *world.sizes.values(), *world.actions.values()} for world in WORLDS.values()
    )
    assert not first & second


def test_shapes_of_the_second_world_differ_where_their_colour_does_not():
    drawings = [
        np.abs(drawn(Content("orange", shape, "large", ("blink",)))[-1].astype(int) - [245, 140, 30]).sum(-1) < 90
        for shape in WORLDS["tiles"].shapes
    ]
    for one, other in itertools.combinations(drawings, 2):
        assert (one ^ other).sum() > 40


def test_make_shapes_of_another_world_and_of_some_kinds(tmp_path):
    folder = make_shapes(tmp_path, train=8, validation=0, test=2, world="tiles", kinds=["sequence", "solo"])
    known = [json.loads(line)["content"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {each["shape"] for each in known} <= set(WORLDS["tiles"].shapes)
    assert not any(each["relation"] for each in known)


def test_unknown_worlds_and_kinds_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="'clouds'.*shapes, tiles"):
        make_shapes(tmp_path, train=1, world="clouds")
    for kinds in ([], ["duet"]):
        with pytest.raises(ValueError, match="solo, sequence, passage"):
            make_shapes(tmp_path, train=1, kinds=kinds)


def test_nonempty_folders_and_negative_numbers_are_an_error(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        make_shapes(tmp_path, train=1)
    with pytest.raises(ValueError, match="numbers of clips"):
        make_shapes(tmp_path / "x", train=-1)


# ------------------------------------------------------------------------------------------------------------- scoring


def test_exact_content_compares_meaning():
    reference = "a small red circle moves left, then it gets larger"
    captions = [
        "a small red circle moves left and after that gets larger",
        "a small red circle gets larger, then it moves left",
        "a",
    ]
    assert exact_content(captions, [reference] * 3) == [True, False, False]
    with pytest.raises(ValueError, match="moving shapes"):
        exact_content(["a"], ["a man is singing"])


def test_scores_apply_only_to_references_of_moving_shapes():
    ours, other = "a small red circle moves left", "a man is singing"
    captions = {"a": ours, "b": other}
    assert exact_content_scores(captions, {"a": [ours], "b": [ours]}) == {"exact": 1, "exact_content": 0.5}
    assert exact_content_scores({"a": ours}, {"a": [other]}) == {}
    with pytest.warns(UserWarning, match="1 of 2 references .*a man is singing"):
        assert exact_content_scores(captions, {"a": [ours], "b": [other]}) == {}

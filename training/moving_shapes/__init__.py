"""Moving shapes: datasets of short clips whose captions depend on motion and order, made for tests and small studies.

There are three kinds of clip, 24 frames of 64 x 64 pixels each, H.264 at 12 frames per second:

- a *solo*: one shape does one thing ("a small red circle moves left and nothing else");
- a *sequence*: one shape does two things, one after the other ("a small red circle moves left, then it gets larger");
- a *passage*: a small shape passes behind or in front of a wall ("a small red circle moves up, passing behind a blue
  wall").

A single frame does not show in which direction a shape moves, whether it grows or shrinks, which action came first, or
the size at the start of a shape that grows or shrinks. `Content` is the meaning of a caption, `wordings` expresses it
in several sentences, and `content` parses any of them, so that captions are compared by meaning instead of words.

The test split consists of contents that the other splits never show (`held_out`), though the training split shows any
three parts of each together.

A second world, "tiles", has other colours, shapes and words for the same events: for transfer between datasets.

    make_shapes("shapes", train=16000, validation=200, test=300, seed=0)
"""

from swinbert.training.moving_shapes.contents import (
    COLOURS,
    KINDS,
    WORLDS,
    Content,
    all_contents,
    content,
    held_out,
    wordings,
)
from swinbert.training.moving_shapes.dataset import make_shapes
from swinbert.training.moving_shapes.rendering import render, render_scene, write_clip

__all__ = [
    "COLOURS",
    "KINDS",
    "WORLDS",
    "Content",
    "all_contents",
    "content",
    "held_out",
    "make_shapes",
    "render",
    "render_scene",
    "wordings",
    "write_clip",
]

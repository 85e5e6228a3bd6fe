"""How a film is cut into windows, what is refused, and neighbours with the same caption, merged."""

from fractions import Fraction

import pytest
from encoded_clips import GROUPS, encode

from swinbert.captioning import Caption, Segmentation, merge_segments
from swinbert.captioning.segments import part_between, plan_windows, word_overlap
from swinbert.processing import VideoDecodeError, VideoReader


def cut(path, start=None, end=None, **arguments):
    """(first, last) of each window, and the times of their ends."""
    with VideoReader(path) as reader:
        part = part_between(reader.name, reader.timeline, start, end)
        windows = plan_windows(reader.timeline, Segmentation(**arguments), part, start or 0.0)
        times = [reader.timeline.time_of(window.start) for window in windows]
        return [(window.start, window.stop) for window in windows], [*times, reader.timeline.time_of(windows[-1].stop)]


@pytest.fixture(scope="module")
def gap(tmp_path_factory):
    """30 frames in 3 s, nothing for five minutes, and 30 frames more."""
    pts = [*range(0, 3000, 100), *range(303_000, 306_000, 100)]
    path = tmp_path_factory.mktemp("gap") / "gap.mp4"
    return encode(path, range(60), options=GROUPS, pts=pts, time_base=Fraction(1, 1000))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"length": 0.5}, [(0, 15), (15, 30), (30, 45), (45, 60)]),
        ({"length": 0.75}, [(0, 23), (23, 45), (45, 60)]),
        ({"length": 9.0}, [(0, 60)]),
        ({"length": 1.9}, [(0, 57), (57, 60)]),
        ({"length": 1.9, "min_segment": 0.2}, [(0, 60)]),
        ({"length": 1.9, "min_segment": 0.1}, [(0, 57), (57, 60)]),
        ({"length": 1.0, "stride": 0.5}, [(0, 30), (15, 45), (30, 60)]),
        ({"length": 0.5, "start": 0.5, "end": 1.2}, [(15, 30), (30, 36)]),
        ({"length": 0.5, "start": 0.51}, [(16, 31), (31, 46), (46, 60)]),
        ({"length": 0.01}, [(number, number + 1) for number in range(60)]),
    ],
)
def test_windows(numbered_clip, arguments, expected):
    assert cut(numbered_clip, **arguments)[0] == expected


def test_boundaries_are_times_of_frames(numbered_clip):
    windows, times = cut(numbered_clip, length=0.75)
    assert times == [0, float(Fraction(23, 30)), 1.5, 2.0]
    assert [stop for _, stop in windows[:-1]] == [start for start, _ in windows[1:]]


def test_windows_in_which_nothing_is_shown_are_left_out(gap):
    windows, times = cut(gap, length=1.0)
    assert windows == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60)]
    assert times == [0, 1, 2, 303, 304, 305, 306]  # the third is shown until the frame after the gap
    assert cut(gap, length=1.0, stride=0.5)[0][:6] == [(0, 10), (5, 15), (10, 20), (15, 25), (20, 30), (25, 30)]
    assert cut(gap, length=400.0)[0] == [(0, 60)]


def test_a_clip_of_one_frame(tmp_path):
    windows, times = cut(encode(tmp_path / "one.mp4", [7], rate=25), length=0.5, stride=0.25)
    assert windows == [(0, 1)] and times == [0, 0.04]


def test_a_range_beyond_the_film_is_refused(numbered_clip):
    with pytest.raises(VideoDecodeError, match="last frame is at"):
        cut(numbered_clip, start=5.0, length=1.0)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"length": 0}, "positive number of seconds"),
        ({"length": float("nan")}, "positive number of seconds"),
        ({"length": 2, "stride": 0}, "positive number of seconds"),
        ({"length": 2, "stride": 3}, "`stride` must not exceed"),
        ({"scenes": True, "stride": 3}, "`stride` must not exceed"),
        ({"scenes": True, "min_segment": 3, "max_segment": 2}, "`min_segment` must not exceed `max_segment`"),
        ({"length": 2, "min_segment": 3}, "`min_segment` must not exceed the length"),
        ({"length": 4, "max_segment": 3}, "the length of a window must not exceed `max_segment`"),
        ({"scenes": True, "length": 4}, "either into windows"),
        ({}, "either into windows"),
        ({"scenes": True, "threshold": -1}, "`threshold` must be a positive number"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint) as raised:
        Segmentation(**arguments)
    assert "\n" not in str(raised.value)


def test_segmentations_by_name():
    assert Segmentation.of(2) == Segmentation.of("2") == Segmentation(length=2.0)
    assert Segmentation.of("scenes", max_segment=9) == Segmentation(scenes=True, max_segment=9)
    for wrong in ("scene", "", None, []):
        with pytest.raises(ValueError, match='seconds or "scenes"'):
            Segmentation.of(wrong)
    with pytest.raises(ValueError, match="positive"):
        Segmentation.of("-1")
    assert Segmentation(length=2.0).settings == Segmentation(length=2.0, stride=2.0).settings
    assert Segmentation(scenes=True).settings == Segmentation(scenes=True, min_segment=0.6, max_segment=30.0).settings


# ------------------------------------------------------------------------------------------------------------- merging


def film(*segments, clip="a.mp4"):
    return [Caption(clip, start, end, text, score) for start, end, text, score in segments]


def test_neighbours_with_the_same_caption_become_one():
    segments = [
        *film((0, 2, "a dog", -1.0), (2, 3, "a dog", -4.0), (3, 4, "a cat", -1.0), (4, 5, "a dog", -1.0)),
        *film((5, 6, "a dog", -2.0), clip="b.mp4"),
    ]
    merged = list(merge_segments(segments))
    assert [(each.clip, each.start, each.end, each.text) for each in merged] == [
        ("a.mp4", 0, 3, "a dog"),
        ("a.mp4", 3, 4, "a cat"),
        ("a.mp4", 4, 5, "a dog"),
        ("b.mp4", 5, 6, "a dog"),
    ]
    assert merged[0].score == pytest.approx(-2.0)  # (2 * -1 + 1 * -4) / 3


def test_overlapping_windows_merge_and_gaps_do_not():
    assert [(each.start, each.end) for each in merge_segments(film((0, 2, "x", -1), (1, 3, "x", -1)))] == [(0, 3)]
    assert len(list(merge_segments(film((0, 2, "x", -1), (2.5, 3, "x", -1))))) == 2


def test_failures_and_whole_clips_are_left_alone():
    failed = [Caption("a.mp4", number, number + 1, error="broken") for number in range(2)]
    whole = [Caption("a.mp4", text="a dog", score=-1.0)] * 2
    assert list(merge_segments([*failed, *whole])) == [*failed, *whole]


def test_each_is_given_as_soon_as_it_is_known():
    taken = []

    def captions():
        for caption in film((0, 1, "x", -1), (1, 2, "x", -1), (2, 3, "y", -1), (3, 4, "z", -1)):
            taken.append(caption)
            yield caption

    merged = merge_segments(captions())
    assert next(merged).end == 2 and len(taken) == 3


def test_similar_captions_merge_if_asked_for():
    segments = film(
        (0, 1, "a man rides a horse", -2.0), (1, 2, "A man rides the horse", -1.0), (2, 3, "a man rides", -3.0)
    )
    assert word_overlap(segments[0].text, segments[1].text) == 4 / 5
    assert len(list(merge_segments(segments))) == 3
    both, last = merge_segments(segments, similarity=0.8)
    assert (both.text, both.start, both.end, both.score) == ("A man rides the horse", 0, 2, -1.5)
    assert last.text == "a man rides" and len(list(merge_segments(segments, similarity=0.6))) == 1

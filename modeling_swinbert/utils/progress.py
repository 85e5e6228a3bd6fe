"""Progress bars on stderr."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """Yields the items behind a progress bar on stderr, which is shown only if stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, disable=not console.is_terminal)

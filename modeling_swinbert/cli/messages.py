"""Messages, failures and progress of the commands, and silence of the libraries that they use."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def say(message: str) -> None:
    print(f"swinbert: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Ends the command with a message and exit code 1."""
    say(message)
    # `typer.Exit` is a RuntimeError, which callers may catch as a failure of something else.
    sys.exit(1)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Ends the command if a library is not installed, and names the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("swinbert"):
            raise
        fail(f"This needs {error.name}, which is not installed: pip install 'swinbert[{extra}]'.")


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """
    Lets SIGTERM and SIGHUP stop a command as Ctrl-C does, so that it removes temporary files and says how to go on. The
    exit code is 128 + the signal's number, that of Ctrl-C 130.
    """
    process, received = os.getpid(), 0

    def stop(number: int, frame: Any) -> None:
        nonlocal received
        if os.getpid() != process:  # a forked worker, which has nothing to say
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received = number
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP, and `nohup` ignores it
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    except SystemExit as ended:
        if received and ended.code == 130:
            sys.exit(128 + received)
        raise


@contextmanager
def going_on(message: str) -> Iterator[None]:
    """Says how to go on after Ctrl-C, SIGTERM or SIGHUP."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"Stopped. {message}")
        raise


def write_any_file_name() -> None:
    """Lets stdout and stderr take names of files that are not valid text."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


@contextmanager
def lines_and_progress(num_clips: int | None) -> Iterator[Callable[[str | None], None]]:
    """
    Prints the lines of clips on stdout, and shows a progress bar on stderr if that is a terminal.

    Args:
        num_clips: `None` if nobody knows how many there are.

    Yields:
        A function to call once for each clip, with its line, or `None` if it has none.
    """
    if num_clips is not None and num_clips < 2 or not sys.stderr.isatty():
        yield lambda line: None if line is None else print(line, flush=True)
        return

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)

    def write(line: str | None) -> None:
        if line is not None:
            # The bar must be cleared where stdout is the same terminal; rich would redirect the line to stderr.
            progress.stop()
            print(line, flush=True)
            progress.start()
        progress.advance(task)

    with progress:
        task = progress.add_task("Captioning", total=num_clips)
        yield write


def quiet_imports() -> None:
    """
    Silences warnings that optional libraries log when they are imported. Call it before importing transformers.

    transformers imports torchao wherever that is installed, and torchao uses a deprecated function of torch. PEFT
    imports bitsandbytes, which misses an optional kernel on processors with AVX-512 BF16.
    """
    for name in ("torch.utils._pytree", "torchao", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Silences progress bars, advice and warnings of libraries; warnings of ours become messages of one line."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module=r"swinbert\.")
    warnings.showwarning = lambda message, *_: say(str(message))

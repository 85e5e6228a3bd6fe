"""`python -m swinbert` is the `swinbert` command."""

from swinbert.cli import main

main()

"""`python -m examples.kv`."""

from examples.kv.cli import main

main()

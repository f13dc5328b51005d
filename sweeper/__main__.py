"""`python -m sweeper` is `sweeper`: for a cluster's node, where the interpreter is known and the PATH may not be."""

from sweeper.cli import main

main(prog_name="sweeper")

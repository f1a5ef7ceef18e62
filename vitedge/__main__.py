"""`python -m vitedge`."""

from vitedge.cli import main

main()

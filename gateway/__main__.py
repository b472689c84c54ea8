"""`python -m gateway` is the `penstock` command."""

from gateway.cli import main

main()

"""``python -m gradvac`` is the command line."""

from gradvac.cli import main

main()

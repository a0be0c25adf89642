"""``python -m gradvac`` is the command line."""

from gradvac.cli.main import main

main()

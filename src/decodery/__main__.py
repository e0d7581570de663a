"""`python -m decodery`."""

from decodery.cli.main import main

main()

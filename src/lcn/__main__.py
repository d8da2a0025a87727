"""`python -m lcn`."""

from lcn.cli import main

main()

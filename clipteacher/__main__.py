"""`python -m clipteacher` is the command line."""

from cli import main

main()

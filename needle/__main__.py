"""`python -m needle`: the same as the command `needle`. Next: cli.py."""

import sys

from needle.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m together`. Knows only where the command line is."""

import sys

from together.desktop.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

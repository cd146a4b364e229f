"""python -m ullsam COMMAND."""

import sys

from ullsam.cli import main

if __name__ == "__main__":
    sys.exit(main())

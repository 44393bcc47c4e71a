"""`python -m mvd_offline` and `accelerate launch -m mvd_offline` are the `mvd-offline` command."""

import sys

from mvd_offline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

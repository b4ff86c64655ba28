"""``python -m fairbilevel``."""

import sys

from fairbilevel.cli import main

if __name__ == "__main__":
    sys.exit(main())

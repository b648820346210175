"""`python -m cutslots COMMAND`, the same as `cutslots COMMAND`."""

import sys

from cutslots.cli import main as main

if __name__ == "__main__":
    sys.exit(main())

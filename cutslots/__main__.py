"""`python -m cutslots COMMAND`, the same as `cutslots COMMAND`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C during its imports ends it without a traceback too."""
    try:
        from cutslots.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

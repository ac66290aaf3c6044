"""``python -m lawful``."""

from lawful.cli.app import main

if __name__ == "__main__":
    main()

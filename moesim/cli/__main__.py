"""So that `python -m moesim.cli` works."""

from moesim.cli import main

if __name__ == "__main__":
    main()

"""`python -m diptych`: the command line, for where scripts are not on the path."""

from diptych.entrypoints.cli import main

if __name__ == "__main__":
    main()

"""`python -m toolscore`."""

from toolscore.cli.main import main

if __name__ == "__main__":
    main()

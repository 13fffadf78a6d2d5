"""`python scripts/browse.py` is `detzoo browse`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('browse')

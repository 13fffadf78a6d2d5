"""`python scripts/sweep.py` is `detzoo sweep`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('sweep')

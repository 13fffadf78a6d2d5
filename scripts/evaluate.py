"""`python scripts/evaluate.py` is `detzoo evaluate`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('evaluate')

"""`python scripts/train.py` is `detzoo train`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('train')

"""`python scripts/prepare_data.py` is `detzoo prepare`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('prepare')

"""`python scripts/export_weights.py` is `detzoo export`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('export')

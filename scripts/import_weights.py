"""`python scripts/import_weights.py` is `detzoo import`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('import')

"""`python scripts/export_images.py` is `detzoo export`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('export')

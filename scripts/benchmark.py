"""`python scripts/benchmark.py` is `detzoo benchmark`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('benchmark')

"""`python scripts/report.py` is `detzoo report`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('report')

"""`python scripts/make_proposals.py` is `detzoo proposals`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('proposals')

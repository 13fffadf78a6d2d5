"""`python scripts/make_anchors.py` is `detzoo anchors`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('anchors')

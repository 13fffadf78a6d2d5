"""`python scripts/predict.py` is `detzoo predict`."""

from detzoo.cli.main import run

if __name__ == '__main__':
    run('predict')

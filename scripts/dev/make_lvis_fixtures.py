"""Makes the golden numbers of tests/evaluation/test_federated.py with lvis-api, so that the tests do not need it.

  python -m pip install --no-deps --target=lvis_api lvis
  PYTHONPATH=lvis_api:tests/evaluation python scripts/dev/make_lvis_fixtures.py

tests/fixtures/lvis.json.gz was made with lvis 0.5.3, pycocotools 2.0.11 and numpy 2.4.6 on Python 3.11. In it:

    [{kind, ground_truth, detections, results}]: drawn cases, and lvis-api's 13 numbers by its names, -1 where there is none
"""

import gzip
import json
import pathlib
import tempfile

import numpy as np
from drawn_matches import federated_case

np.float = float  # which lvis-api uses, and numpy no longer has
from lvis import LVIS, LVISEval, LVISResults  # noqa: E402

PATH = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures' / 'lvis.json.gz'


def main() -> None:
    cases = []
    for seed, kind, tied in ((0, 'bbox', True), (1, 'bbox', False), (2, 'segm', False)):
        ground_truth, detections = federated_case(seed, masks=kind == 'segm', tied=tied)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, 'ground_truth.json')
            path.write_text(json.dumps(ground_truth))
            truth = LVIS(str(path))
        # With a box, a result would take its area from there, even when masks are compared.
        rows = [{key: value for key, value in row.items() if kind == 'bbox' or key != 'bbox'} for row in detections]
        evaluator = LVISEval(truth, LVISResults(truth, rows), kind)
        evaluator.run()
        results = {name: float(value) for name, value in evaluator.get_results().items()}
        cases.append(dict(kind=kind, ground_truth=ground_truth, detections=detections, results=results))
        print(kind, results)
    PATH.write_bytes(gzip.compress(json.dumps(cases).encode(), mtime=0))


if __name__ == '__main__':
    main()

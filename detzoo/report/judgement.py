"""The judgement of a run's detections: all that a report needs of them, in a hundredth of the space.

    ground truth, detections -> `judge` -> Judgement
    Judgement -> `write_judgement` -> results/RUN/judgement.json.xz -> `read_judgement`

The repository keeps judgements in place of detections, see `pack`. A report has the same numbers with either.
"""

import json
import lzma
import os
from typing import Any, NamedTuple

import numpy as np

from detzoo.evaluation import pr_curves, statistics
from detzoo.evaluation.calibration import Reliability, reliability
from detzoo.evaluation.confusion import Confusion, confuse
from detzoo.evaluation.statistics import ClassMatches, Matches
from detzoo.evaluation.tide import error_breakdown
from detzoo.files import as_path, new_file

JUDGEMENT = 'judgement.json.xz'


class Judgement(NamedTuple):
    """The detections of a run, compared with the ground truth.

    kind: 'bbox' if boxes were compared, 'segm' if masks were.
    precision: result of `evaluation.pr_curves`.
    matches: result of `statistics.match_images`.
    errors: result of `tide.error_breakdown`.
    confusion: result of `confusion.confuse`; None in a file of an older detzoo.
    reliability: result of `calibration.reliability`; None likewise.
    """

    kind: str
    precision: dict[str, dict[str, np.ndarray] | None]
    matches: Matches
    errors: dict[str, Any]
    confusion: Confusion | None
    reliability: Reliability | None


def judge(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> Judgement:
    """Compares detections with the ground truth.

    Args:
        truth: a COCO dict.
        detections: COCO results.
        kind: 'bbox' for boxes, 'segm' for masks.

    Raises:
        ValueError: see `coco_metrics`.
    """
    matches = statistics.match_images(truth, detections, kind)
    return Judgement(
        kind,
        pr_curves(truth, detections, kind),
        matches,
        error_breakdown(truth, detections, kind),
        confuse(truth, detections, kind, matches),
        reliability(matches),
    )


def write_judgement(path: str | os.PathLike, judgement: Judgement) -> None:
    """Writes a judgement as compressed JSON: complete or not at all, and the same bytes for the same judgement.

    Of single detections only the order of scores is kept, since AP and its tests depend on nothing else.
    """
    matches, confusion, found = judgement.matches, judgement.confusion, judgement.reliability
    content = dict(
        kind=judgement.kind,
        precision={
            name: None if curve is None else {key: values.tolist() for key, values in curve.items()}
            for name, curve in judgement.precision.items()
        },
        errors=judgement.errors,
        image_ids=matches.image_ids,
        objects=matches.objects.tolist(),
        classes=[
            dict(images=of.images.tolist(), hits=_to_bits(of.hits), ignored=_to_bits(of.ignored))
            for of in matches.classes
        ],
    )
    if confusion is not None:
        cells = np.argwhere(confusion.counts)
        content['confusion'] = dict(
            score_threshold=confusion.score_threshold,
            cells=[[*cell.tolist(), int(confusion.counts[tuple(cell)])] for cell in cells],
        )
    if found is not None:
        content['reliability'] = {key: values.tolist() for key, values in found._asdict().items()}
    text = json.dumps(content, allow_nan=False, separators=(',', ':'))
    with new_file(path) as scratch:
        scratch.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def read_judgement(path: str | os.PathLike, kind: str) -> Judgement:
    """Reads what `write_judgement` wrote.

    Args:
        path: path of the file.
        kind: kind that the judgement must have, 'bbox' or 'segm'.

    Raises:
        ValueError: the file is damaged, or its judgement is of the other kind.
    """
    try:
        content = json.loads(lzma.decompress(as_path(path).read_bytes()))
    except (lzma.LZMAError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({error}): restore it, or pack the sweep again') from error
    if content['kind'] != kind:
        raise ValueError(f'{path} judges {content["kind"]}, and the report asks for {kind}: pack the sweep again')
    classes = tuple(
        ClassMatches(
            scores=-np.arange(len(found['images']), dtype=np.float64),
            images=np.array(found['images'], np.int64),
            hits=_from_bits(found['hits']),
            ignored=_from_bits(found['ignored']),
        )
        for found in content['classes']
    )
    return Judgement(
        kind,
        {
            name: None if curve is None else {key: np.array(values) for key, values in curve.items()}
            for name, curve in content['precision'].items()
        },
        Matches(tuple(content['image_ids']), np.array(content['objects'], np.int64), classes),
        content['errors'],
        _read_confusion(content['confusion'], len(classes)) if 'confusion' in content else None,
        Reliability(**{key: np.array(values) for key, values in content['reliability'].items()})
        if 'reliability' in content
        else None,
    )


def _read_confusion(content: dict[str, Any], classes: int) -> Confusion:
    """Fills a confusion matrix with the cells that are not 0."""
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for row, column, count in content['cells']:
        counts[row, column] = count
    return Confusion(counts, content['score_threshold'])


def _to_bits(flags: np.ndarray) -> list[int]:
    """Packs the flags of each detection, [T, N] bool, into a number whose bit t is the flag at threshold t."""
    return (2 ** np.arange(len(flags)) @ flags).tolist()


def _from_bits(numbers: list[int]) -> np.ndarray:
    """Undoes `_to_bits`."""
    return (np.array(numbers, np.int64) >> np.arange(len(statistics.THRESHOLDS))[:, None] & 1).astype(bool)

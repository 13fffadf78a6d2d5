"""Average precision of detections, as the benchmarks define it."""

from detzoo.evaluation.coco import (
    class_agnostic,
    coco_metrics,
    format_table,
    pr_curves,
    read_detections,
    write_detections,
)
from detzoo.evaluation.recall import format_recall, is_recall, object_recall, recall_numbers
from detzoo.evaluation.voc import format_voc_table, voc_metrics

__all__ = [
    'class_agnostic',
    'coco_metrics',
    'format_recall',
    'format_table',
    'format_voc_table',
    'is_recall',
    'object_recall',
    'pr_curves',
    'read_detections',
    'recall_numbers',
    'voc_metrics',
    'write_detections',
]

"""Average precision of detections, as the benchmarks define it."""

from detzoo.evaluation.coco import (
    class_agnostic,
    coco_metrics,
    format_table,
    pr_curves,
    read_detections,
    write_detections,
)

__all__ = ['class_agnostic', 'coco_metrics', 'format_table', 'pr_curves', 'read_detections', 'write_detections']

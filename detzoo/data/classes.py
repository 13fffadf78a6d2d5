"""Data sets under other classes than their own: those of a detector that knows more, or knows them by other names.

dataset -> with_classes  -> with labels of the detector's classes
        -> with_labelled -> and images behind it of which only a label is used
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detzoo.data.records import Dataset
from detzoo.errors import DataError, listed


class RelabelledRecords(Sequence):
    """The records of a split with other labels; used like `Records`."""

    def __init__(self, records: Sequence, labels: np.ndarray):
        """Takes the records, and the [k] new label of each of the data's own classes."""
        self._records, self._labels = records, labels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return record | {'labels': self._labels[record['labels']]}


def with_classes(dataset: Dataset, class_names: Sequence[str], renamed: Mapping[str, str]) -> Dataset:
    """Gives a data set the classes of a detector.

    Args:
        dataset: a split.
        class_names: [K] names of the detector's classes; () leaves the data set as it is.
        renamed: {name in the data: name in class_names} of classes that have two.

    Returns:
        the split with labels 0..K-1 and category ids 1..K.

    Raises:
        DataError: a class of the data is none of the detector's, or images are annotated for some of the classes (LVIS).
    """
    if not class_names:
        return dataset
    if dataset.frequencies is not None:
        raise DataError(
            f'data set {dataset.name!r} says for each image which of its own classes are annotated: leave data.class_names empty'
        )
    labels = {name: label for label, name in enumerate(class_names)}
    ours = [renamed.get(name, name) for name in dataset.class_names]
    unknown = [name for name in ours if name not in labels]
    if unknown:
        raise DataError(
            f'data set {dataset.name!r} has classes that are not in data.class_names: {listed(unknown, 5)}; '
            'name them there, or say in data.renamed what they are called'
        )
    records = RelabelledRecords(dataset.records, np.array([labels[name] for name in ours]))
    return dataset._replace(
        class_names=tuple(class_names), category_ids=tuple(range(1, len(labels) + 1)), records=records
    )


class JoinedRecords(Sequence):
    """The records of two splits, one after the other; used like `Records`."""

    def __init__(self, first: Sequence, second: Sequence):
        """Takes the records of both."""
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> dict[str, Any]:
        behind = index - len(self._first)
        return self._first[index] if behind < 0 else self._second[behind]


def with_labelled(dataset: Dataset, labelled: Dataset) -> Dataset:
    """Adds images of which only a label is known, that of their first object (YOLO9000, 1612.08242, section 4).

    Args:
        dataset: a split with boxes.
        labelled: a split with the same classes.

    Raises:
        DataError: the classes differ.
    """
    if labelled.class_names != dataset.class_names:
        raise DataError(
            f'data sets {dataset.name!r} and {labelled.name!r} have different classes: set data.class_names to the names of '
            'the classes of both'
        )
    return dataset._replace(records=JoinedRecords(dataset.records, labelled.records), labelled=len(labelled.records))

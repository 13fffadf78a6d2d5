"""The beginning of a report: the question and the main results.

Findings -> `title_of`, `question_blocks`: the experiment's docstring
  -> `summary_blocks`: how many runs finished, which group is best, and which differences are significant
"""

from collections.abc import Sequence
from typing import Any

from detzoo.errors import listed
from detzoo.report.document import Items, Paragraph, Verbatim
from detzoo.report.findings import SIGNIFICANT, Findings, Pair
from detzoo.report.text import NOT, OVER, counted, failure, name_of, percent, span
from detzoo.sweeps.store import FAILED, FINISHED

FEW = 4  # largest number of groups that a sentence names


def title_of(findings: Findings) -> str:
    """Returns the question of the experiment, the first paragraph of its docstring, or else its name."""
    return ' '.join(findings.sweep['docstring'].strip().partition('\n\n')[0].split()) or findings.sweep['experiment']


def question_blocks(findings: Findings) -> list[Any]:
    """Returns the docstring of the experiment without its first paragraph."""
    blocks: list[Any] = []
    for part in findings.sweep['docstring'].strip().split('\n\n')[1:]:
        lines = part.strip('\n').splitlines()
        if lines and all(line.startswith('    ') for line in lines):
            blocks.append(Verbatim('\n'.join(line[4:] for line in lines)))
        elif lines:
            blocks.append(Paragraph(' '.join(part.split())))
    return blocks


def summary_blocks(findings: Findings) -> list[Any]:
    """Says how many runs finished, which group is best, and which differences are significant."""
    runs = [run for group in findings.groups for run in group.runs]
    finished, failed = ([run for run in runs if run.status == status] for status in (FINISHED, FAILED))
    missing = [run for run in runs if run.status not in (FINISHED, FAILED)]
    counts = [f'{len(finished)} of {counted(len(runs), "run")} finished']
    counts += [f'{len(failed)} failed'] if failed else []
    counts += [f'{len(missing)} did not run yet'] if missing else []
    blocks: list[Any] = [Paragraph(', '.join(counts) + '.')]
    if failed:
        blocks.append(Items([failure(run) for run in failed]))
    if missing:
        blocks.append(Paragraph(f'Not run yet: {listed(run.run for run in missing)}.'))
    if findings.forgotten:
        blocks.append(Paragraph(f'Left out because the experiment no longer has them: {listed(findings.forgotten)}.'))
    for truth in findings.images:
        blocks += _ranking(findings, truth)
    if findings.intervals:
        blocks.append(Paragraph(_caveat(findings)))
    return blocks


def _ranking(findings: Findings, truth: str) -> list[Paragraph]:
    """Says which group is best on a ground truth, and from which groups it differs."""
    groups = [group for group in findings.groups if group.truth == truth and group.name in findings.intervals]
    if not groups:
        return []
    metric, where = name_of(findings.judged), f' on {truth}' if len(findings.images) > 1 else ''
    best = max(groups, key=lambda group: findings.intervals[group.name].value)
    interval = findings.intervals[best.name]
    ends = span(interval.low, interval.high)
    size = f'{percent(interval.value)} (95 % interval over {OVER[best.over_images]}: {ends})'
    if len(groups) == 1:
        return [Paragraph(f'{best.name} has {metric} {size}{where}; there is nothing to compare it with.')]
    sentences = [f'Highest {metric}{where}: {best.name}, {size}.']
    names = {group.name for group in groups}
    for over_images, start, trained in ((False, '', ''), (True, 'Over images only, ', 'the trained ')):
        pairs = [
            pair for pair in findings.pairs if pair.over_images == over_images and {pair.group, pair.other} <= names
        ]
        mine = [pair for pair in pairs if best.name in (pair.group, pair.other)]
        if mine:
            sentences.append(f'{start}{trained}{best.name} is {_verdicts(best.name, mine)}.')
        if rest := [pair for pair in pairs if pair not in mine]:
            differ = sum(pair.differ for pair in rest)
            sentences.append(f'{start}{differ} of {counted(len(rest), "other pair")} can be told apart.')
    return [Paragraph(' '.join(sentences))]


def _verdicts(best: str, pairs: Sequence[Pair]) -> str:
    """Says from which groups the best one can be distinguished, and from which it cannot."""

    def others(differ: bool) -> list[str]:
        nearest_first = sorted(pairs, key=lambda pair: abs(pair.comparison.difference))
        return [
            f'{pair.other if pair.group == best else pair.group} ({abs(100 * pair.comparison.difference):.1f} less)'
            for pair in nearest_first
            if pair.differ == differ
        ]

    same, different = others(differ=False), others(differ=True)
    parts = []
    if len(different) > FEW:
        parts.append(f'distinguishable from {len(different)} others, of which {different[0]} is nearest')
    elif different:
        parts.append(f'distinguishable from {listed(different)}')
    if same:
        parts.append(f'{NOT} from {listed(same)}')
    return ', but '.join(parts)


def _caveat(findings: Findings) -> str:
    """Says what the intervals and p-values mean, and what they do not mean."""
    judged = [group for group in findings.groups if group.name in findings.intervals]
    single = [group.name for group in judged if group.over_images]
    sentences = []
    if len(single) < len(judged):
        sentences.append(
            'Intervals and p-values over images and trainings are about configurations: how they would do if they were trained '
            'again and judged on other images like these.'
        )
    if single:
        named = f' ({listed(single)})' if len(single) <= FEW else ''
        sentences.append(
            'Intervals and p-values over images only are about these trained networks on other images like these. They support no '
            'conclusion about methods: how much trainings vary is unknown for '
            f'{counted(len(single), "group")} with one seed{named}.'
        )
    if findings.pairs:
        comparisons = counted(len(findings.pairs), 'comparison')
        sentences.append(
            f'{NOT.capitalize()} means that p, adjusted by Holm for {comparisons}, is {SIGNIFICANT:.2f} or more; '
            'it does not mean equal.'
        )
    fewest = min(size['images'] for size in findings.images.values())
    # Images can be swapped in 2^images ways, and each way has a mirror image with the same |d*|.
    least = max(1 / (1 + findings.permutations), 2.0 ** (1 - fewest))
    if all(pair.over_images for pair in findings.pairs) and least * len(findings.pairs) >= SIGNIFICANT:
        sentences.append(
            f'Nothing can be distinguishable here: {counted(fewest, "image")} and {findings.permutations} permutations are too '
            'few for so many comparisons.'
        )
    return ' '.join(sentences)

"""The report of a sweep, in words, tables, figures and pictures.

    `findings.read_findings` -> Findings -> `sections` -> [document.Section]
      -> DIR/report.md, DIR/report.html, DIR/figures/

Both files have the same contents. The page is one file, with figures and pictures inside. The same store gives the same bytes.
"""

import os

from detzoo.files import AnyPath, write_text
from detzoo.report import plots
from detzoo.report.comparisons import comparison_blocks
from detzoo.report.confidence import confidence_blocks
from detzoo.report.confusions import confusion_blocks
from detzoo.report.costs import cost_blocks
from detzoo.report.document import Drawing, Section
from detzoo.report.figures import figure_blocks
from detzoo.report.findings import Findings, read_findings
from detzoo.report.markdown import to_markdown
from detzoo.report.pictures import assignment_blocks, picture_blocks
from detzoo.report.quality import class_blocks, error_blocks, precision_blocks, training_blocks
from detzoo.report.results import result_blocks
from detzoo.report.runs import difference_blocks, setup_blocks
from detzoo.report.summary import question_blocks, summary_blocks, title_of
from detzoo.report.webpage import to_html
from detzoo.visualize import write_image


def write_report(folder: str | os.PathLike, resamples: int = 1000) -> list[AnyPath]:
    """Writes report.html, report.md and figures/ into the folder of a sweep.

    Args:
        folder: see `store`.
        resamples: see `read_findings`.

    Returns:
        the two reports.

    Raises:
        FileNotFoundError, ValueError: see `read_findings`.
    """
    findings = read_findings(folder, resamples)
    written, folder = sections(findings), findings.store.folder
    drawings = [block for section in written for block in section.blocks if isinstance(block, Drawing)]
    drawn = {drawing.name: plots.svg(drawing.figure) for drawing in drawings}
    (folder / 'figures').mkdir(exist_ok=True)
    for drawing in drawings:
        write_text(folder / 'figures' / f'{drawing.name}.svg', drawn[drawing.name])
        write_image(folder / 'figures' / f'{drawing.name}.png', plots.picture(drawing.figure))
    title = title_of(findings)
    reports = {'report.html': to_html(title, written, drawn), 'report.md': to_markdown(title, written, folder)}
    for name, text in reports.items():
        write_text(folder / name, text)
    return [folder / name for name in reports]


def sections(findings: Findings) -> list[Section]:
    """Writes the sections of a report; sections without content are left out."""
    parts = {
        'Question': question_blocks,
        'Summary': summary_blocks,
        'Results': result_blocks,
        'Comparisons': comparison_blocks,
        'Figures': figure_blocks,
        'Cost of prediction': cost_blocks,
        'Training': training_blocks,
        'Precision and recall': precision_blocks,
        'Classes': class_blocks,
        'Errors': error_blocks,
        'Confusions': confusion_blocks,
        'Confidence': confidence_blocks,
        'Differences between runs': difference_blocks,
        'Pictures': picture_blocks,
        'Assignment': assignment_blocks,
        'Setup': setup_blocks,
    }
    written = [Section(title, write(findings)) for title, write in parts.items()]
    return [section for section in written if section.blocks]

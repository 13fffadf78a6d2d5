"""Shows a data set as one page, as training with a config would see it.

    detzoo browse --config=own_data:retinanet --config.data.name=birds --output=browse

Writes index.html into the folder: objects, classes and sizes of both splits; what the config drops and shrinks; how well its
anchors fit, and the objects that they fit worst; images with their annotations; training samples exactly as the network gets
them; images that are there twice; and the flags that would suit the data better. Nothing is trained, and no weights are read.
"""

import sys

from absl import logging

from detzoo.cli.config_flag import define_config
from detzoo.cli.paths import define_path

CONFIG = define_config()
OUTPUT = define_path('output', None, 'The folder for index.html.', required=True)
ERRORS = (ValueError,)  # a detector that its arguments do not fit


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    try:
        from detzoo.report.data_page import write_page
    except ModuleNotFoundError as error:
        if error.name not in ('jinja2', 'markupsafe', 'matplotlib'):
            raise
        sys.exit("error: pages need matplotlib and jinja2: pip install 'detzoo[plots]'")
    given = [argument for argument in sys.argv[1:] if not argument.lstrip('-').startswith('output')]
    command = ['detzoo', 'train', *given, f'--workdir=runs/{CONFIG.value.data.name}']
    print(write_page(CONFIG.value, OUTPUT.value, command))

"""The package. Exact versions that were tested together are in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'detzoo' / '__init__.py').read_text('utf-8'), re.M).group(1)
README = ROOT / 'README.md'

PLOTS = ['jinja2>=3.1', 'markupsafe', 'matplotlib>=3.9']  # jinja2 fills in a report's page, and markupsafe escapes it
CLUSTER = ['submitit>=1.5']

setup(
    name='detzoo',
    version=VERSION,
    description='Object detectors in JAX and Flax, side by side under controlled variables.',
    long_description=README.read_text('utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    author='The detzoo authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    entry_points={'console_scripts': ['detzoo = detzoo.cli.main:main']},
    # configs/ and experiments/ stand at the top of the repository, where they are read and edited. They are installed inside the
    # package, so that their names work anywhere: detzoo train --config=retinanet_shapes.
    packages=[*find_packages(include=['detzoo', 'detzoo.*']), 'detzoo.configs', 'detzoo.experiments'],
    package_dir={'detzoo.configs': 'configs', 'detzoo.experiments': 'experiments'},
    package_data={'detzoo.report': ['template.html']},
    install_requires=[
        'absl-py',
        'array_record',  # the file format of prepared data
        'chex',
        'flatbuffers',  # jax.export writes its files with it, and does not ask for it
        'flax>=0.12',
        'grain>=0.2.18',
        'hotcoco>=1.3,<2',  # COCO's metric, and its RLE in files; tested against pycocotools
        'importlib_resources',  # of TFDS, which doesn't ask for it
        'jax>=0.10',
        'ml_collections',
        'ml_dtypes',  # bfloat16 in weight files
        'numpy>=2',
        'opencv-python-headless>=4.10,<5',  # 5 has no reader of darknet's files
        'optax',
        'orbax-checkpoint>=0.12',
        'pillow>=10.1',
        'pycocotools>=2.0.8',  # masks as run lengths; the oracle of the metric's tests
        'pyyaml',  # YOLO's data.yaml; flax and others bring it anyway
        'rich',  # how far a sweep is
        'safetensors',
        'scipy',  # Student's t; jax brings it anyway
        'tensorboardX>=2.6',  # writes TensorBoard's files without TensorFlow
        'tensorflow-datasets>=4.9.10',  # works without TensorFlow
        'tqdm',
    ],
    extras_require={
        # Curves, figures and reports. Run by the tests.
        'plots': PLOTS,
        # The tests, on CPU; scripts/test.sh installs this and `tpu`. Installed and run on Python 3.11 and 3.12.
        'test': ['ipykernel', 'nbclient', 'pytest>=8', 'ruff', 'setuptools>=77', *PLOTS, *CLUSTER],
        # For working on the code: the hooks of .pre-commit-config.yaml. Installed on Python 3.12; the hooks run on 3.11.
        'dev': ['pre-commit', 'pytest>=8', 'ruff', *PLOTS],
        # Sweeps on a SLURM cluster. Run on one of two nodes; the tests run it with submitit's local processes.
        'cluster': CLUSTER,
        # Trainings as workers of Ray Train: docs/examples/ray_train.py. Run with Ray 2.60 and two workers on CPUs.
        'ray': ['ray[train]>=2.60'],
        # To train on TPU, and to compile for one without having one. Compiled for TPU, not run on one.
        'tpu': ['jax[tpu]'],
        # To train on NVIDIA GPUs. Run on an H200 with JAX 0.11.2 and its plugin for CUDA 13; see scripts/dev/gpu_check.sh.
        'cuda': ['jax[cuda13]'],
        # To run the notebooks. The tests run them, without JupyterLab.
        'notebooks': ['jupyterlab', 'nbclient', 'ipykernel', *PLOTS],
        # scripts/dev/check_parity.py and make_parity_fixtures.py: the same weights in torchvision. benchmark_peers.py also
        # runs what torch exports in ONNX Runtime.
        'parity': ['onnx', 'onnxruntime', 'torch', 'torchvision'],
    },
    classifiers=[
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)

"""The table of scripts/dev/gpu_check.sh, and the inputs that both sides of its comparison see."""

import importlib.util
import math

import numpy as np
import pytest
from tiny import ROOT


@pytest.fixture(scope='module')
def gpu_cases():
    spec = importlib.util.spec_from_file_location('gpu_cases', ROOT / 'scripts' / 'dev' / 'gpu_cases.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_compares_the_fastest_layout(gpu_cases, tmp_path):
    case = gpu_cases.Case('ssd300_vgg16', 'train', 8, 'float32')
    gpu_cases.write_row(tmp_path, case, 'eager channels last', milliseconds=30.0, peak_bytes=2**31)
    gpu_cases.write_row(tmp_path, case, 'eager channels first', milliseconds=25.0, peak_bytes=2**32)
    gpu_cases.write_row(tmp_path, case, 'compiled channels last', error='TimeoutError: late')
    gpu_cases.write_row(tmp_path, case, 'detzoo', milliseconds=20.0, peak_bytes=2**30, compile_seconds=41.6, busy=1)
    lines = gpu_cases.table(gpu_cases.read_rows(tmp_path)).splitlines()
    assert lines[2] == '| ssd300_vgg16 | train | 8 | float32 | 20.0* | 25.0 | - | 1.25 | - | 1.0 | 4.0 | 42 |'
    assert lines[-1] == 'compiled channels last ssd300_vgg16 train 8 float32: TimeoutError: late'
    assert lines[0].count('|') == lines[1].count('|') == lines[2].count('|')


def test_table_of_nothing_has_no_rows(gpu_cases, tmp_path):
    assert len(gpu_cases.table(gpu_cases.read_rows(tmp_path)).splitlines()) == 2


def test_cases_are_all_models_and_programs_and_begin_with_training(gpu_cases):
    cases = gpu_cases.all_cases(tiny=False)
    assert len(set(cases)) == len(cases) == 3 * 2 * len(gpu_cases.SIDES)
    assert cases[0] == ('retinanet_resnet50_fpn', 'train', 8, 'float32')


def test_pictures_have_objects_inside(gpu_cases):
    pictures = gpu_cases.draw_pictures(2, 96)
    assert pictures.images.shape == (2, 96, 96, 3) and pictures.images.dtype == np.uint8
    assert (pictures.boxes[..., 2:] - pictures.boxes[..., :2] >= 96 / 12 - 1e-4).all()
    assert pictures.boxes.min() >= 0 and pictures.boxes.max() <= 96
    assert pictures.masks[0, 0].mean() == pytest.approx(math.pi / 4, abs=0.01)


def test_timed_counts_no_warm_up(gpu_cases):
    calls = []
    result = gpu_cases.timed(lambda: calls.append(len(calls)), seconds=0)
    assert result['runs'] == 5 and len(calls) == 8
    assert 0 < result['least'] <= result['milliseconds']

"""Makes the files of tests/weights/test_weight_files.py with torch and safetensors, so that the tests do not need torch.

  pip install torch safetensors
  python scripts/dev/make_weight_file_fixtures.py

tests/fixtures/weights/ was made with torch 2.14.1 and safetensors 0.8.0 on Python 3.11. In it:

    zip.pth              a state dict in torch's format since 1.6
    legacy.pth           the same in torch's older format
    plain.safetensors    the same; safetensors shares no storage, and stores all arrays in C order
    expected.npz         NAME: each of its arrays, bfloat16 as float32; dtypes: 'NAME DTYPE' for each
    checkpoint.pth       {model, optimizer, epoch} with the same state dict, zip
    arguments.pth        {model, args} with an argparse.Namespace, zip: to be refused
"""

import argparse
import pathlib

import numpy as np
import safetensors.torch
import torch
from absl import app

FIXTURES = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures' / 'weights'


def make_module() -> torch.nn.Module:
    """Makes a convolution and a batch norm that has seen one batch."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    module(torch.randn(2, 3, 8, 8))
    return module


def make_state_dict() -> dict[str, torch.Tensor]:
    """Makes a module's state dict with its `_metadata`, and tensors of all dtypes and layouts."""
    tensors = make_module().state_dict()
    base = torch.randn(5, 6)
    tensors['half'] = torch.randn(7).half()
    tensors['brain'] = torch.randn(3, 2).bfloat16()
    tensors['double'] = torch.randn(2, 2, dtype=torch.float64)
    tensors['turned'] = base.T
    tensors['part'] = base[1:4, 1::2]
    tensors['tied'] = base
    tensors['channels_last'] = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors['parameter'] = torch.nn.Parameter(torch.randn(3))
    tensors['scalar'] = torch.tensor(-2.5)
    tensors['empty'] = torch.zeros(0, 4)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64):
        tensors[str(dtype).removeprefix('torch.')] = torch.tensor([3, 100, 17]).to(dtype)
    tensors['bool'] = torch.tensor([True, False, True])
    return tensors


def main(argv):
    del argv
    FIXTURES.mkdir(parents=True, exist_ok=True)
    tensors = make_state_dict()
    torch.save(tensors, FIXTURES / 'zip.pth')
    torch.save(tensors, FIXTURES / 'legacy.pth', _use_new_zipfile_serialization=False)
    separate = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    safetensors.torch.save_file(separate, FIXTURES / 'plain.safetensors', {'made by': 'torch'})

    dtypes = [f'{name} {str(tensor.dtype).removeprefix("torch.")}' for name, tensor in tensors.items()]
    arrays = {name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy() for name, x in tensors.items()}
    np.savez_compressed(FIXTURES / 'expected.npz', dtypes=dtypes, **arrays)

    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({'model': tensors, 'optimizer': optimizer.state_dict(), 'epoch': 3}, FIXTURES / 'checkpoint.pth')
    torch.save({'model': tensors, 'args': argparse.Namespace(lr=0.1)}, FIXTURES / 'arguments.pth')
    print(f'torch {torch.__version__}, safetensors {safetensors.__version__}, numpy {np.__version__}')


if __name__ == '__main__':
    app.run(main)

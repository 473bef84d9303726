"""Checkpoints for tests: valid, invalid and hostile ones."""

import io
import json
import os
import re
import struct
import zipfile

import torch

from mmws.checkpoint.authors_imagenet import resnet_shapes

ONLY_NAMES = {f'layer{stage}.{block}.conv2.weight': torch.empty(64, 64, 3, 3)
              for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)}


def shapes_of(**changes):
    """Return zeros in the shapes of the authors' ResNet-50; ``changes`` replaces a tensor, None removes it."""
    tensors = {f'module.{re.sub("gn", "bn", key)}': torch.zeros(1).expand(shape).contiguous()
               for key, shape in resnet_shapes(ONLY_NAMES)[1].items()}
    tensors.update({f'module.{key}': value for key, value in changes.items()})
    return {key: value for key, value in tensors.items() if value is not None}


CAFFE2 = {'conv1': 'branch2a', 'conv2': 'branch2b', 'conv3': 'branch2c', 'downsample': 'branch1'}


class Calls:
    """Object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_zip(tensors, replace=(), compress=zipfile.ZIP_STORED, byteorder=b'little'):
    """Return the bytes of torch.save, with bytes of its pickle replaced."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, 'w', compress) as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith('data.pkl') and replace:
                assert replace[0] in data
                data = data.replace(*replace)
            if not entry.filename.endswith('/byteorder'):
                target.writestr(entry.filename, data)
        target.writestr(f'{source.infolist()[0].filename.split("/")[0]}/byteorder', byteorder)  # torch 2.0 writes none
    return out.getvalue()


def safetensors(header, data=bytes(32)):
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


COMMAND = {'a': Calls(os.system, 'touch executed')}

"""Networks export to ONNX with free height and width and give the same image there (``pip install -e .[onnx]``)."""

import numpy as np
import pytest
import torch
from basicsr.archs import build_network

pytest.importorskip('onnxscript')
onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SMALLER = {'KDSRStudent': {'num_block': 3}}  # whose export takes long


@pytest.mark.parametrize(
    'network, channels',
    [
        ('Bicubic', 3),
        ('FSRCNN', 1),
        ('VDSR', 1),
        ('IDN', 1),
        ('CARN', 3),
        ('CARNM', 3),
        ('IMDN', 3),
        ('RFDN', 3),
        ('ERFDN', 3),
        ('KDSRStudent', 3),
    ],
)
@pytest.mark.parametrize('dynamo', [True, False], ids=['torch.export', 'torch.jit'])
def test_onnx_gives_the_same_image_at_another_size(tmp_path, network, channels, dynamo):
    options = {'num_in_ch': channels, 'num_out_ch': channels, 'upscale': 4, **SMALLER.get(network, {})}
    net = build_network({'type': network, **options}).eval()
    file, example = str(tmp_path / 'net.onnx'), torch.rand(1, channels, 24, 28)
    if dynamo:
        sides = {2: torch.export.Dim('height', min=16, max=2000), 3: torch.export.Dim('width', min=16, max=2000)}
        torch.onnx.export(net, (example,), file, dynamo=True, dynamic_shapes=(sides,))
    else:
        torch.onnx.export(
            net, (example,), file, dynamo=False, input_names=['lq'], dynamic_axes={'lq': {2: 'height', 3: 'width'}}
        )
    session = onnxruntime.InferenceSession(file)
    lq = torch.rand(1, channels, 33, 40)
    (sr,) = session.run(None, {session.get_inputs()[0].name: lq.numpy()})
    with torch.no_grad():
        assert np.abs(sr - net(lq).numpy()).max() < 2e-6


@pytest.mark.parametrize('dynamo', [True, False], ids=['torch.export', 'torch.jit'])
def test_onnx_keeps_the_transposed_convolution(tmp_path, dynamo):
    """Its runtimes are faster with it than with blocks."""
    net, file = build_network({'type': 'FSRCNN', 'upscale': 2}).eval(), str(tmp_path / 'net.onnx')
    torch.onnx.export(net, (torch.rand(1, 1, 24, 28),), file, dynamo=dynamo)
    assert [node.op_type for node in onnx.load(file).graph.node].count('ConvTranspose') == 1

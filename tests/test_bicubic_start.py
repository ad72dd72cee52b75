"""Networks that start as bicubic reduction or enlargement give that image first, and can learn more."""

import pytest
import torch
from torch.nn import functional as F

from pisr_plugin.archs.fsrcnn_arch import FSRCNN
from pisr_plugin.archs.pi_teacher_arch import PIEncoder, PITeacher
from pisr_plugin.cli.train import main as train
from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import CheckpointError
from pisr_plugin.utils.resize import imresize


def photo(scale: int, channels: int) -> torch.Tensor:
    noise = torch.rand(1, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(24 * scale, 24 * scale), mode='bicubic').clamp(0, 1)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_its_first_output_is_the_bicubic_image(scale, channels):
    encoder, gt = PIEncoder(num_in_ch=channels, upscale=scale, start='bicubic'), photo(scale, channels)
    error = (encoder(gt) - imresize(gt, 1 / scale))[..., 4:-4, 4:-4]  # the network pads with zeros
    assert error.square().mean().sqrt() < 0.01
    random = PIEncoder(num_in_ch=channels, upscale=scale)
    assert (random(gt) - imresize(gt, 1 / scale))[..., 4:-4, 4:-4].square().mean().sqrt() > 0.1


def test_all_other_channels_get_gradients_within_two_steps():
    encoder, gt = PIEncoder(num_in_ch=1, upscale=2, start='bicubic'), photo(2, 1)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (encoder(gt) - 1).square().mean().backward()
        optimizer.step()
    convs = [layer for layer in encoder[0] if isinstance(layer, torch.nn.Conv2d)]
    assert all((conv.weight.grad.flatten(1).norm(dim=1) > 0).all() for conv in convs)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('scale, tolerance', [(2, 0.01), (3, 0.02), (4, 0.02), (5, 0.03)])
def test_fsrcnn_begins_as_bicubic_enlargement(scale, tolerance, channels):
    options = {'upscale': scale, 'num_in_ch': channels, 'num_out_ch': channels, 's': 27}
    lq = imresize(photo(scale, channels), 1 / scale)
    wanted = imresize(lq, scale)
    edge = 4 * scale

    def error(net):
        return (net(lq) - wanted)[..., edge:-edge, edge:-edge].square().mean().sqrt()

    assert error(FSRCNN(**options, start='bicubic')) < tolerance < 0.1 < error(FSRCNN(**options))


def test_all_of_fsrcnn_learns_from_there():
    net, gt = FSRCNN(upscale=2, d=8, s=4, m=1, start='bicubic'), photo(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(imresize(gt, 1 / 2)) - gt).square().mean().backward()
        optimizer.step()
    assert all((p.grad.flatten(1).norm(dim=1) > 0).all() for p in net.parameters() if p.dim() == 4)


def test_it_needs_two_channels_for_each_of_the_image():
    with pytest.raises(ValueError, match='start: bicubic needs at least 6 channels'):
        PIEncoder(num_in_ch=3, upscale=2, s=5, start='bicubic')
    with pytest.raises(ValueError, match='start: bicubic needs at least 12 channels'):
        FSRCNN(upscale=4, num_in_ch=3, num_out_ch=3, s=11, start='bicubic')
    with pytest.raises(ValueError, match='start: unknown value'):
        PIEncoder(num_in_ch=1, upscale=2, start='bicubc')


def test_a_teacher_begins_with_a_trained_student_behind_it(tmp_path):
    sizes = {'upscale': 2, 'd': 8, 's': 4, 'm': 1}
    student = FSRCNN(**sizes)
    checkpoint.save_atomic({'params': student.state_dict()}, tmp_path / 'net_g.pth')
    teacher = PITeacher(upscale=2, decoder={'type': 'FSRCNN', **sizes}, encoder={'start': 'bicubic'})
    encoder = {key: value.clone() for key, value in teacher.encoder.state_dict().items()}
    assert checkpoint.load_network(teacher, tmp_path / 'net_g.pth') == []
    assert all(torch.equal(value, encoder[key]) for key, value in teacher.encoder.state_dict().items())
    gt = photo(2, 1)
    error = (teacher(gt).sr - student(imresize(gt, 1 / 2)))[..., 16:-16, 16:-16]
    assert error.abs().max() < 0.02
    other = PITeacher(upscale=2, decoder={'type': 'FSRCNN', **sizes, 'm': 2})
    with pytest.raises(CheckpointError):
        checkpoint.load_network(other, tmp_path / 'net_g.pth')


def test_a_recipe_puts_a_trained_student_into_the_teacher(workspace):
    # the teacher keeps what it starts with
    still = {'total_iter': 2, 'optim_g': {'lr': 0.0}, 'scheduler': {'eta_min': 0}}
    without = dict.fromkeys(('imitation_opt', 'weight_transfer', 'distill_opt'))
    stages = {
        '_delete_': True,
        'alone': {'network_t': None, 'train': without},
        'teacher': {
            'network_g': None,
            'path': {'pretrain_network_t': 'stage:alone'},
            'train': {**still, 'weight_transfer': None, 'distill_opt': None},
        },
    }
    assert train(['-opt', str(workspace.recipe(stages=stages))]) == 0
    one, two = (
        checkpoint.load_weights(workspace.path / f'experiments/run/{stage}/models/{file}_latest.pth')
        for stage, file in (('alone', 'net_g'), ('teacher', 'net_t'))
    )
    assert all(torch.equal(two[f'decoder.{key}'], value) for key, value in one.items())

"""A tap yields what its module really produced, and leaves no trace."""

import pytest
import torch
from torch import nn

from pisr_plugin.distill.taps import Tap, TapReader
from pisr_plugin.utils.errors import TapError


class Twice(nn.Module):
    """Calls one block twice and hands it a keyword argument the second time."""

    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(2, 2, 3, padding=1)
        self.tail = nn.Identity()
        self.unused = nn.Identity()

    def forward(self, x):
        return self.tail(self.block(input=self.block(x)))


@pytest.fixture
def image():
    return torch.rand(1, 2, 5, 6)


def in_place_net():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(3, 2, 1))


@pytest.mark.parametrize('passes', [1, 3])
def test_feature_before_an_in_place_activation_is_the_convolutions_own(image, passes):
    net = in_place_net()
    reader = TapReader(net, ['0', '1@input', '1'])
    for _ in range(passes):  # the first pass learns, later ones rely on what was learnt
        with reader.reading() as features:
            net(image)
        assert torch.equal(features['0'], net[0](image))
        assert torch.equal(features['1@input'], net[0](image))
        assert torch.equal(features['1'], nn.functional.leaky_relu(net[0](image), 0.1))


def test_gradient_through_a_copied_feature_is_that_of_the_convolution(image):
    net = in_place_net()
    with TapReader(net, ['0']).reading() as features:
        net(image)
    features['0'].square().sum().backward()
    got = net[0].weight.grad.clone()
    net.zero_grad()
    net[0](image).square().sum().backward()
    torch.testing.assert_close(got, net[0].weight.grad)


def test_a_feature_that_nobody_overwrites_is_not_copied(image):
    net = nn.Sequential(nn.Identity(), nn.Conv2d(2, 2, 1))
    reader = TapReader(net, ['0'])
    for copied in (True, False):
        with reader.reading() as features:
            net(image)
        assert (features['0'].data_ptr() != image.data_ptr()) == copied


def test_each_call_of_a_module_called_twice_can_be_chosen(image):
    net = Twice()
    with TapReader(net, ['block#1', 'block#2', 'block#2@input']).reading() as features:
        net(image)
    assert torch.equal(features['block#1'], net.block(image))
    assert torch.equal(features['block#2'], net.block(net.block(image)))
    assert torch.equal(features['block#2@input'], features['block#1'])


def test_a_module_called_twice_asks_for_the_call(image):
    with pytest.raises(TapError, match='block is called more than once.*block#1, block#2'):
        TapReader(Twice(), ['block']).read(image)


def test_read_runs_no_further_than_the_last_tap(image):
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    reader = TapReader(net, ['0', '1'])
    reader.read(image)
    ran = []
    net[2].register_forward_hook(lambda *_: ran.append(1))
    features = reader.read(image)
    assert torch.equal(features['1'], net[1](net[0](image)))
    assert not ran


@pytest.mark.parametrize('fails', [False, True])
def test_no_hook_is_left_behind(image, fails):
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2 + fails, 2, 1))
    try:
        with TapReader(net, ['0', '1@input']).reading():
            net(image)
    except RuntimeError:
        assert fails
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    'tap, fragments',
    [
        ('blok', ["no tap 'blok'", "Did you mean 'block'?", 'tail']),
        ('block.weight', ['no tap', 'Possible']),
        ('@input', ['is not a tap', 'body.3@input']),
        ('block@imput', ['is not a tap']),
    ],
)
def test_a_wrong_tap_names_near_match_and_choice(tap, fragments):
    with pytest.raises(TapError) as error:
        TapReader(Twice(), [tap])
    assert all(fragment in str(error.value) for fragment in fragments)


@pytest.mark.parametrize(('tap', 'what'), [('unused', 'unused did not run'), ('block#3', r'block ran 2 time\(s\)')])
def test_a_tap_that_is_not_reached_says_so(image, tap, what):
    with pytest.raises(TapError, match=f'not reached: {what}'):
        TapReader(Twice(), [tap]).read(image)


def test_parts_of_a_tap():
    assert Tap.parse('body.3#2@input') == ('body.3', 2, True)
    assert Tap.parse('body.3') == Tap.parse('body.3@output') == ('body.3', None, False)


def test_a_dot_taps_the_network_itself(image):
    class Pair(nn.Identity):
        def forward(self, x):
            return x + 1, x

    net = in_place_net()
    assert torch.equal(TapReader(net, ['.']).read(image)['.'], net(image))
    assert torch.equal(TapReader(net, ['.@input']).read(image)['.@input'], image)
    assert torch.equal(TapReader(Pair(), ['.']).read(image)['.'], image + 1)

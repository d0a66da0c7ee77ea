"""Places of positions against the pixels that gradients reach, and against hand arithmetic."""

import pytest
import torch
from torch import nn

from lvmmed.models.backbones import build_backbone
from lvmmed.models.receptive_fields import position_shares

LARGE_PX = 768


def reached_middle(backbone, position):
    """Middle of the columns that one position sees, with weights that let nothing cancel out."""
    with torch.no_grad():
        for module in list(backbone.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.MaxPool2d):  # the gradient would go to one pixel alone
                    sizes = (child.kernel_size, child.stride, child.padding)
                    setattr(module, name, nn.AvgPool2d(*sizes))
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1 / module.weight[0].numel())
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
                module.bias.zero_()
    images = torch.full((1, 3, LARGE_PX, LARGE_PX), 1e-3, requires_grad=True)  # below any ceiling
    seen = backbone.eval()(images).map[0, :, position, position].sum()
    (gradient,) = torch.autograd.grad(seen, images)
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    first, last = int(columns[0]), int(columns[-1])
    assert 0 < first < last < LARGE_PX - 1  # whole, not cut off by the border
    return (first + last + 1) / 2


def test_a_position_lies_amid_the_pixels_that_it_sees():
    backbone = build_backbone("resnet18", size_px=LARGE_PX)
    shares = position_shares(backbone, LARGE_PX)
    assert len(shares) == LARGE_PX // 32
    assert shares[12] * LARGE_PX == pytest.approx(reached_middle(backbone, 12))


@pytest.mark.parametrize(
    ("name", "first", "stride"),
    [
        # five convolutions or poolings of stride 2, each centred on pixel 2 i: 0 + half a pixel
        ("resnet50", 0.5, 32),
        # three of them beside an average of two pixels: a quarter of 4, 8 and 16 pixels more
        ("resnet10t", 7.5, 32),
        # padded on the right alone: 1 + 2 + 4 + 8 + 16 pixels, and half a pixel
        ("tf_efficientnet_lite0", 31.5, 32),
        # one of 7 by 4 padded by 3 and three of 3 by 2 padded by 1; attention shrinks by other ones
        ("pvt_v2_b0", 0.5, 32),
        # patches: middles of equal cells
        ("vit_tiny_patch16_224", 8.0, 16),
        ("samvit_base_patch16_224", 8.0, 16),
        ("swin_tiny_patch4_window7_224", 16.0, 32),
        ("convnext_atto", 16.0, 32),
    ],
)
def test_places_by_hand(name, first, stride):
    backbone = build_backbone(name, size_px=224)
    was = {key: value.clone() for key, value in backbone.state_dict().items()}
    shares = position_shares(backbone, 224)
    assert [224 * share for share in shares] == pytest.approx(
        [first + stride * i for i in range(224 // stride)]
    )
    assert backbone.training
    assert all(torch.equal(value, was[key]) for key, value in backbone.state_dict().items())


def test_odd_sides_are_halved_upwards():
    # 48, 24, 12, 6, 3, 2: both positions of the last step lie on pixels 0 and 2 of 3
    shares = position_shares(build_backbone("resnet18", size_px=48), 48)
    assert [48 * share for share in shares] == pytest.approx([0.5, 32.5])

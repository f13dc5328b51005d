"""Taps against hooks placed by hand, and against what the model says itself."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from sweeper import taps
from sweeper.errors import InputError

torch.set_num_threads(1)
MODELS = {
    "test_resnet": 32,
    "resnet18": 64,
    "test_efficientnet": 32,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "test_vit": 160,
    "test_convnext": 32,
    "repvit_m0_9": 64,
    "regnetx_002": 64,
}
# Where the features end, read off timm's sources.
LAST = {
    "resnet18": ("layer4.1.act2", False),
    "test_efficientnet": ("bn2.act", False),
    "mobilenetv3_small_050": ("act2", True),
    "test_vit": ("norm", False),
    "test_convnext": ("head.norm", True),
    "repvit_m0_9": (None, False),  # a norm ends its last branch, and the residual is added after it
    "regnetx_002": ("s4.b7.act3", False),
}


def make(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # zero-initialised residuals would hide the pre-activation
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model.eval(), torch.rand(2, 3, MODELS[name], MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_embedding_and_maps_are_the_models_own(name):
    model, images = make(name)
    points = taps.find(model, images)
    with torch.no_grad():
        tapped = taps.read(model, images, points, pre=True, num_maps=len(points.maps))
        _, every = model.forward_intermediates(images, output_fmt="NCHW")
        embedding = model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)
    torch.testing.assert_close(tapped.embedding_BD, embedding, rtol=0, atol=0)
    assert tapped.pre_embedding_BD.shape == embedding.shape
    assert 1 <= len(points.maps) <= taps.MOST_MAPS
    for number, shape, found in zip(points.maps, points.shapes, tapped.maps, strict=True):
        assert tuple(found.shape) == (2, *shape)
        torch.testing.assert_close(found, every[number], rtol=0, atol=0)
    assert points.maps[-1] == len(every) - 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", LAST)
def test_where_the_features_end(name):
    points = taps.find(*make(name))
    assert (points.last, points.in_head) == LAST[name]


def test_before_the_relu_of_a_resnet():
    model, images = make("resnet18")
    points = taps.find(model, images)
    with torch.no_grad():
        block, x = model.layer4[1], model.layer4[0](model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(
            model.bn1(model.conv1(images))))))))  # fmt: skip
        before = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x))))) + x
        tapped = taps.read(model, images, points, pre=True)
    torch.testing.assert_close(tapped.pre_embedding_BD, before.mean(dim=(2, 3)))
    torch.testing.assert_close(tapped.embedding_BD, F.relu(before).mean(dim=(2, 3)))
    assert tapped.pre_embedding_BD.min() < 0


def test_before_the_activation_of_a_head():
    model, images = make("mobilenetv3_small_050")
    points = taps.find(model, images)
    with torch.no_grad():
        tapped = taps.read(model, images, points, pre=True)
    torch.testing.assert_close(F.hardswish(tapped.pre_embedding_BD), tapped.embedding_BD)
    assert not torch.equal(tapped.pre_embedding_BD, tapped.embedding_BD)


def test_before_the_norm_of_a_transformer():
    model, images = make("test_vit")
    points = taps.find(model, images)
    seen = []
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tapped = taps.read(model, images, points, pre=True)
    torch.testing.assert_close(tapped.pre_embedding_BD, model.forward_head(seen[0], pre_logits=True))


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "mobilenetv3_small_050"])
def test_gradients_reach_the_first_layer_and_the_mode_stays(name):
    model, images = make(name)
    model.train()
    points = taps.find(model, images)
    assert model.training
    tapped = taps.read(model, images, points, pre=True, num_maps=2)
    (tapped.pre_embedding_BD.square().sum() + sum(m.square().sum() for m in tapped.maps)).backward()
    assert next(model.parameters()).grad.abs().max() > 0


def test_finding_leaves_the_running_statistics():
    model, images = make("resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taps.find(model.train(), images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_more_maps_than_there_are_is_refused():
    model, images = make("test_resnet")
    points = taps.find(model, images)
    with pytest.raises(InputError, match="offers 4 intermediate maps, 5 are needed"):
        taps.read(model, images, points, num_maps=5)


def test_shapes_on_the_meta_device_are_those_of_a_real_forward():
    for name, size in MODELS.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=3)
            found = taps.find(model, torch.zeros(2, 3, size, size))
        assert found.shapes == taps.find(*make(name)).shapes, name

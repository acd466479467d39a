"""A dense encoder that nobody trained: it blurs, and what is bright then is a particle."""

from __future__ import annotations

import numpy as np
import torch

from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.pickers.competition import Calibration

BINOMIAL = torch.tensor([1.0, 2.0, 1.0]) / 4
KERNEL = BINOMIAL[:, None, None] * BINOMIAL[:, None] * BINOMIAL


def make_blob_model(*, blurs: int = 4, height: float = 0.2, steepness: float = 40.0) -> StoredModel:
    """Blur the tomogram; vectors turn from (0, 1) to (1, 0) where it passes `height`.

    As there is no linear way through a ReLU, bright and dark go separate ways, and each
    residual block makes x - x + blurred x of x.
    """
    network = DenseEncoder(widths=(4,), down=(blurs,), up=(), channels=2)
    bright, dark = 0, 1
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        for way, sign in ((bright, 1.0), (dark, -1.0)):
            network.stem.convolution.weight[way, 0] = sign / 64
            for block in network.downward[0]:
                first, second = (unit.convolution.weight for unit in (block.first, block.second))
                first[way, way, 1, 1, 1] = 1
                first[way + 2, way] = KERNEL
                second[way, way, 1, 1, 1] = -1
                second[way, way + 2, 1, 1, 1] = 1
        heads = network.heads
        heads.bias.zero_()
        for channel, slope in ((0, 1.0), (1, -1.0), (2, steepness)):
            heads.weight[channel, bright, 0, 0, 0] = slope
            heads.weight[channel, dark, 0, 0, 0] = -slope
        heads.bias[1] = 2 * height
        heads.bias[2] = -steepness * height
    return StoredModel(
        network=network.eval(),
        voxel_spacing=10.0,
        name="blobs",
        config={"calibration": Calibration(intercept=-2.0, spread=0.02).to_dict()},
    )


def make_heat_model(*, label: str = "lobes", diameter: float = 150.0, **blob: float) -> StoredModel:
    """The same blur as a heat map, as `tomoloc train centroid` stores it."""
    network = HeatNetwork.from_encoder(make_blob_model(**blob).network, kinds=1)
    particles = {"labels": [label], "diameters": [diameter], "thresholds": [0.5]}
    return StoredModel(
        network=network.eval(), voxel_spacing=10.0, name="heat", config={"particles": particles}
    )


BRIGHT = np.array([[1.0, 0.0]])
"""Vector of what is twice as bright as `height`."""


def make_class_model(
    *, label: str = "lobes", diameter: float = 150.0, height: float = 0.35, steepness: float = 20.0
) -> StoredModel:
    """The same as probabilities of a class, as `tomoloc train segmentation` stores it."""
    network = SegmentationNetwork(kinds=1, channels=(2,))
    with torch.no_grad():
        for number, layer in enumerate(network.body.downward[0][::2]):
            weight = layer.convolution.weight.zero_()
            for way, sign in enumerate((1.0, -1.0)):
                weight[way, way if number else 0] = (
                    (1.0 if number else sign) * torch.ones(3, 3, 3) / 27
                )
        head = network.body.head
        head.weight.zero_()
        head.weight[1, :, 0, 0, 0] = torch.tensor([steepness, -steepness])
        head.bias.copy_(torch.tensor([0.0, -steepness * height]))
    classes = [{"label": label, "role": "particle", "diameter": diameter}]
    return StoredModel(
        network=network.eval(), voxel_spacing=10.0, name="classes", config={"classes": classes}
    )

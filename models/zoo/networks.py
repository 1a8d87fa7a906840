"""The networks of the zoo as forward graphs; each says what it takes and whose design it is.

Small enough for a microcomputer of the year 2015: 500 to 40,000 parameters.
"""

import onnx

from models.zoo.forward import Network

__all__ = [
    "anomaly_autoencoder",
    "digits_cnn",
    "keyword_ds_cnn",
    "motion_cnn",
    "motion_gru",
    "shuttle_autoencoder",
]

MOTION_CLASSES, KEYWORD_CLASSES = 7, 12


def digits_cnn(*, seed: int = 0) -> onnx.ModelProto:
    """Images ``x`` float32[batch, 64], 8x8 row by row from 0 to 1, to the logits of ten digits."""
    net = Network("digits-cnn", [64], seed=seed)
    value = net.reshape("image", net.x, [1, 8, 8])
    for number, (channels, groups) in enumerate([(16, 4), (32, 8)], 1):
        value = net.conv(f"conv{number}", value, channels, [3, 3], pad=[1, 1], bias=False)
        value = net.group_norm(f"norm{number}", value, groups)
        value = net.activation("Relu", f"active{number}", value)
        value = net.max_pool(f"pool{number}", value, [2, 2])
    return net.finish(net.linear("head", net.flatten("features", value), 10), output="logits")


def motion_cnn(*, seed: int = 0) -> onnx.ModelProto:
    """Windows ``x`` float32[batch, 6, 100] of acceleration and rotation to the logits of seven motions."""
    net = Network("motion-cnn", [6, 100], seed=seed)
    value = net.x
    for number, (channels, groups) in enumerate([(16, 4), (32, 8), (32, 8)], 1):
        value = net.conv(f"conv{number}", value, channels, [5], stride=[2], pad=[2], bias=False)
        value = net.group_norm(f"norm{number}", value, groups)
        value = net.activation("Relu", f"active{number}", value)
    return net.finish(net.linear("head", net.mean_pool("features", value), MOTION_CLASSES), output="logits")


def motion_gru(*, seed: int = 0) -> onnx.ModelProto:
    """As ``motion_cnn``; a recurrent unit reads what a convolution makes of every ten samples.

    Ten steps instead of a hundred: graphs are unrolled, and grow with the number of steps.
    """
    net = Network("motion-gru", [6, 100], seed=seed)
    value = net.conv("frame", net.x, 16, [10], stride=[10])
    value = net.activation("Relu", "frames", value)
    value = net.gru("memory", value, 24)
    return net.finish(net.linear("head", value, MOTION_CLASSES), output="logits")


def anomaly_autoencoder(*, seed: int = 0) -> onnx.ModelProto:
    """Windows ``x`` float32[batch, 3, 64] to themselves, through 32 numbers.

    Trained on normal windows only, it rebuilds others badly: the squared error is the score.
    """
    net = Network("anomaly", [3, 64], seed=seed)
    value = net.x
    for number, channels in enumerate([8, 16, 4], 1):
        value = net.conv(f"down{number}", value, channels, [4], stride=[2], pad=[1])
        value = net.activation("Tanh" if channels == 4 else "Relu", f"narrow{number}", value)
    for number, channels in enumerate([16, 8], 1):
        value = net.conv_transpose(f"up{number}", value, channels, [4], stride=[2], pad=[1])
        value = net.activation("Relu", f"wide{number}", value)
    return net.finish(net.conv_transpose("up3", value, 3, [4], stride=[2], pad=[1]))


def shuttle_autoencoder(*, seed: int = 0) -> onnx.ModelProto:
    """Rows ``x`` float32[batch, 9] to themselves, through 4 numbers; see ``anomaly_autoencoder``."""
    net = Network("shuttle", [9], seed=seed)
    value = net.x
    for number, width in enumerate([16, 4, 16], 1):
        value = net.activation("Tanh", f"bent{number}", net.linear(f"layer{number}", value, width))
    return net.finish(net.linear("layer4", value, 9))


def keyword_ds_cnn(*, norm: str = "group", seed: int = 0) -> onnx.ModelProto:
    """Log-mel frames ``x`` float32[batch, 1, 49, 10] to the logits of twelve words.

    The small DS-CNN of Zhang, Suda, Lai, Chandra: Hello edge (2017), with ``norm`` ``group`` (the
    statistics of each row, nothing to keep) or ``batch`` as in the paper.
    """
    net = Network("keyword-ds-cnn", [1, 49, 10], seed=seed)

    def settled(name: str, value: str) -> str:
        name = f"norm.{name}"
        value = net.group_norm(name, value, 8) if norm == "group" else net.batch_norm(name, value)
        return net.activation("Relu", f"{name}.active", value)

    channels = 64
    value = net.conv("stem", net.x, channels, [10, 4], stride=[2, 2], pad=[5, 1], bias=False)
    value = settled("stem", value)
    for number in range(1, 5):
        value = net.conv(f"depth{number}", value, channels, [3, 3], pad=[1, 1], groups=channels, bias=False)
        value = settled(f"depth{number}", value)
        value = net.conv(f"point{number}", value, channels, [1, 1], bias=False)
        value = settled(f"point{number}", value)
    return net.finish(net.linear("head", net.mean_pool("features", value), KEYWORD_CLASSES), output="logits")

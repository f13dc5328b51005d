"""What the losses on maps do, written again in numpy and float64 from the definitions, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def pooled(maps, size):
    """Adaptive average pooling: pixel i of h is the mean of the old ones from floor(i H / h) to ceil((i + 1) H / h)."""
    height, width = maps.shape[2:]
    out = np.zeros((*maps.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], math.ceil((i + 1) * height / size[0]))
            columns = slice(j * width // size[1], math.ceil((j + 1) * width / size[1]))
            out[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return out


def same_size(student, teacher):
    size = tuple(min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return pooled(student, size), pooled(teacher, size)


def convolved(maps, weight, bias=None):
    """Zero-padded so that the size stays; the bias may be left out."""
    side = weight.shape[2] // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (side, side), (side, side)))
    height, width = maps.shape[2:]
    out = np.zeros((len(maps), len(weight), height, width))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            out += np.einsum("bchw,dc->bdhw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return out if bias is None else out + bias[:, None, None]


def batch_normed(maps, weight, bias):
    """As in training: by the batch's own statistics."""
    mean, variance = (getattr(maps, name)(axis=(0, 2, 3), keepdims=True) for name in ("mean", "var"))
    return (maps - mean) / np.sqrt(variance + 1e-5) * weight[:, None, None] + bias[:, None, None]


def connected(state, name, maps):
    """A 1 x 1 convolution and BatchNorm under that name in the state."""
    convolution = convolved(maps, state[f"{name}.0.weight"])
    return batch_normed(convolution, state[f"{name}.1.weight"], state[f"{name}.1.bias"])


def state_of(loss):
    return {name: value.double().numpy() for name, value in loss.state_dict().items()}


def maps_of(inputs):
    """Pairs of the student's and the teacher's map."""
    pairs = zip(inputs.student_maps, inputs.teacher_maps, strict=True)
    return [tuple(m.detach().double().numpy() for m in pair) for pair in pairs]


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)

"""What a timm model says on its way to its logits: the pooled embedding, the same before the last activation, and maps.

The same code reads students and teachers, so that a loss compares like with like. Maps come from timm's own
`forward_intermediates` and are a few stages from shallow to deep for any architecture; the embedding before the last
activation is what pooling gives when the module that ends the features (a ReLU; a norm in transformers) is left out.

Shapes: B batch, C channels, H and W pixels or tokens, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweeper.errors import InputError

MOST_MAPS = 4
# Pass their input on, or only pool or reshape it, so that what ends the features stands before them.
PASSING = (nn.Identity, nn.Flatten, nn.Dropout, nn.AdaptiveAvgPool2d)
PASSING_NAMES = ("Pool", "Flatten", "Dropout", "DropPath")
# timm's own activations and norms have classes of their own, all in these modules.
ENDING_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.normalization", "torch.nn.modules.batchnorm")
ENDING_TIMM = ("timm.layers.activations", "timm.layers.norm", "timm.layers.norm_act", "timm.layers.grn")


class Tapped(NamedTuple):
    """A forward up to the classifier; the last two are there if they were asked for."""

    embedding_BD: Tensor
    pre_embedding_BD: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TapPoints:
    """Where a model is tapped.

    Attributes:
        last: the module that ends the features; None where they end in a linear or convolutional layer.
        in_head: it works on what is pooled already.
        maps: numbers of the intermediates to read, shallow to deep; empty where the architecture offers none.
        shapes: (channels, height, width) of each for one image.
    """

    last: str | None
    in_head: bool
    maps: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]


NOWHERE = TapPoints(None, False, (), ())


@torch.no_grad()
def find(model: Any, images_BCHW: Tensor) -> TapPoints:
    """Look at one forward of normalised images; the model's mode, statistics and gradients stay as they are."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    order: list[tuple[str, nn.Module, Tensor]] = []
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]

    def notes(name: str) -> Any:
        return lambda module, _inputs, output: order.append((name, module, output))

    handles = [module.register_forward_hook(notes(name)) for name, module in leaves]
    try:
        features = model.forward_features(images_BCHW)
        num_before = len(order)
        embedding = model.forward_head(features, pre_logits=True)
    finally:
        for handle in handles:
            handle.remove()
    position = max((i for i, (_, module, _) in enumerate(order) if not _passes(module)), default=0)
    in_head = position >= num_before
    name, module, output = order[position]
    # a norm at the end of a residual branch comes last too, but what it gives is not the features
    is_end = _ends(module) and _same(output, embedding if in_head else features)
    maps, shapes = _map_points(model, images_BCHW)
    for module, mode in modes.items():
        module.training = mode
    return TapPoints(name if is_end else None, in_head and is_end, maps, shapes)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and (a.is_meta or torch.equal(a.flatten(), b.flatten()))


def _passes(module: nn.Module) -> bool:
    return isinstance(module, PASSING) or any(name in type(module).__name__ for name in PASSING_NAMES)


def _ends(module: nn.Module) -> bool:
    home = type(module).__module__
    return home in ENDING_MODULES or home.startswith(ENDING_TIMM)


def _map_points(model: Any, images_BCHW: Tensor) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    try:
        found = model.forward_intermediates(images_BCHW, output_fmt="NCHW", intermediates_only=True)
    except (AttributeError, TypeError, AssertionError):  # an architecture without it, or without maps in this form
        return (), ()
    return chosen_maps(found)


def chosen_maps(found: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """Numbers and shapes of the maps to read, of all intermediates of a model from shallow to deep.

    The deepest map of each resolution, of these the last four; four evenly spaced ones where all are as large.
    """
    if not found or any(part.ndim != 4 for part in found):
        return (), ()
    sizes = [tuple(part.shape[-2:]) for part in found]
    deepest = [i for i, size in enumerate(sizes) if size not in sizes[i + 1 :]]
    if len(deepest) == 1:
        count = min(MOST_MAPS, len(found))
        deepest = [round((i + 1) * len(found) / count) - 1 for i in range(count)]
    chosen = tuple(deepest[-MOST_MAPS:])
    return chosen, tuple((int(c), int(h), int(w)) for _, c, h, w in (found[i].shape for i in chosen))


def read(model: Any, images_BCHW: Tensor, points: TapPoints, *, pre: bool = False, num_maps: int = 0) -> Tapped:
    """Forward of normalised images up to the classifier, in the model's present mode.

    Args:
        pre: also the embedding from before the last activation.
        num_maps: how many of the deepest maps.

    Raises:
        InputError: the architecture does not offer that many maps.
    """
    if num_maps > len(points.maps):
        raise InputError(f"{type(model).__name__} offers {len(points.maps)} intermediate maps, {num_maps} are needed")
    with _watched(model, points.last if pre else None) as seen:
        maps: list[Tensor] = []
        if num_maps:
            features, maps = model.forward_intermediates(
                images_BCHW, indices=list(points.maps[-num_maps:]), output_fmt="NCHW"
            )
        else:
            features = model.forward_features(images_BCHW)
        embedding_BD = model.forward_head(features, pre_logits=True).flatten(1)
    if not pre:
        return Tapped(embedding_BD, None, tuple(maps))
    if points.last is None:
        return Tapped(embedding_BD, embedding_BD, tuple(maps))
    # the input of the last module takes the place of its output, and goes through what follows it
    if points.in_head:
        with _replaced(model, points.last):
            before_BD = model.forward_head(features, pre_logits=True)
    else:
        before_BD = model.forward_head(seen[-1], pre_logits=True)
    return Tapped(embedding_BD, before_BD.flatten(1), tuple(maps))


@contextmanager
def _watched(model: Any, name: str | None) -> Iterator[list[Tensor]]:
    """Inputs of a module during the block; copies where it works in place."""
    seen: list[Tensor] = []
    if name is None:
        yield seen
        return
    module = model.get_submodule(name)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].clone() if getattr(module, "inplace", False) else inputs[0])

    handle = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _replaced(model: Any, name: str) -> Iterator[None]:
    """A module passes its input on during the block."""
    module = model.get_submodule(name)
    before: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before.append(inputs[0].clone())

    def swap(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return before[-1]

    handles = [module.register_forward_pre_hook(keep), module.register_forward_hook(swap)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""What every loss owes the training loop; a new file in `sweeper/losses` is driven through all of it by itself."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pydantic
import pytest
import torch
from torch import Tensor

from sweeper import registry
from sweeper.losses import INPUTS, LossSettings
from sweeper.losses._module import Float32Loss, Normalized

KINDS = sorted(registry.kinds("losses"))
# What stands in a batch only where NEEDS asks for it.
NEEDED = {
    "logits": ("teacher_logits_BK",),
    "embedding": ("teacher_embedding_BT",),
    "pre_embedding": ("student_pre_embedding_BD", "teacher_pre_embedding_BT"),
    "maps": ("student_maps", "teacher_maps"),
    "jacobian": ("images_BCHW", "teacher_jacobian_BCHW"),
}
pytestmark = pytest.mark.parametrize("kind", KINDS)


def build(kind, context, seed=0):
    torch.manual_seed(seed)
    module = registry.load("losses", kind)
    return module.build(module.Config(kind=kind), context)


def value_of(loss, inputs):
    """The loss of a batch as if it were the first one: the same draws, and no trace left in the module."""
    torch.manual_seed(11)
    return copy.deepcopy(loss)(inputs)


def each(tensors):
    """The tensors of a field, which may hold several or none."""
    return [t for t in (tensors if isinstance(tensors, tuple) else (tensors,)) if t is not None]


def changed(inputs, transform, prefix=""):
    """The batch with `transform` applied to each tensor of the fields that begin with `prefix`."""
    found = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if not field.name.startswith(prefix) or isinstance(value, float) or value is None:
            continue
        found[field.name] = tuple(map(transform, value)) if isinstance(value, tuple) else transform(value)
    return dataclasses.replace(inputs, **found)


def batch_for(kind, inputs):
    """The batch as the loop would hand it to this kind alone, and what of the student its gradient must reach."""
    needs = registry.load("losses", kind).NEEDS
    absent = {f: () if f.endswith("maps") else None for name, fields in NEEDED.items() for f in fields}
    absent = {f: nothing for f, nothing in absent.items() if all(f not in NEEDED[n] for n in needs & NEEDED.keys())}
    given = dataclasses.replace(inputs, **absent)
    leaves = [
        t for f in dataclasses.fields(given) if f.name.startswith("student") for t in each(getattr(given, f.name))
    ]
    if "jacobian" in needs:  # a student of one layer, so that its logits depend on the images
        generator = torch.Generator().manual_seed(23)
        weight = torch.randn(given.images_BCHW[0].numel(), given.student_logits_BK.shape[1], generator=generator)
        weight.requires_grad_()
        logits_BK = given.student_logits_BK.detach() + torch.tanh(given.images_BCHW.flatten(1) @ weight)
        given, leaves = dataclasses.replace(given, student_logits_BK=logits_BK), [*leaves[1:], weight]
    return given, leaves


def test_declares_itself(kind):
    module = registry.load("losses", kind)
    assert registry.kinds("losses")[kind]
    assert issubclass(module.Config, LossSettings)
    assert module.Config(kind=kind).weight == 1
    assert module.PUBLISHED_WEIGHT > 0
    assert any(year in module.PAPER for year in map(str, range(1990, 2027)))
    assert module.NEEDS <= INPUTS
    for wrong in ({"weight": -1e-9}, {"kind": "another"}, {"no_such_field": 1}):
        with pytest.raises(pydantic.ValidationError):
            module.Config(**{"kind": kind, **wrong})


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("cached", [torch.float16, torch.float32])
def test_scalar_and_finite_with_gradients(kind, batch, cached, inputs, context):
    loss = build(kind, context())
    assert isinstance(loss, Float32Loss)
    # labels that count and differ: where a small batch has no such pair, a loss on pairs of labels is rightly 0
    labels = {"labels_B": torch.arange(batch) % 5, "hard_B": torch.ones(batch, dtype=torch.bool)}
    given, leaves = batch_for(kind, changed(inputs(batch=batch, **labels), lambda t: t.to(cached), prefix="teacher"))
    value = value_of(loss, dataclasses.replace(given, progress=0.5))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value = loss(dataclasses.replace(given, progress=0.5))
    value.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    # of two images, distances divided by their mean are all 1 (rkd)
    assert batch == 2 or any(gradient.abs().max() > 0 for gradient in gradients)
    for gradient in gradients + [parameter.grad for parameter in loss.parameters() if parameter.grad is not None]:
        assert gradient.isfinite().all()


def test_every_parameter_is_trained_and_no_teacher_input(kind, inputs, context):
    loss = build(kind, context())
    drawn = changed(inputs(), lambda t: t.requires_grad_(), prefix="teacher")
    given, _ = batch_for(kind, drawn)
    loss(dataclasses.replace(given, progress=0.5)).backward()
    watched = [
        t for f in dataclasses.fields(drawn) if f.name.startswith("teacher") for t in each(getattr(drawn, f.name))
    ]
    assert all(tensor.grad is None for tensor in watched)
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())


def test_collapsed_batch_is_finite(kind, inputs, context):
    loss = build(kind, context())
    drawn = changed(inputs(batch=4), lambda t: torch.zeros_like(t, requires_grad=True), prefix="student")
    given, leaves = batch_for(kind, changed(drawn, torch.zeros_like, prefix="teacher"))
    value = loss(dataclasses.replace(given, progress=0.5))
    value.backward()
    assert value.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)


def test_order_of_the_batch_does_not_matter(kind, inputs, context):
    if not getattr(registry.load("losses", kind), "IN_ANY_ORDER", True):
        return
    loss = build(kind, context())
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    drawn = inputs(batch=16)
    given, _ = batch_for(kind, drawn)
    shuffled, _ = batch_for(kind, changed(drawn, lambda t: t[order].detach().requires_grad_(t.requires_grad)))
    torch.testing.assert_close(value_of(loss, shuffled), value_of(loss, given))


def test_labels_count_only_where_they_are_hard(kind, inputs, context):
    loss = build(kind, context())
    given, _ = batch_for(kind, inputs())
    wrong_B = torch.where(given.hard_B, given.labels_B, (given.labels_B + 1) % 5)
    other = value_of(loss, dataclasses.replace(given, labels_B=wrong_B))
    torch.testing.assert_close(other, value_of(loss, given), rtol=0, atol=0)
    nobody = dataclasses.replace(given, hard_B=torch.zeros_like(given.hard_B))
    assert loss(nobody).isfinite()


def test_state_round_trip(kind, inputs, context):
    saved, fresh = build(kind, context(), seed=1), build(kind, context(), seed=2)
    saved(batch_for(kind, inputs(seed=5))[0])  # running statistics and banks move
    fresh.load_state_dict(saved.state_dict())
    given, _ = batch_for(kind, inputs())
    for module in (saved.eval(), fresh.eval()):
        module.requires_grad_(False)
    assert torch.equal(value_of(saved, given), value_of(fresh, given))


def test_fp16_cache_changes_little(kind, inputs, context):
    loss = build(kind, context())
    drawn = inputs(batch=64)
    live, _ = batch_for(kind, drawn)
    cached, _ = batch_for(kind, changed(drawn, lambda t: t.half(), prefix="teacher"))
    torch.testing.assert_close(value_of(loss, cached), value_of(loss, live), rtol=2e-3, atol=1e-4)


def test_float32_inside_autocast(kind, inputs, context):
    loss = build(kind, context())
    given, _ = batch_for(kind, inputs())
    plain = value_of(loss, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_of(loss, given)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    if "jacobian" not in registry.load("losses", kind).NEEDS:  # its logits have to come from the images
        low = changed(given, lambda t: t.detach().bfloat16(), prefix="student")
        assert value_of(loss, low).dtype == torch.float32


def test_normalised_is_one_on_the_first_batch_and_keeps_its_scale(kind, inputs, context):
    first, _ = batch_for(kind, inputs(seed=5))
    first = dataclasses.replace(first, progress=0.5)
    loss = build(kind, context())
    parts = [float(part.detach()) for part in _summands(loss, first)]
    normalized = Normalized(loss)
    value = value_of(normalized, first)
    assert float(value) == pytest.approx(sum(parts) / sum(map(abs, parts)) * loss.factor(0.5), rel=1e-4)
    torch.manual_seed(11)
    normalized(first)
    resumed = Normalized(build(kind, context(), seed=2))
    resumed.load_state_dict(normalized.state_dict())
    second, _ = batch_for(kind, inputs(seed=6))
    assert torch.equal(value_of(resumed, second), value_of(normalized, second))
    before = normalized.size.clone()
    normalized.eval()(second)
    assert torch.equal(normalized.size, before)


def _summands(loss: Float32Loss, given) -> tuple[Tensor, ...]:
    torch.manual_seed(11)
    return copy.deepcopy(loss).summands(given)


def test_config_needs_no_heavy_library(kind):
    heavy = ("torch", "timm", "diffusers", "ray", "optuna", "matplotlib")
    program = (
        "import sys\n"
        "from sweeper import registry\n"
        f"registry.config_class('losses', {kind!r})(kind={kind!r}, weight=0.5)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")

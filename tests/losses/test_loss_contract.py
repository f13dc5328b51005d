"""What every loss owes the training loop; a new file in `sweeper/losses` is driven through all of it by itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pydantic
import pytest
import torch

from sweeper import registry
from sweeper.losses import INPUTS

KINDS = sorted(registry.kinds("losses"))
TEACHER_FIELDS = {"logits": "teacher_logits_BK", "embedding": "teacher_embedding_BT"}
pytestmark = pytest.mark.parametrize("kind", KINDS)


def build(kind, context, seed=0):
    torch.manual_seed(seed)
    module = registry.load("losses", kind)
    return module.build(module.Config(kind=kind), context)


def only_needed(kind, inputs):
    """The batch as the loop would hand it to this kind alone: what NEEDS does not name is absent."""
    needs = registry.load("losses", kind).NEEDS
    absent = {field: None for name, field in TEACHER_FIELDS.items() if name not in needs}
    return dataclasses.replace(inputs, **absent)


def student_gradients(inputs):
    tensors = [inputs.student_logits_BK, inputs.student_embedding_BD]
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def test_declares_itself(kind):
    module = registry.load("losses", kind)
    assert registry.kinds("losses")[kind]
    assert issubclass(module.Config, registry.Settings)
    assert module.Config(kind=kind).weight >= 0
    assert module.NEEDS <= INPUTS
    for wrong in ({"weight": -1e-9}, {"kind": "another"}, {"no_such_field": 1}):
        with pytest.raises(pydantic.ValidationError):
            module.Config(**{"kind": kind, **wrong})


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("cached", [torch.float16, torch.float32])
def test_scalar_and_finite_with_gradients(kind, batch, cached, inputs, context):
    loss = build(kind, context())
    drawn = inputs(batch=batch)
    teacher = {field: getattr(drawn, field).to(cached) for field in TEACHER_FIELDS.values()}
    given = only_needed(kind, dataclasses.replace(drawn, **teacher))
    value = loss(given)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    gradients = student_gradients(given)
    assert gradients
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    for gradient in gradients + [parameter.grad for parameter in loss.parameters()]:
        assert gradient.isfinite().all()


def test_every_parameter_is_trained_and_no_teacher_input(kind, inputs, context):
    loss = build(kind, context())
    drawn = inputs()
    watched = {field: getattr(drawn, field).requires_grad_() for field in TEACHER_FIELDS.values()}
    loss(only_needed(kind, dataclasses.replace(drawn, **watched))).backward()
    assert all(tensor.grad is None for tensor in watched.values())
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())


def test_collapsed_batch_is_finite(kind, inputs, context):
    loss = build(kind, context())
    drawn = inputs(batch=4)
    same = {
        field: torch.zeros_like(getattr(drawn, field)).requires_grad_(field.startswith("student"))
        for field in ("student_logits_BK", "student_embedding_BD", *TEACHER_FIELDS.values())
    }
    given = only_needed(kind, dataclasses.replace(drawn, **same))
    value = loss(given)
    value.backward()
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in student_gradients(given))


def test_order_of_the_batch_does_not_matter(kind, inputs, context):
    loss = build(kind, context())
    drawn = only_needed(kind, inputs(batch=16))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    fields = {f.name: getattr(drawn, f.name) for f in dataclasses.fields(drawn)}
    shuffled = dataclasses.replace(drawn, **{k: v[order] for k, v in fields.items() if v is not None})
    torch.testing.assert_close(loss(shuffled), loss(drawn))


def test_labels_count_only_where_they_are_hard(kind, inputs, context):
    loss = build(kind, context())
    drawn = only_needed(kind, inputs())
    wrong_B = torch.where(drawn.hard_B, drawn.labels_B, (drawn.labels_B + 1) % 5)
    torch.testing.assert_close(loss(dataclasses.replace(drawn, labels_B=wrong_B)), loss(drawn), rtol=0, atol=0)
    nobody = dataclasses.replace(drawn, hard_B=torch.zeros_like(drawn.hard_B))
    assert loss(nobody).isfinite()


def test_state_round_trip(kind, inputs, context):
    saved, fresh = build(kind, context(), seed=1), build(kind, context(), seed=2)
    saved(only_needed(kind, inputs(seed=5)))  # running statistics move
    fresh.load_state_dict(saved.state_dict())
    given = only_needed(kind, inputs())
    for module in (saved.eval(), fresh.eval()):
        module.requires_grad_(False)
    assert torch.equal(saved(given), fresh(given))


def test_fp16_cache_changes_little(kind, inputs, context):
    loss = build(kind, context())
    drawn = only_needed(kind, inputs(batch=64))
    teacher = {f: getattr(drawn, f) for f in TEACHER_FIELDS.values() if getattr(drawn, f) is not None}
    rounded = dataclasses.replace(drawn, **{f: tensor.half() for f, tensor in teacher.items()})
    torch.testing.assert_close(loss(rounded), loss(drawn), rtol=2e-3, atol=1e-4)


def test_float32_inside_autocast(kind, inputs, context):
    loss = build(kind, context())
    given = only_needed(kind, inputs())
    plain = loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(given)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    low = {f: getattr(given, f).detach().bfloat16() for f in ("student_logits_BK", "student_embedding_BD")}
    assert loss(dataclasses.replace(given, **low)).dtype == torch.float32


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

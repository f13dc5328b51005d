"""A student as an ONNX graph that takes images in [0, 1], and the proof that it computes what the student does.

The normalisation is a part of the graph, so that whoever runs it needs no constants of timm's. torch's exporter of
`torch.export` graphs is used: the older one, which traces, is deprecated.

Shapes: N batch (free), H and W pixels (fixed), K classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sweeper.architecture import first_line
from sweeper.errors import RunFailed

if TYPE_CHECKING:
    from sweeper.student import Student

INPUT, OUTPUT = "images", "logits"
OPSET = 18  # of 2022: what torch's exporter writes without converting, and every runtime in use reads
BATCHES = (1, 5)  # the graph is made from 2, so that a batch size that was baked in shows
TOLERANCE = 1e-3  # of the largest logit; rounding stays below a tenth of that


class _FromPixels(torch.nn.Module):
    """images_NCHW in [0, 1] to logits_NK."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.student.model(self.student.normalise(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class Check:
    """How ONNX Runtime's logits compare with torch's.

    Attributes:
        max_difference: the largest absolute difference of a logit.
        max_logit: the largest absolute logit of torch's.
        num_agreeing: images whose highest logit is of the same class.
        num_real: how many of the `num_images` are no noise.
    """

    max_difference: float
    max_logit: float
    num_agreeing: int
    num_images: int
    num_real: int

    def __str__(self) -> str:
        made = f"{self.num_real} of the dataset and {self.num_images - self.num_real} of noise"
        real = made if self.num_real else "all of noise"
        sizes = " and ".join(map(str, BATCHES))
        return (
            f"largest difference of a logit {self.max_difference:.1e} (logits up to {self.max_logit:.3g}), same class "
            f"for {self.num_agreeing} of {self.num_images} images ({real}; batches of {sizes})"
        )


def to_onnx(student: Student) -> bytes:
    """The graph: `images` float32 [N, 3, H, W] in [0, 1] to `logits` float32 [N, K], on the CPU, in evaluation mode.

    Raises:
        RunFailed: torch can not express this architecture in ONNX.
    """
    import onnx

    size = student.image_size
    example_NCHW = torch.zeros(2, 3, size, size)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _FromPixels(student).eval(),
                (example_NCHW,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"images": {0: torch.export.Dim("N")}},
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
            onnx.checker.check_model(model, full_check=True)
            return bytes(model.SerializeToString())
        except Exception as error:  # exporters, converters and checkers raise types of their own
            raise RunFailed(
                f"torch cannot write {student.architecture!r} as ONNX: {first_line(error)}; `--no-onnx` leaves it out"
            ) from error


def check(graph: bytes, student: Student, real_images: Sequence[torch.Tensor] = ()) -> Check:
    """Run both on real images and on noise, in batches of each size of `BATCHES`.

    Args:
        real_images: each float [3, H, W] in [0, 1].

    Raises:
        RunFailed: the logits differ by more than `TOLERANCE` of the largest.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its search for devices warns on stderr
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    size = student.image_size
    noise = torch.rand(2 * max(BATCHES), 3, size, size, generator=torch.Generator().manual_seed(0))
    images_NCHW = torch.stack([*real_images, *noise])
    difference = largest = 0.0
    agrees_N = torch.ones(len(images_NCHW), dtype=torch.bool)
    for batch_size in BATCHES:
        for start in range(0, len(images_NCHW), batch_size):
            batch_NCHW = images_NCHW[start : start + batch_size]
            with torch.no_grad():
                expected_NK = student(batch_NCHW).logits_BK
            got_NK = torch.from_numpy(session.run([OUTPUT], {INPUT: batch_NCHW.numpy()})[0])
            difference = max(difference, float((got_NK - expected_NK).abs().max()))
            largest = max(largest, float(expected_NK.abs().max()))
            agrees_N[start : start + batch_size] &= got_NK.argmax(dim=1) == expected_NK.argmax(dim=1)
    found = Check(
        max_difference=difference,
        max_logit=largest,
        num_agreeing=int(agrees_N.sum()),
        num_images=len(images_NCHW),
        num_real=len(real_images),
    )
    if not difference <= TOLERANCE * max(1.0, largest):  # also where one of them is not finite
        raise RunFailed(f"the ONNX graph is not the student: {found}; nothing was written, `--no-onnx` leaves it out")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's and onnxscript's remarks on their own conversions held back."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    with warnings.catch_warnings(action="ignore"):
        for logger in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)

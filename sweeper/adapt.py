"""Adapts a teacher to the task: a linear probe on its frozen embeddings, a fine-tune, or nothing.

A probed teacher often distils better than a fine-tuned one (Marrie et al. 2024, arXiv 2402.11305), so that the way is a
dimension of the search. The probe is fitted on embeddings of the canonical view that are computed once, in seconds, and
its penalty is chosen on the validation split; the test split is never read. No Ray here: `run` places the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch.nn import functional as F

from sweeper import cpu, probe, registry, views
from sweeper.adapted import CHANGED_FILE, CLASSIFIER_FILE
from sweeper.batches import ImageSplit, image_split
from sweeper.errors import RunFailed
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.store import Record, Store
from sweeper.views import ViewConfig

BATCH = 256
# The paper's fine-tune recipe (METHOD section 1).
FINE_TUNE_LR_BODY, FINE_TUNE_LR_HEAD, FINE_TUNE_DECAY, FINE_TUNE_BATCH = 1e-4, 1e-3, 5e-4, 64


@torch.no_grad()
def embed(teacher: Any, split: ImageSplit, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings [N, D] and logits [N, K] (None without a classifier) of the canonical view, on the CPU."""
    logits: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    for start in range(0, len(split), BATCH):
        images_BCHW = split.images_BCHW[start : start + BATCH].to(device)
        out = teacher(views.whole(images_BCHW, teacher.input_size, teacher.interpolation))
        embeddings.append(out.embedding_BD.float().cpu())
        if out.logits_BK is not None:
            logits.append(out.logits_BK.float().cpu())
    return torch.cat(embeddings), torch.cat(logits) if logits else None


def fine_tune(teacher: Any, split: ImageSplit, keys_N: np.ndarray, config: ViewConfig, steps: int, seed: int) -> None:
    """Train backbone and head with cross-entropy on random views, in place; ends in eval mode, frozen.

    Args:
        teacher: with a classifier of the task, on its device.
        keys_N: uint64 keys of the samples, for their views.
    """
    device = teacher.classifier.weight.device
    torch.manual_seed(seed)
    teacher.requires_grad_(True).train()
    head = list(teacher.classifier.parameters())
    body = [p for p in teacher.parameters() if all(p is not q for q in head)]
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": FINE_TUNE_LR_BODY}, {"params": head, "lr": FINE_TUNE_LR_HEAD}],
        weight_decay=FINE_TUNE_DECAY,
    )
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xF17E]))
    for step in range(steps):
        index = rng.integers(0, len(split), FINE_TUNE_BATCH)
        views_BP = torch.from_numpy(views.draw_views(config, seed, keys_N[index], np.full(len(index), step + 1)))
        images_BCHW = views.apply_views(
            split.images_BCHW[index].to(device), views_BP.to(device), teacher.input_size, teacher.interpolation
        )
        loss = F.cross_entropy(teacher(images_BCHW).logits_BK, split.labels_B[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    teacher.requires_grad_(False).eval()


def build(
    store: Store, artifact: Artifact, config: Settings, class_names: Sequence[str], view_config: ViewConfig
) -> Record:
    """Adapt one teacher on this process's device and commit what changed, with its accuracies in `meta`.

    Raises:
        InputError: the teacher can not be built.
        RunFailed: its outputs are not finite.
    """
    device = cpu.device_of_stage()
    spec = dict(artifact.spec)
    train, val, train_ids = _labelled(store, spec["images"])
    teacher: Any = registry.load("teachers", config.kind).build(config, class_names).to(device)  # type: ignore[attr-defined]
    way = config.adapt  # type: ignore[attr-defined]
    with DeviceTimer(device) as timer:
        if way != "none":
            features, _ = embed(teacher, train, device)
            val_features, _ = embed(teacher, val, device)
            head = probe.fit(features, train.labels_B, val_features, val.labels_B, device=device)
            teacher.with_classifier(head.weight, head.bias)
        if way == "fine_tune":
            keys_N = np.array([views.sample_key(s) for s in train_ids], dtype=np.uint64)
            fine_tune(teacher, train, keys_N, view_config, config.fine_tune_steps, spec["seed"])  # type: ignore[attr-defined]
    _, logits = embed(teacher, val, device)
    if logits is None or not bool(torch.isfinite(logits).all()):
        raise RunFailed(f"teacher {artifact.name!r}: its outputs on the validation images are not finite")
    meta = {"accuracy_val": float((logits.argmax(1) == val.labels_B).float().mean()), "adapt": way}
    charge = Charge(
        stage="adapt",
        key=artifact.key,
        seconds=timer.seconds + teacher.head_seconds,
        device=device_name(device),
        units=artifact.units,
    )
    prefix = store.staging()
    # small, all that a probe changes, and all that losses which reuse the teacher's classifier need of it
    store.write_bytes(prefix, CLASSIFIER_FILE, _tensors(teacher.classifier))
    if way == "fine_tune":
        store.write_bytes(prefix, CHANGED_FILE, _tensors(teacher))
    return store.commit(
        artifact.key, "adapt", spec, prefix, meta=meta, charge=charge, dependencies=artifact.dependencies
    )


def _labelled(store: Store, key: str) -> tuple[ImageSplit, ImageSplit, list[str]]:
    """The training and validation images, and the ids of the former."""
    images = store.get(key)
    if images is None:
        raise RunFailed(f"images {key[:12]} are not in {store.uri}; run again to build them")
    table, size = store.read_table(images), int(images.meta["image_size"])
    split = np.array(table["split"].to_pylist())
    train = table.filter(split == "train")
    ids: list[str] = train["sample_id"].to_pylist()
    return image_split(train, size), image_split(table.filter(split == "val"), size), ids


def _tensors(module: torch.nn.Module) -> bytes:
    return save_tensors({name: value.cpu().contiguous() for name, value in module.state_dict().items()})

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
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from sweeper import registry, views
from sweeper.adapted import CHANGED_FILE, CLASSIFIER_FILE
from sweeper.batches import ImageSplit, image_split
from sweeper.errors import RunFailed
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.store import Record, Store
from sweeper.views import ViewConfig

BATCH = 256
PROBE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # sklearn's C
# The paper's fine-tune recipe (METHOD section 1), with a number of steps fit for a small task.
FINE_TUNE_LR_BODY, FINE_TUNE_LR_HEAD, FINE_TUNE_DECAY, FINE_TUNE_STEPS, FINE_TUNE_BATCH = 1e-4, 1e-3, 5e-4, 300, 64


def resized(images_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    """The canonical view of uint8 images at a teacher's own resolution, floats in [0, 1]."""
    boxes_B5 = torch.tensor([views.CANONICAL], device=images_BCHW.device).expand(len(images_BCHW), 5)
    return views.apply_views(images_BCHW, boxes_B5, size)


@torch.no_grad()
def embed(teacher: Any, split: ImageSplit, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings [N, D] and logits [N, K] (None without a classifier) of the canonical view, on the CPU."""
    logits: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    for start in range(0, len(split), BATCH):
        out = teacher(resized(split.images_BCHW[start : start + BATCH].to(device), teacher.input_size))
        embeddings.append(out.embedding_BD.float().cpu())
        if out.logits_BK is not None:
            logits.append(out.logits_BK.float().cpu())
    return torch.cat(embeddings), torch.cat(logits) if logits else None


def fit_probe(train_ND: np.ndarray, labels_N: np.ndarray, val_MD: np.ndarray, val_labels_M: np.ndarray) -> nn.Linear:
    """Multinomial logistic regression on standardised features, the standardisation folded into the weights.

    The penalty is the one with the least cross-entropy on validation, not the best accuracy: students imitate the
    probabilities, and of the penalties that classify equally well most are far too soft or too sure.

    Args:
        train_ND, val_MD: embeddings; labels are 0 .. K-1 and each occurs in `labels_N`.
    """
    mean_D, std_D = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-6
    best: tuple[float, nn.Linear] | None = None
    for penalty in PROBE_PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=500).fit((train_ND - mean_D) / std_D, labels_N)
        weight_KD, bias_K = fitted.coef_, fitted.intercept_
        if len(weight_KD) == 1:  # sklearn keeps one row for two classes
            weight_KD, bias_K = np.concatenate([-weight_KD, weight_KD]) / 2, np.concatenate([-bias_K, bias_K]) / 2
        weight_KD = weight_KD / std_D
        head = nn.Linear(weight_KD.shape[1], len(weight_KD))
        head.weight.data = torch.from_numpy(weight_KD).float()
        head.bias.data = torch.from_numpy(bias_K - weight_KD @ mean_D).float()
        with torch.no_grad():
            logits_MK = head(torch.from_numpy(val_MD).float())
            loss = float(F.cross_entropy(logits_MK, torch.from_numpy(val_labels_M)))
        if best is None or loss < best[0]:
            best = (loss, head)
    assert best is not None
    return best[1]


def fine_tune(teacher: Any, split: ImageSplit, keys_N: np.ndarray, config: ViewConfig, seed: int) -> None:
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
    for step in range(FINE_TUNE_STEPS):
        index = rng.integers(0, len(split), FINE_TUNE_BATCH)
        boxes_B5 = torch.from_numpy(views.draw_views(config, seed, keys_N[index], np.full(len(index), step + 1)))
        images_BCHW = views.apply_views(split.images_BCHW[index].to(device), boxes_B5.to(device), teacher.input_size)
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    spec = dict(artifact.spec)
    images = store.get(spec["images"])
    if images is None:
        raise RunFailed(f"images {spec['images'][:12]} are not in {store.uri}; run again to build them")
    table, size = store.read_table(images), int(images.meta["image_size"])
    split = np.array(table["split"].to_pylist())
    train_rows = table.filter(split == "train")
    train, val = image_split(train_rows, size), image_split(table.filter(split == "val"), size)
    teacher: Any = registry.load("teachers", config.kind).build(config, class_names).to(device)  # type: ignore[attr-defined]
    changed: dict[str, torch.Tensor] = {}
    way = config.adapt  # type: ignore[attr-defined]
    with DeviceTimer(device) as timer:
        if way != "none":
            features, _ = embed(teacher, train, device)
            val_features, _ = embed(teacher, val, device)
            head = fit_probe(features.numpy(), train.labels_B.numpy(), val_features.numpy(), val.labels_B.numpy())
            teacher.with_classifier(head.weight.detach(), head.bias.detach())
            changed = {"weight": head.weight.detach().contiguous(), "bias": head.bias.detach().contiguous()}
        if way == "fine_tune":
            keys_N = np.array([views.sample_key(s) for s in train_rows["sample_id"].to_pylist()], dtype=np.uint64)
            fine_tune(teacher, train, keys_N, view_config, spec["seed"])
            changed = {name: value.cpu().contiguous() for name, value in teacher.state_dict().items()}
    _, logits = embed(teacher, val, device)
    if logits is None or not bool(torch.isfinite(logits).all()):
        raise RunFailed(f"teacher {artifact.name!r}: its outputs on the validation images are not finite")
    meta = {"accuracy_val": float((logits.argmax(1) == val.labels_B).float().mean()), "adapt": way}
    charge = Charge(
        stage="adapt", key=artifact.key, seconds=timer.seconds, device=device_name(device), units=artifact.units
    )
    prefix = store.staging()
    store.write_bytes(prefix, CHANGED_FILE, save_tensors(changed))
    # small, and all that losses which reuse the teacher's classifier need of it
    classifier = {name: value.cpu().contiguous() for name, value in teacher.classifier.state_dict().items()}
    store.write_bytes(prefix, CLASSIFIER_FILE, save_tensors(classifier))
    return store.commit(
        artifact.key, "adapt", spec, prefix, meta=meta, charge=charge, dependencies=artifact.dependencies
    )

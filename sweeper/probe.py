"""The linear probe: multinomial logistic regression on a teacher's embeddings, on the device that computed them.

The penalty is the one with the least cross-entropy on validation, not the best accuracy: students imitate the
probabilities, and of the penalties that classify equally well most are far too soft or too sure. The penalties are
tried from the strongest to the weakest, each fit beginning where the one before it ended, until validation gets worse.
SciPy's L-BFGS (Liu & Nocedal 1989) decides the steps, the device computes losses and gradients over full batches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # scikit-learn's C: the weight of the data, summed over samples
GRADIENT_TOLERANCE, MAX_STEPS = 3e-5, 500
LOSS_TOLERANCE = 1e-7  # of its value: below that, float32 does not tell better from worse


def fit(
    train_ND: Tensor,
    labels_N: Tensor,
    val_MD: Tensor,
    val_labels_M: Tensor,
    *,
    device: torch.device | None = None,
) -> nn.Linear:
    """The classifier of the embeddings as they are: features are standardised, and that is folded into the weights.

    Args:
        train_ND, val_MD: embeddings; labels are 0 .. K-1 and each occurs in `labels_N`.
        device: where it is fitted; the result is on the CPU, in float32.
    """
    mean_D = train_ND.double().mean(dim=0)
    std_D = train_ND.double().std(dim=0, correction=0) + 1e-6
    features_ND = ((train_ND - mean_D) / std_D).float().to(device)
    labels = labels_N.to(device)
    num_classes, width = int(labels_N.max()) + 1, train_ND.shape[1]
    weight_KD = torch.zeros(num_classes, width, device=device)
    bias_K = torch.zeros(num_classes, device=device)
    best, least = nn.Linear(width, num_classes), math.inf
    for penalty in sorted(PENALTIES):
        _minimise(weight_KD, bias_K, features_ND, labels, decay=1 / (penalty * len(labels)))
        head = _unstandardised(weight_KD, bias_K, mean_D, std_D)
        with torch.no_grad():
            loss = float(F.cross_entropy(head(val_MD.float()), val_labels_M))
        if loss >= least:
            break
        best, least = head, loss
    return best


def _minimise(weight_KD: Tensor, bias_K: Tensor, features_ND: Tensor, labels_N: Tensor, *, decay: float) -> None:
    """Move weights and bias, in place, to the least mean cross-entropy plus `decay` / 2 times the squared weights."""
    num_weights = weight_KD.numel()
    samples_N = torch.arange(len(labels_N), device=labels_N.device)

    def place(flat: np.ndarray) -> None:
        weight_KD.copy_(torch.from_numpy(flat[:num_weights]).view_as(weight_KD))
        bias_K.copy_(torch.from_numpy(flat[num_weights:]))

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        place(flat)
        log_NK = F.log_softmax(F.linear(features_ND, weight_KD, bias_K), dim=1)
        loss = F.nll_loss(log_NK, labels_N) + decay / 2 * weight_KD.square().sum()
        error_NK = log_NK.exp_()
        error_NK[samples_N, labels_N] -= 1
        error_NK /= len(labels_N)
        gradient_KD = torch.addmm(weight_KD, error_NK.T, features_ND, beta=decay)
        return float(loss), torch.cat([gradient_KD.flatten(), error_NK.sum(dim=0)]).double().cpu().numpy()

    start = torch.cat([weight_KD.flatten(), bias_K]).double().cpu().numpy()
    options = {"gtol": GRADIENT_TOLERANCE, "ftol": LOSS_TOLERANCE, "maxiter": MAX_STEPS}
    place(minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x)


def _unstandardised(weight_KD: Tensor, bias_K: Tensor, mean_D: Tensor, std_D: Tensor) -> nn.Linear:
    """The head that reads features with this mean and standard deviation, on the CPU."""
    raw_KD = weight_KD.double().cpu() / std_D
    head = nn.Linear(raw_KD.shape[1], len(raw_KD)).requires_grad_(False)
    head.weight.copy_(raw_KD)
    head.bias.copy_(bias_K.double().cpu() - raw_KD @ mean_D)
    return head

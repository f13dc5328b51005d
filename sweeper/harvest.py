"""From a finished search to the files of its results: rows of trials, of the Pareto table and of the ablation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sweeper import adaptations, cached, finalists, insight, report, tested
from sweeper.desk import candidates_of
from sweeper.finalists import Candidate, Entry, Summary
from sweeper.ledger import SECONDS_PER_HOUR, Cost, amortize
from sweeper.plan import Plan, artifact_uses, charges
from sweeper.racing import Reached, front_probability, winners_curse
from sweeper.results import RunFolder
from sweeper.retrainings import Outcomes
from sweeper.rows import FinalRow, Record, TrialRow, mean_and_std
from sweeper.savings import Savings, Training
from sweeper.spent import Normaliser, all_charges
from sweeper.store import Record as Artifact
from sweeper.study import Study
from sweeper.trial import TrialConfig

WORTH = 0.8  # of the best one's way above chance: what has less is of no use, however cheap


@dataclass(frozen=True)
class Final:
    """A retrained entry and what it reached."""

    entry: Entry
    summary: Summary
    seeds: Sequence[int]
    outcomes: Outcomes


def device_of(records: Iterable[Artifact]) -> str:
    """The device that the artifacts were made on, which is the lanes' too; `cpu` where nothing was measured."""
    names = [charge.device for charge in charges(records)]
    return names[0] if names else "cpu"


def candidates(book: Study) -> list[Candidate]:
    """What of the search's trials can stand on the front, by `search.front`."""
    found = []
    for trial in book.trials():
        config = TrialConfig.model_validate(trial.user_attrs["config"])
        for epochs, accuracy, hours in candidates_of(book.config.front, trial.user_attrs["outcome"]):
            found.append(Candidate(trial.number, config, accuracy, hours, epochs))
    return found


def worth_retraining(candidates: Sequence[Candidate], chance: float) -> list[Candidate]:
    """Those at least `WORTH` as far above `chance` as the best: not the first epochs of a front.

    Where none is above chance, those that are as good as the best.
    """
    best = max((c.accuracy_val for c in candidates), default=chance)
    least = chance + WORTH * (best - chance) if best > chance else best
    return [c for c in candidates if c.accuracy_val >= least]


def first_error(book: Study) -> str:
    """Why the first failed trial failed."""
    errors = [o["error"] for o in (t.user_attrs["outcome"] for t in book.trials()) if o["error"]]
    return f"the first of {len(errors)} failures: {errors[0]}" if errors else "none failed"


def _common(config: TrialConfig, params: int, device: str) -> dict[str, Any]:
    return {
        "teacher": config.taught_by,
        "student": config.student.model,
        "loss": config.loss_name,
        "synthetic_ratio": float(config.synthetic.ratio),
        "params": params,
        "device": device,
    }


def write(
    folder: RunFolder,
    plan: Plan,
    records: Mapping[str, Artifact],
    book: Study,
    finals: Sequence[Final],
    leaked: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write every table of the results; the page and the marker of a finished run come after it.

    Args:
        leaked: images in pools, too.
    """
    device = device_of(records.values())
    trials = book.trials()
    configs = [TrialConfig.model_validate(t.user_attrs["config"]) for t in trials]
    outcomes = [t.user_attrs["outcome"] for t in trials]
    shared = [(o["cost"]["train"], artifact_uses(plan, c, records)) for o, c in zip(outcomes, configs, strict=True)]
    found = candidates(book)
    mask = finalists.on_front(found, plan.config.search.objectives)
    front = {(c.trial, c.epochs) for c, is_on in zip(found, mask, strict=True) if is_on}
    on_front = {trial for trial, _ in front}
    trainings = [_training(c, o, Cost(**o["cost"])) for c, o in zip(configs, outcomes, strict=True)]
    savings = Savings(plan, trainings)
    spent = [*all_charges(records, book, finals, device)]
    normaliser = Normaliser(spent, plan.config.resources.prices, records)
    extras = [
        normaliser.columns([(o.get("device") or device, seconds)], uses)
        for o, (seconds, uses) in zip(outcomes, shared, strict=True)
    ]
    rows = [
        _trial_row(trial, training, amortized, savings, trial.number in on_front, device, extra)
        for trial, training, amortized, extra in zip(trials, trainings, amortize(shared), extras, strict=True)
    ]
    folder.write_trials(rows)
    folder.write_curves([row for t, o in zip(trials, outcomes, strict=True) for row in _curve(t.number, o, front)])
    folder.write_ledger(spent)
    finished = [_final_row(final, plan, records, shared, device, savings, normaliser) for final in finals]
    finished = _with_front_probability(finished, finals, plan.config.seed)
    tested.write(folder, plan, records, finals, finished)
    taught = [(c, o["epochs"]) for c, o in zip(configs, outcomes, strict=True)]
    taught += [(final.entry.config, final.summary.epochs) for final in finals for _ in final.seeds]
    folder.write_teachers(cached.teachers(plan, records, taught))
    facts = _image_facts(plan, records, leaked) | {
        "trials": f"{len(rows)} ({sum(row.state == 'stopped' for row in rows)} stopped early, "
        f"{sum(row.state == 'failed' for row in rows)} failed)",
        report.WINNERS_CURSE: curse_text(finals),
    }
    shared_seconds = math.fsum(charge.seconds for charge in charges(records.values()))
    reasons = insight.write(folder, book, num_classes=len(plan.index.class_names), shared_seconds=shared_seconds)
    facts |= {report.WHAT_MATTERED: reasons} if reasons else {}
    facts |= adaptations.facts(plan, records, found)
    folder.write_environment(device=device, facts=facts)


def _trial_row(
    trial: Any,
    training: Training,
    amortized: float,
    savings: Savings,
    is_on_front: bool,
    device: str,
    extra: dict[str, float],
) -> TrialRow:
    outcome = trial.user_attrs["outcome"]
    extra = {**_pretrain_hours(finalists.pretrain_seconds(outcome)), **_batch_parts(outcome), **extra}
    return TrialRow(
        trial=trial.number,
        epochs=outcome["epochs"],
        accuracy_val=float("nan") if outcome["accuracy_val"] is None else outcome["accuracy_val"],
        cost=training.cost,
        gpu_hours_amortized=amortized,
        state=outcome["state"],
        error=outcome["error"],
        config=trial.user_attrs["config"],
        on_front=is_on_front,
        extra=extra | savings.columns(training),
        **_common(training.config, outcome["params"], outcome.get("device") or device),
    )


def _image_facts(plan: Plan, records: Mapping[str, Artifact], leaked: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    counts = plan.index.split_counts()
    read = [records[item.key] for item in (plan.images, *plan.pools.values())]
    facts = {
        "images": f"{counts['train']} train, {counts['val']} val, {counts['test']} test",
        "classes": ", ".join(plan.index.class_names),
        "unreadable": ", ".join(lost["sample_id"] for r in read for lost in r.meta["unreadable"]) or "none",
    }
    twice = [*leaked, *(found for record in read for found in record.meta.get("duplicates", ()))]
    if twice:
        facts["in two splits"] = ", ".join(f"{t['count']} of {t['splits'][1]} in {t['splits'][0]}" for t in twice)
    return facts


def _curve(trial: int, outcome: Mapping[str, Any], front: set[tuple[int, int]]) -> list[Record]:
    """Every report of a trial, with what a training that ended there would cost alone."""
    cost = Cost(**outcome["cost"])
    return [
        {
            "trial": trial,
            "epoch": int(epoch),
            "accuracy_val": accuracy,
            "loss": loss,
            "train_seconds": seconds,
            "gpu_hours": (cost.total - cost.train + seconds) / SECONDS_PER_HOUR,
            "on_front": (trial, int(epoch)) in front,
        }
        for epoch, accuracy, loss, seconds in outcome["curve"]
    ]


def model_name(entry: Entry) -> str:
    """The folder below `models/` of a row of the front: its trial, and its epochs where those are not all."""
    return str(entry.trial) + (f"-e{entry.epochs}" if entry.epochs < entry.config.train.epochs else "")


def curse_text(finals: Sequence[Final]) -> str:
    """How much better the front looked in the search than it is on test, in a sentence."""
    rows = [
        Reached(
            searched=final.entry.searched_accuracy,
            retrained=final.summary.accuracy_val,
            tested=mean_and_std(final.summary.accuracies_test)[0],
        )
        for final in finals
        if final.entry.role == "front"
    ]
    curse = winners_curse(rows)
    return (
        f"validation minus test, mean over {len(rows)} row{'s' if len(rows) > 1 else ''}: "
        f"{100 * curse.searched:+.1f} points as the search saw them, {100 * curse.retrained:+.1f} retrained"
    )


def _with_front_probability(rows: Sequence[FinalRow], finals: Sequence[Final], seed: int) -> list[FinalRow]:
    """The rows of the front say how probably they are on it."""
    of_front = [(row, final) for row, final in zip(rows, finals, strict=True) if row.role == "front"]
    accuracies = [final.summary.accuracies_test for _, final in of_front]
    shares = iter(front_probability(accuracies, [row.cost.total for row, _ in of_front], seed=seed))
    return [
        replace(row, extra={**row.extra, "front_probability": next(shares) if row.role == "front" else math.nan})
        for row in rows
    ]


def _final_row(
    final: Final,
    plan: Plan,
    records: Mapping[str, Artifact],
    shared: Sequence[tuple[float, Any]],
    device: str,
    savings: Savings,
    normaliser: Normaliser,
) -> FinalRow:
    entry, summary = final.entry, final.summary
    uses = artifact_uses(plan, entry.config, records)
    mean, std = mean_and_std(summary.accuracies_test)
    cost = Cost.alone(summary.train_seconds, uses)
    training = _training(entry.config, asdict(summary), cost)
    return FinalRow(
        rank=0,
        trial=entry.trial,
        epochs=summary.epochs,
        accuracy_val=summary.accuracy_val,
        accuracy_test=mean,
        accuracy_test_std=std,
        seeds=len(final.seeds),
        cost=cost,
        gpu_hours_amortized=amortize([*shared, (summary.train_seconds, uses)])[-1],
        role=entry.role,  # type: ignore[arg-type]
        extra={
            "model_accuracy_test": summary.model_accuracy_test,
            **_pretrain_hours(summary.pretrain_seconds),
            **savings.columns(training),
            **normaliser.columns([(one or device, seconds) for one, seconds in summary.trainings], uses),
            "model": model_name(entry) if entry.role == "front" else None,
        },
        **_common(
            entry.config, summary.params, ", ".join(dict.fromkeys(one or device for one, _ in summary.trainings))
        ),
    )


def _training(config: TrialConfig, outcome: Mapping[str, Any], cost: Cost) -> Training:
    return Training(
        config=config,
        epochs=outcome["epochs"],
        task_seconds=cost.train - finalists.pretrain_seconds(outcome),
        cost=cost,
        accuracy_val=-1.0 if outcome["accuracy_val"] is None else outcome["accuracy_val"],
    )


def _pretrain_hours(seconds: float) -> dict[str, float]:
    """The column beside the contract's; these hours are part of `gpu_hours_train`."""
    return {"gpu_hours_pretrain": seconds / SECONDS_PER_HOUR}


def _batch_parts(outcome: Mapping[str, Any]) -> dict[str, int]:
    """The column of trials whose batches did not fit the device's memory, where there are any."""
    parts = outcome.get("parts", 1)
    return {"batch_parts": parts} if parts > 1 else {}

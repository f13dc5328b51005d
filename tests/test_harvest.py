"""Results of a made-up search: every file is there, and the ledger adds up, to the second."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from samples import TRIAL_TREE, commit_artifact, dataset_index, space_of, sweep_config

from sweeper import finalists, harvest
from sweeper.finalists import Candidate
from sweeper.ledger import Charge, Cost
from sweeper.plan import Plan, artifact_uses, make_plan
from sweeper.results import COLUMNS, RunFolder
from sweeper.retrainings import Outcomes
from sweeper.store import Record, Store
from sweeper.study import Study
from sweeper.trial import TrialConfig

SEEDS = (1, 2)
PARTS = ("gpu_hours_adapt", "gpu_hours_targets", "gpu_hours_synthetic", "gpu_hours_train")
SECONDS = {"adapt": 100.0, "synthetic": 700.0, "targets": 40.0}
DEVICE = "NVIDIA Imaginary"
PRETRAINED = {1: 4.0, 2: 6.5}  # seconds of these trials of the search
STATES = ("completed", "completed", "stopped", "completed", "failed", "completed", "completed", "completed")


@dataclass(frozen=True)
class Run:
    """A finished search and its finalists, with the folder that `harvest.write` filled."""

    folder: RunFolder
    plan: Plan
    records: dict[str, Record]
    book: Study
    finals: list[harvest.Final]

    @property
    def used_seconds(self) -> float:
        """Of all artifacts that some trial of the search used."""
        used = [artifact_uses(self.plan, self.config(t), self.records) for t in self.book.trials()]
        return math.fsum({k: use.seconds for uses in used for k, use in uses.items() if use.share}.values())

    @property
    def trained_seconds(self) -> float:
        return math.fsum(t.user_attrs["outcome"]["cost"]["train"] for t in self.book.trials())

    @staticmethod
    def config(trial: Any) -> TrialConfig:
        return TrialConfig.model_validate(trial.user_attrs["config"])


def searched(folder: Path, plan: Plan, records: dict[str, Record]) -> Study:
    """Eight trials: outcomes that depend on their number, costs as the ledger gives them."""
    book = Study(folder / "journal", plan.config.search, space_of(plan.config), seed=3)
    for number, state in enumerate(STATES):
        asked, config = book.ask()
        assert asked == number
        epochs = {"completed": config.train.epochs, "stopped": 4, "failed": 0}[state]
        seconds = 10.0 + 3 * number
        cost = Cost.alone(seconds, artifact_uses(plan, config, records))
        accuracy = None if state == "failed" else 0.5 + 0.05 * (number % 5)
        outcome = {
            "state": state,
            "error": "TrialFailed: the loss became nan" if state == "failed" else None,
            "epochs": epochs,
            "num_epochs": config.train.epochs,
            "accuracy_val": accuracy,
            "cost": {"adapt": cost.adapt, "targets": cost.targets, "synthetic": cost.synthetic, "train": cost.train},
            "pretrain_seconds": PRETRAINED.get(number, 0.0),
            "params": 0 if state == "failed" else 1000 + number,
            "curve": [
                [
                    e + 1,
                    accuracy and accuracy * (1 - 0.6 ** (e + 1)) / (1 - 0.6**epochs),
                    1.0 / (e + 1),
                    seconds * (e + 1) / epochs,
                ]
                for e in range(epochs)
            ],
        }
        book.record(number, outcome)
    return book


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("harvest"))


@pytest.fixture(scope="module")
def anytime(tmp_path_factory: pytest.TempPathFactory) -> Run:
    scheduler = {"kind": "mo_asha", "grace": 2, "reduction": 2}
    return finished(tmp_path_factory.mktemp("anytime"), front="anytime", scheduler=scheduler)


def finished(base: Path, **search: Any) -> Run:
    store = Store(str(base / "store"))
    trial = {**TRIAL_TREE, "teacher": {"choice": ["cnn", "none"]}}
    config = sweep_config(trial=trial, search={"trials": 8, "front": "final", "scheduler": {"kind": "fifo"}, **search})
    plan = make_plan(config, space_of(config), dataset_index(), store)
    records: dict[str, Record] = {}
    for item in plan.artifacts():
        seconds = SECONDS.get(item.kind)
        charge = seconds and Charge(stage=item.kind, key=item.key, seconds=seconds, device=DEVICE, units=item.units)  # type: ignore[arg-type]
        twice = [{"splits": ["train", "test"], "count": 2, "examples": [["train/1", "test/1"]]}]
        lost = [{"sample_id": "train/99", "error": "cut"}]
        meta: Any = {"unreadable": lost, "duplicates": twice} if item.kind == "images" else None
        meta = {"accuracy_val": 0.625, "adapt": "linear_probe"} if item.kind == "adapt" else meta
        records[item.key] = commit_artifact(store, item, charge=charge or None, meta=meta)
    book = searched(base, plan, records)
    candidates = harvest.candidates(book)
    worth = harvest.worth_retraining(candidates, 1 / len(plan.index.class_names))
    entries = finalists.select(worth, config.search.objectives, 3, num_val=100) + finalists.arms(candidates)
    outcomes = Outcomes(base / "finalists")
    for entry in entries:
        for seed in SEEDS:
            outcome = {"accuracy_val": 0.6 + seed / 100, "accuracy_test": 0.5 + seed / 10, "train_seconds": 50.0 * seed}
            outcome |= {"pretrain_seconds": 10.0 * seed, "confusion": [[0, 0, 2], [1, 0, seed], [2, 2, 3]]}
            model = {"config.json": b"{}", "model.safetensors": f"{entry.trial} {seed}".encode()}
            name = finalists.job_name(entry.config, seed, entry.epochs)
            outcomes.put(name, {**outcome, "epochs": entry.epochs, "params": 1234, "model": model})
    finals = [harvest.Final(e, finalists.summarise(e, SEEDS, outcomes), SEEDS, outcomes) for e in entries]
    folder = RunFolder(base / "results" / "tiny" / "r1")
    folder.write_space({"name": "tiny", "trial": config.trial})
    assert not folder.finished
    harvest.write(folder, plan, records, book, finals)
    folder.write_report()
    folder.finish()
    return Run(folder, plan, records, book, finals)


def test_the_sample_has_what_matters(run: Run) -> None:
    configs = [run.config(t) for t in run.book.trials()]
    kinds = {(c.teacher != "none", c.synthetic.ratio) for c in configs}
    assert {True, False} == {taught for taught, _ in kinds}
    assert len({ratio for _, ratio in kinds}) > 1
    assert {final.entry.role for final in run.finals} == {"front", "distilled+synthetic", "distilled", "scratch"}


def test_every_file_is_there_and_the_run_is_finished(run: Run) -> None:
    assert run.folder.finished
    names = {p.name for p in run.folder.path.iterdir()}
    texts = {f"pareto.{ext}" for ext in ("csv", "md", "tex", "parquet", "png", "pdf")}
    arms = {f"ablation.{ext}" for ext in ("csv", "md", "parquet")}
    tables = {"trials.parquet", "curves.parquet", "ledger.parquet", "hypervolume.parquet", "space.yaml"}
    tables |= {"finalists.parquet", "confusion.parquet", "teachers.parquet"}
    assert names == {*texts, *arms, *tables, "environment.json", "report.html", "models", "done.json"}
    front = {str(final.entry.trial) for final in run.finals if final.entry.role == "front"}
    assert {p.name for p in (run.folder.path / "models").iterdir()} == front
    for trial in front:  # both seeds' accuracies are known: the second was the better one on validation
        assert (run.folder.path / "models" / trial / "model.safetensors").read_bytes() == f"{trial} 2".encode()


def test_columns_are_exact(run: Run) -> None:
    with (run.folder.path / "pareto.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == [*COLUMNS, "role", "model_accuracy_test", "gpu_hours_pretrain", "model", "front_probability"]
    assert pq.read_schema(run.folder.path / "pareto.parquet").names == header
    assert pq.read_schema(run.folder.path / "ablation.parquet").names == header
    names = pq.read_schema(run.folder.path / "trials.parquet").names
    assert names == [*COLUMNS, "state", "error", "config", "on_front", "gpu_hours_pretrain"]


def test_hours_are_the_sum_of_their_parts(run: Run) -> None:
    rows = [*run.folder.read_trials(), *run.folder.read_pareto(), *run.folder.read_ablation()]
    assert len(rows) == len(STATES) + len(run.finals)
    for row in rows:
        assert row["gpu_hours"] == sum(row[part] for part in PARTS)
        assert row["gpu_hours"] > 0
    for row, trial in zip(run.folder.read_trials(), run.book.trials(), strict=True):
        cost = trial.user_attrs["outcome"]["cost"]
        assert [row[part] * 3600 for part in PARTS] == pytest.approx(
            [cost[name] for name in ("adapt", "targets", "synthetic", "train")]
        )


def test_a_trial_without_a_teacher_pays_for_none(run: Run) -> None:
    for row in run.folder.read_trials():
        taught = row["teacher"] != "none"
        assert (row["gpu_hours_adapt"] * 3600, row["gpu_hours_targets"] > 0) == (100.0 if taught else 0.0, taught)
        # Images were made for ratio 2: a trial pays for its share of them.
        assert row["gpu_hours_synthetic"] * 3600 == pytest.approx(700 * row["synthetic_ratio"] / 2)


def test_the_amortized_hours_of_all_trials_are_all_device_time(run: Run) -> None:
    amortized = math.fsum(row["gpu_hours_amortized"] for row in run.folder.read_trials())
    assert amortized * 3600 == pytest.approx(run.trained_seconds + run.used_seconds)


def test_the_ledger_holds_every_charge_once(run: Run) -> None:
    ledger = run.folder.read_ledger()
    assert len({(row["stage"], row["key"]) for row in ledger}) == len(ledger)
    seconds: dict[str, float] = {}
    for row in ledger:
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + row["seconds"]
    distinct = {
        finalists.job_name(f.entry.config, seed, f.entry.epochs): 50.0 * seed for f in run.finals for seed in SEEDS
    }
    pretrained = sum(PRETRAINED.values()) + sum(distinct.values()) / 5  # 10 of 50 seconds
    assert sum(row["stage"] == "train" for row in ledger) == len(STATES) + len(distinct)
    assert seconds == {
        "adapt": 100.0,
        "synthetic": 700.0,
        "targets": 80.0,
        "pretrain": pytest.approx(pretrained),
        "train": pytest.approx(run.trained_seconds + sum(distinct.values()) - pretrained),
    }
    charged = {row["key"]: row["seconds"] for row in ledger if row["stage"] == "pretrain"}
    assert {key: s for key, s in charged.items() if key.startswith("trial-")} == {
        f"trial-{number:05d}": seconds for number, seconds in PRETRAINED.items()
    }


def test_hours_of_pretraining_are_a_part_of_the_training(run: Run) -> None:
    trials = [row["gpu_hours_pretrain"] * 3600 for row in run.folder.read_trials()]
    assert trials == pytest.approx([PRETRAINED.get(number, 0.0) for number in range(len(STATES))])
    for row in [*run.folder.read_pareto(), *run.folder.read_ablation()]:
        assert row["gpu_hours_pretrain"] * 3600 == pytest.approx(15.0)
        assert row["gpu_hours_train"] * 3600 == pytest.approx(75.0)


def test_trials_say_how_they_ended(run: Run) -> None:
    rows = run.folder.read_trials()
    assert [row["trial"] for row in rows] == list(range(len(STATES)))
    assert [row["state"] for row in rows] == list(STATES)
    assert [row["error"] is not None for row in rows] == [state == "failed" for state in STATES]
    assert [row["accuracy_val"] is None for row in rows] == [state == "failed" for state in STATES]
    for row, trial in zip(rows, run.book.trials(), strict=True):
        assert row["config"] == trial.user_attrs["config"]
        assert (row["device"], row["seeds"], row["accuracy_test"], row["rank"]) == (DEVICE, 1, None, None)
    front = {row["trial"] for row in rows if row["on_front"]}
    assert front >= {final.entry.trial for final in run.finals if final.entry.role == "front"}
    assert all(STATES[trial] == "completed" for trial in front)


def test_pareto_rows_are_ranked_and_tested(run: Run) -> None:
    rows = run.folder.read_pareto()
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    order = [(-row["accuracy_val"], row["gpu_hours"]) for row in rows]
    assert order == sorted(order)
    for row in rows:
        assert (row["role"], row["seeds"], row["epochs"], row["params"]) == ("front", 2, 10, 1234)
        assert row["accuracy_test"] == pytest.approx(0.65)
        assert row["accuracy_test_std"] == pytest.approx(0.1 / math.sqrt(2))
        assert row["model_accuracy_test"] == pytest.approx(0.7)
        assert row["gpu_hours_train"] * 3600 == pytest.approx(75)
    arms = run.folder.read_ablation()
    assert [row["role"] for row in arms] == ["distilled+synthetic", "distilled", "scratch"]
    assert [row["loss"] for row in arms][2] == "ce"
    assert [row["gpu_hours_synthetic"] > 0 for row in arms] == [True, False, False]


def test_every_retraining_is_kept_by_seed(run: Run) -> None:
    found = run.folder.read_finalists()
    assert len(found) == len(run.finals) * len(SEEDS)
    ranks = {(row["trial"], row["epochs"]): row["rank"] for row in run.folder.read_pareto()}
    for record in found:
        seed = record["seed"]
        assert (record["accuracy_val"], record["accuracy_test"]) == (0.6 + seed / 100, 0.5 + seed / 10)
        assert record["gpu_hours_train"] * 3600 == pytest.approx(50 * seed)
        is_front = record["role"] == "front"
        assert record["rank"] == (ranks[record["trial"], record["epochs"]] if is_front else None)
    for row in run.folder.read_pareto():
        own = [record["gpu_hours"] for record in found if record["rank"] == row["rank"]]
        assert math.fsum(own) / len(own) == pytest.approx(row["gpu_hours"])


def test_mistakes_are_those_of_the_exported_student_of_each_row(run: Run) -> None:
    found = run.folder.read_confusion()
    for row in run.folder.read_pareto():
        own = [(r["truth"], r["taken_for"], r["images"]) for r in found if r["rank"] == row["rank"]]
        assert own == [("red", "red", 2), ("green", "red", 2), ("blue", "blue", 3)], "of seed 2, best on validation"
        assert {r["model"] for r in found if r["rank"] == row["rank"]} == {row["model"]}
    assert {r["rank"] for r in found} == {row["rank"] for row in run.folder.read_pareto()}


def test_a_run_that_began_before_mistakes_were_kept_has_none(run: Run, tmp_path: Path) -> None:
    """An earlier version's retrainings are not done again."""
    folder = RunFolder(tmp_path / "tiny" / "old")
    old = Outcomes(tmp_path / "finalists")
    for final in run.finals:
        for seed in SEEDS:
            name = finalists.job_name(final.entry.config, seed, final.entry.epochs)
            outcome = final.outcomes.get(name) or {}
            outcome.pop("confusion", None)
            old.put(name, {**outcome, "model": final.outcomes.model(name)})
    finals = [replace(final, outcomes=old) for final in run.finals]
    harvest.write(folder, run.plan, run.records, run.book, finals)
    assert folder.read_confusion() == []
    assert folder.read_finalists() == run.folder.read_finalists()


def test_teachers_say_what_their_cache_cost_and_how_often_it_was_read(run: Run) -> None:
    (found,) = run.folder.read_teachers()
    assert {name: found[name] for name in ("teacher", "adapt", "accuracy_val", "device")} == {
        "teacher": "cnn", "adapt": "linear_probe", "accuracy_val": 0.625, "device": DEVICE,
    }  # fmt: skip
    assert (found["seconds_adapt"], found["seconds_targets"]) == (100.0, 80.0)
    assert found["views_cached"] == sum(item.units for item in run.plan.targets.values())
    reads = 0
    trainings = [(run.config(t), t.user_attrs["outcome"]["epochs"]) for t in run.book.trials()]
    trainings += [(f.entry.config, f.entry.epochs) for f in run.finals for _ in SEEDS]
    for config, epochs in trainings:
        images = run.plan.num_train + run.plan.num_synthetic(config)
        batch = config.train.batch_size
        reads += epochs * batch * max(1, round((config.train.epoch_size or images) / batch)) * (config.teacher == "cnn")
    assert found["views_read"] == reads > 0


def test_a_finalist_shares_artifacts_with_the_search(run: Run) -> None:
    """Amortised, it pays its training and of each artifact as large a part as it has of all that was used."""
    searched = [artifact_uses(run.plan, run.config(t), run.records) for t in run.book.trials()]
    rows = {(row["role"], row["trial"]): row for row in [*run.folder.read_pareto(), *run.folder.read_ablation()]}
    assert len(rows) == len(run.finals)
    for final in run.finals:
        expected = final.summary.train_seconds
        for key, use in artifact_uses(run.plan, final.entry.config, run.records).items():
            everyone = use.share + math.fsum(uses[key].share for uses in searched if key in uses)
            expected += use.seconds * use.share / everyone
        row = rows[final.entry.role, final.entry.trial]
        assert row["gpu_hours_amortized"] * 3600 == pytest.approx(expected)


def test_curves_are_every_report(run: Run) -> None:
    found = [(row["trial"], row["epoch"]) for row in run.folder.read_curves()]
    epochs = {"completed": 10, "stopped": 4, "failed": 0}
    assert found == [(i, e + 1) for i, state in enumerate(STATES) for e in range(epochs[state])]
    last = run.folder.read_curves()[-1]
    assert (last["loss"], last["train_seconds"]) == (pytest.approx(0.1), pytest.approx(31.0))


def test_the_facts_say_what_it_was(run: Run) -> None:
    facts = run.folder.read_environment()["facts"]
    assert facts.pop("winner's curse") == harvest.curse_text(run.finals)
    assert facts.pop("what mattered").startswith("For accuracy: 7 trials ended, too few to tell")
    assert facts == {
        "images": "12 train, 6 val, 9 test",
        "classes": "red, green, blue",
        "unreadable": "train/99",
        "in two splits": "2 of test in train",
        "trials": "8 (1 stopped early, 1 failed)",
        "teachers": "cnn: 0.625 on validation (linear probe, 100 GPU-s)",
        "warning": "teacher cnn (0.625) is worse than the best student (0.650, trial 3), both on validation: who "
        "imitates it learns its mistakes; adapt it otherwise, take a better one, or leave it out.",
    }


def test_candidates_are_completed_trials(run: Run) -> None:
    found = harvest.candidates(run.book)
    assert [c.trial for c in found] == [i for i, state in enumerate(STATES) if state == "completed"]
    by_trial = {row["trial"]: row for row in run.folder.read_trials()}
    assert [(c.accuracy_val, c.gpu_hours) for c in found] == [
        (by_trial[c.trial]["accuracy_val"], by_trial[c.trial]["gpu_hours"]) for c in found
    ]
    assert [c.config for c in found] == [
        run.config(t) for t in run.book.trials() if t.number in {c.trial for c in found}
    ]


def test_the_first_error_is_told(run: Run, tmp_path: Path) -> None:
    assert harvest.first_error(run.book) == "the first of 1 failures: TrialFailed: the loss became nan"
    empty = Study(tmp_path / "journal", run.plan.config.search, space_of(run.plan.config), 0)
    assert harvest.first_error(empty) == "none failed"


def test_the_device_is_the_artifacts(run: Run) -> None:
    assert harvest.device_of(run.records.values()) == DEVICE
    assert harvest.device_of([run.records[run.plan.images.key]]) == "cpu"


def test_writing_again_changes_nothing(run: Run) -> None:
    """A run that is killed while it writes its results writes them again."""
    stable = [p for p in sorted(run.folder.path.rglob("*")) if p.suffix in (".csv", ".md", ".tex", ".parquet")]
    assert len(stable) == 4 + 4 + 3 + 3, "trials, curves, ledger, hypervolume; pareto; ablation; tested and teachers"
    before = {p: p.read_bytes() for p in stable}
    harvest.write(run.folder, run.plan, run.records, run.book, run.finals)
    assert {p: p.read_bytes() for p in stable} == before
    assert run.folder.finished


class TestAnytime:
    def test_every_epoch_that_is_confirmed_is_a_candidate(self, anytime: Run) -> None:
        found = {(c.trial, c.epochs): c for c in harvest.candidates(anytime.book)}
        outcomes = {t.number: t.user_attrs["outcome"] for t in anytime.book.trials()}
        confirmed = {n: o["epochs"] - (o["state"] != "completed") for n, o in outcomes.items()}
        assert set(found) == {(trial, e + 1) for trial, count in confirmed.items() for e in range(count)}
        rows = {(row["trial"], row["epoch"]): row for row in anytime.folder.read_curves()}
        for key, candidate in found.items():
            row = rows[key]
            assert row["gpu_hours"] == pytest.approx(candidate.gpu_hours)
            assert row["accuracy_val"] == candidate.accuracy_val

    def test_a_trial_is_on_the_front_with_any_of_its_epochs(self, anytime: Run) -> None:
        on_front = {row["trial"] for row in anytime.folder.read_curves() if row["on_front"]}
        assert {row["trial"] for row in anytime.folder.read_trials() if row["on_front"]} == on_front
        assert len(on_front) > 0

    def test_rows_that_end_early_have_models_of_their_own(self, anytime: Run) -> None:
        rows = anytime.folder.read_pareto()
        names = [row["model"] for row in rows]
        assert {p.name for p in (anytime.folder.path / "models").iterdir()} == set(names)
        assert any(row["model"] == f"{row['trial']}-e{row['epochs']}" and row["epochs"] < 10 for row in rows)
        assert all(row["model"] == str(row["trial"]) for row in rows if row["epochs"] == 10)

    def test_rungs_are_held_against_the_end(self, anytime: Run) -> None:
        assert [(r["rung"], r["epochs"]) for r in anytime.folder.read_rungs()] == [(1, 2), (2, 4), (3, 8)]
        assert all(r["trials"] == STATES.count("completed") for r in anytime.folder.read_rungs())

    def test_the_first_epochs_of_a_front_are_not_retrained(self, anytime: Run) -> None:
        found = harvest.candidates(anytime.book)
        best = max(c.accuracy_val for c in found)
        worth = harvest.worth_retraining(found, 0.1)
        floor = 0.1 + harvest.WORTH * (best - 0.1)
        assert {c.accuracy_val >= floor for c in worth} == {True}
        left = len([c for c in found if c.accuracy_val < floor])
        assert len(worth) == len(found) - left < len(found)


def test_where_nothing_is_better_than_chance_the_best_is_still_retrained() -> None:
    config = TrialConfig.model_validate({"student": {"model": "any"}})
    found = [Candidate(trial, config, accuracy, 1.0, 1) for trial, accuracy in enumerate([0.0, 0.004, 0.004])]
    assert [c.trial for c in harvest.worth_retraining(found, 0.005)] == [1, 2]
    assert [c.trial for c in harvest.worth_retraining(found[:1], 0.005)] == [0]


def test_what_a_front_promised_and_kept_is_said(run: Run) -> None:
    text = harvest.curse_text(run.finals)
    front = [f for f in run.finals if f.entry.role == "front"]
    searched = sum(f.entry.searched_accuracy - 0.65 for f in front) / len(front)
    assert text.startswith(f"validation minus test, mean over {len(front)} row")
    assert f"{100 * searched:+.1f} points as the search saw them, -3.5 retrained" in text
    probabilities = [row["front_probability"] for row in run.folder.read_pareto()]
    assert all(0 <= p <= 1 for p in probabilities)
    assert max(probabilities) > 0
    assert all(row["front_probability"] is None for row in run.folder.read_ablation())

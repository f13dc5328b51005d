"""Who is retrained: the front by validation alone, equal configurations once, and the arms of the method's claim."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from sweeper import finalists
from sweeper.config import OBJECTIVES
from sweeper.finalists import Candidate, Entry, Outcomes, arms, job_name, on_front, select, summarise
from sweeper.trial import TrialConfig

BOTH = dict(OBJECTIVES)


def config(teacher: str = "cnn", ratio: float = 0.0, lr: float = 1e-3, **sections: Any) -> TrialConfig:
    tree = {
        "teacher": teacher,
        "student": {"model": "test_resnet"},
        "synthetic": {"source": "sd", "ratio": ratio},
        "loss": {"ce": 0.5, "kl": {"weight": 1.0}},
        "train": {"lr": lr},
    }
    return TrialConfig.model_validate({**tree, **sections}).resolved()


def candidate(trial: int, accuracy: float, hours: float, of: TrialConfig | None = None) -> Candidate:
    return Candidate(trial, of or config(lr=1e-3 + 1e-6 * trial), accuracy, hours)


class TestFront:
    def test_is_what_nothing_beats(self) -> None:
        """Against the definition, point by point."""
        draw = random.Random(0)
        for _ in range(20):
            found = [candidate(i, draw.randrange(6) / 6, draw.randrange(6)) for i in range(9)]
            expected = [
                not any(
                    o.accuracy_val >= c.accuracy_val
                    and o.gpu_hours <= c.gpu_hours
                    and (o.accuracy_val, o.gpu_hours) != (c.accuracy_val, c.gpu_hours)
                    for o in found
                )
                for c in found
            ]
            assert on_front(found, BOTH) == expected
            assert on_front(found, dict(reversed(BOTH.items()))) == expected

    def test_of_one_objective_is_the_best(self) -> None:
        found = [candidate(0, 0.5, 1), candidate(1, 0.7, 9), candidate(2, 0.7, 3), candidate(3, 0.6, 2)]
        assert on_front(found, {"accuracy": "max"}) == [False, True, True, False]
        assert on_front(found, {"gpu_hours": "min"}) == [True, False, False, False]

    def test_of_nothing_is_empty(self) -> None:
        assert on_front([], BOTH) == []
        assert select([], BOTH, 3) == []


class TestSelect:
    FOUND = (
        candidate(0, 0.9, 9.0),
        candidate(1, 0.5, 1.0),
        candidate(2, 0.7, 2.0),
        candidate(3, 0.7, 3.0),  # beaten by 2
        candidate(4, 0.8, 5.0),
    )

    def test_the_most_accurate_of_the_front_in_any_order(self) -> None:
        for order in itertools.permutations(self.FOUND):
            assert [entry.trial for entry in select(order, BOTH, 3)] == [0, 4, 2]
        everything = select(self.FOUND, BOTH, 99)
        assert [(e.role, e.trial, e.config) for e in everything] == [
            ("front", i, self.FOUND[i].config) for i in (0, 4, 2, 1)
        ]

    def test_equal_configurations_count_once(self) -> None:
        same = config()
        found = [candidate(3, 0.9, 1.0, same), candidate(1, 0.9, 1.0, same), candidate(2, 0.8, 0.5)]
        assert [entry.trial for entry in select(found, BOTH, 2)] == [1, 2], "the earlier one, and room for another"


class TestArms:
    def test_take_away_the_images_and_then_the_teacher(self) -> None:
        full = config("cnn", ratio=2.0, lr=3e-3)
        found = arms([candidate(0, 0.99, 1, config("none", 2.0)), candidate(1, 0.7, 1), candidate(2, 0.6, 5, full)])
        assert [(entry.role, entry.trial) for entry in found] == [
            ("distilled+synthetic", 2),
            ("distilled", 2),
            ("scratch", 2),
        ]
        both, distilled, scratch = (entry.config for entry in found)
        assert both == full
        assert distilled == config("cnn", ratio=0.0, lr=3e-3)
        assert scratch == config("none", ratio=0.0, lr=3e-3)
        assert (scratch.loss_name, scratch.student, scratch.train) == ("ce", full.student, full.train)
        assert all(entry.config == entry.config.resolved() for entry in found), "equal to what a search would write"

    def test_the_most_accurate_one_with_both_is_kept(self) -> None:
        found = [candidate(i, a, 1, config(ratio=1.0, lr=1e-3 * (i + 1))) for i, a in enumerate((0.6, 0.8, 0.7))]
        assert {entry.trial for entry in arms(found)} == {1}
        tie = [candidate(i, 0.8, hours, config(ratio=1.0)) for i, hours in enumerate((2.0, 1.0, 1.0))]
        assert {entry.trial for entry in arms(tie)} == {1}, "then the cheapest, then the first"

    def test_there_are_fewer_without_images_or_teachers(self) -> None:
        assert [e.role for e in arms([candidate(0, 0.5, 1), candidate(1, 0.6, 1)])] == ["distilled", "scratch"]
        assert arms([candidate(0, 0.5, 1, config("none", 2.0))]) == []
        assert arms([]) == []


def test_a_name_follows_the_configuration_and_the_seed() -> None:
    names = {
        job_name(config(teacher, ratio), seed) for teacher in ("cnn", "vit") for ratio in (0, 1) for seed in (1, 2)
    }
    assert len(names) == 8
    assert job_name(config(), 1) == job_name(TrialConfig.model_validate(config().model_dump(mode="json")), 1)
    front = select([candidate(0, 0.9, 1, config(ratio=1.0))], BOTH, 1)
    arm = arms([candidate(0, 0.9, 1, config(ratio=1.0))])
    assert job_name(front[0].config, 3) == job_name(arm[0].config, 3), "a finalist and its arm are trained once"


def outcome(seed: int = 0, **changes: Any) -> dict[str, Any]:
    found = {"type": "end", "state": "completed", "error": None, "epochs": 4, "params": 9, "train_seconds": 2.0 + seed}
    accuracies = {"accuracy_val": 0.25 * seed, "accuracy_test": 0.1 * seed}
    return {**found, **accuracies, "model": {"config.json": b"{}", "model.safetensors": bytes([seed])}, **changes}


class TestOutcomes:
    def test_come_back_with_their_model(self, tmp_path: Path) -> None:
        Outcomes(tmp_path / "finalists").put("one", outcome(1))
        kept = Outcomes(tmp_path / "finalists")
        assert kept.get("one") == {key: value for key, value in outcome(1).items() if key != "model"}
        assert kept.model("one") == outcome(1)["model"]
        assert kept.get("other") is None

    def test_a_later_one_replaces_it(self, tmp_path: Path) -> None:
        kept = Outcomes(tmp_path)
        kept.put("one", outcome(1))
        kept.put("one", outcome(2))
        assert kept.model("one")["model.safetensors"] == bytes([2])
        assert kept.get("one") == {key: value for key, value in outcome(2).items() if key != "model"}

    def test_are_whole_or_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed after any of its writes, a retraining is still to be done; the next one leaves no trace of it."""
        write = finalists.write_atomically
        for survivors in range(3):
            kept = Outcomes(tmp_path / str(survivors))
            left = iter(range(survivors))

            def dies(path: Path, data: bytes, left: Any = left) -> None:
                if next(left, None) is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    (path.parent / f".{path.name}.17-4.part").write_bytes(data[:1])
                    raise KeyboardInterrupt
                write(path, data)

            with monkeypatch.context() as patch:
                patch.setattr(finalists, "write_atomically", dies)
                with pytest.raises(KeyboardInterrupt):
                    kept.put("one", outcome(1))
            assert kept.get("one") is None
            kept.put("one", outcome(2))
            assert kept.model("one") == outcome(2)["model"], "what a kill left half-written is no file of the model"


class TestSummary:
    ENTRY = Entry("front", 4, config())

    def kept(self, folder: Path, *found: dict[str, Any]) -> Outcomes:
        outcomes = Outcomes(folder)
        for seed, one in enumerate(found):
            outcomes.put(job_name(self.ENTRY.config, seed), one)
        return outcomes

    def test_means_over_the_seeds_and_the_model_that_was_best_on_validation(self, tmp_path: Path) -> None:
        found = [
            outcome(accuracy_val=0.5, accuracy_test=0.9, train_seconds=1.0),
            outcome(accuracy_val=0.75, accuracy_test=0.1, train_seconds=2.0, epochs=3, params=8),
            outcome(accuracy_val=0.25, accuracy_test=0.2, train_seconds=6.0),
        ]
        summary = summarise(self.ENTRY, range(3), self.kept(tmp_path, *found))
        assert (summary.accuracy_val, summary.train_seconds) == (0.5, 3.0)
        assert summary.accuracies_test == (0.9, 0.1, 0.2)
        assert (summary.model_seed, summary.model_accuracy_test) == (1, 0.1), "the test split chooses nothing"
        assert (summary.epochs, summary.params) == (3, 8)

    def test_of_equal_seeds_the_first(self, tmp_path: Path) -> None:
        kept = self.kept(tmp_path, *[outcome(accuracy_val=0.5, accuracy_test=t) for t in (0.1, 0.9)])
        assert summarise(self.ENTRY, [0, 1], kept).model_seed == 0
        assert summarise(self.ENTRY, [1, 0], kept).model_seed == 0

    def test_a_missing_seed_is_a_defect(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="after train"):
            summarise(self.ENTRY, [0, 1], self.kept(tmp_path, outcome()))


class TestPretrainedArm:
    """A pool instead of, or before, teaching on the task."""

    def pretrained(self, pool: str = "p", teacher: str = "none", **sections: Any) -> TrialConfig:
        return config(teacher, pretrain={"pool": pool, "teacher": "vit", "train": {"epochs": 3}}, **sections)

    def test_is_the_best_on_validation_beside_the_best_taught_on_the_task(self) -> None:
        pools = [self.pretrained("a"), self.pretrained("b", "cnn"), self.pretrained("c")]
        found = [
            *(
                candidate(i, accuracy, 1, of)
                for i, (accuracy, of) in enumerate(zip((0.7, 0.9, 0.8), pools, strict=True))
            ),
            candidate(3, 0.6, 1, config("cnn", lr=3e-3)),
            candidate(4, 0.99, 1, config("none")),
        ]
        for order in itertools.permutations(found):
            assert [(entry.role, entry.trial) for entry in arms(order)] == [
                ("distilled", 3),
                ("pretrained", 1),
                ("scratch", 3),
            ]
        distilled, pretrained, scratch = (entry.config for entry in arms(found))
        assert pretrained == pools[1], "as it was searched, its teacher on the task included"
        assert scratch == config("none", lr=3e-3), "with the recipe of the arm that the claim is about"
        assert distilled.pretraining is None

    def test_a_tie_goes_to_the_cheaper_one(self) -> None:
        found = [candidate(i, 0.8, hours, self.pretrained()) for i, hours in enumerate((2.0, 1.0, 1.0))]
        assert [entry.trial for entry in arms(found)] == [1, 1]

    def test_alone_it_gives_scratch_its_recipe(self) -> None:
        """The epochs of the pool fall away with it, and so do the teacher and the losses of the task."""
        only = self.pretrained(teacher="cnn", lr=2e-3)
        found = arms([candidate(7, 0.5, 1, only), candidate(8, 0.9, 1, config("none"))])
        assert [(entry.role, entry.trial, entry.config) for entry in found] == [
            ("pretrained", 7, only),
            ("scratch", 7, config("none", lr=2e-3)),
        ]
        assert all(entry.config == entry.config.resolved() for entry in found)
        scratch = found[1].config
        assert (scratch.loss_name, scratch.taught_by, scratch.pretraining) == ("ce", "none", None)

    def test_one_with_images_takes_no_other_arms_place(self) -> None:
        full = config("cnn", ratio=1.0, lr=2e-3)
        with_images = self.pretrained(teacher="cnn", synthetic={"source": "sd", "ratio": 2})
        found = arms([candidate(0, 0.9, 1, with_images), candidate(1, 0.5, 1, full)])
        assert [(entry.role, entry.trial) for entry in found] == [
            ("distilled+synthetic", 1),
            ("distilled", 1),
            ("pretrained", 0),
            ("scratch", 1),
        ]

    def test_its_name_is_another_than_that_of_the_task_alone(self) -> None:
        longer = config("none", pretrain={"pool": "p", "teacher": "vit", "train": {"epochs": 4}})
        assert len({job_name(c, 1) for c in (self.pretrained(), self.pretrained("q"), longer, config("none"))}) == 4


def test_seconds_of_pretraining_are_a_mean_and_none_where_an_outcome_is_older(tmp_path: Path) -> None:
    entry, kept = TestSummary.ENTRY, Outcomes(tmp_path)
    for seed, seconds in enumerate((1.0, 2.0, 6.0)):
        kept.put(job_name(entry.config, seed), outcome(train_seconds=10.0, pretrain_seconds=seconds))
    assert summarise(entry, range(3), kept).pretrain_seconds == 3.0
    kept.put(job_name(entry.config, 3), outcome())
    assert summarise(entry, [3], kept).pretrain_seconds == 0.0

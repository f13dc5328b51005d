"""The study: whatever moment the run is killed at, it goes on; and every sampler proposes what the space allows."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from samples import TRIAL_TREE, space_of, sweep_config

from sweeper import proposals
from sweeper.config import SearchConfig
from sweeper.domain import Domain
from sweeper.domain_forms import parse_domain
from sweeper.ledger import Cost
from sweeper.proposals import EARLY_STOPPED
from sweeper.samplers import make_sampler, quasi_random, suggest
from sweeper.space import Space
from sweeper.study import FAILED, Study, spent_seconds
from sweeper.trial import TrialConfig

SPACE = space_of(sweep_config())
SAMPLERS = ("tpe", "nsga2", "nsga3", "gp", "random")


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A killed process leaves what it wrote to the system, synced or not; hundreds of syncs would take a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def study(journal: Path, sampler: str = "random", seed: int = 0, **search: Any) -> Study:
    return Study(journal, SearchConfig.model_validate({"trials": 9, "sampler": sampler, **search}), SPACE, seed)


def outcome(accuracy: float | None = 0.5, state: str = "completed", train: float = 10.0, **more: Any) -> dict[str, Any]:
    epochs = 10 if state == "completed" else 4
    cost = {"adapt": 1.0, "targets": 2.0, "synthetic": 0.0, "train": train}
    found = {"state": state, "error": None, "epochs": epochs, "num_epochs": 10, "accuracy_val": accuracy, "cost": cost}
    return {**found, "params": 7, "curve": [[1, accuracy, 0.1, train]], **more}


def told(book: Study, **found: Any) -> int:
    number, _ = book.ask()
    book.record(number, outcome(**found))
    return number


def score(config: TrialConfig) -> float:
    """A made-up accuracy that the samplers can learn from."""
    return math.exp(-((math.log10(config.train.lr) + 3) ** 2)) * (0.9 if config.teacher == "cnn" else 0.6)


class TestProposals:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("objectives", [{"accuracy": "max", "gpu_hours": "min"}, {"accuracy": "max"}], ids=len)
    def test_are_points_of_the_space(self, tmp_path: Path, sampler: str, objectives: dict[str, str]) -> None:
        book = study(tmp_path / "journal", sampler, objectives=objectives)
        seen = []
        for number in range(24 if sampler != "gp" else 13):
            asked, config = book.ask()
            assert asked == number
            assert config == config.resolved() == TrialConfig.model_validate(config.model_dump(mode="json"))
            self.check(config)
            params = book.study.get_trials(deepcopy=False)[number].params
            has_weight = params["loss.embedding.kind"] != "none"
            assert ("loss.embedding.weight" in params) == has_weight, "a leaf that does not count is not sampled"
            state = "failed" if number % 7 == 3 else "stopped" if number % 5 == 4 else "completed"
            book.record(number, outcome(score(config), state))
            seen.append(json.dumps(params, sort_keys=True))
        assert len(set(seen)) > len(seen) // 2
        assert {t.params["teacher"] for t in book.trials()} > {"cnn"}

    def check(self, config: TrialConfig) -> None:
        assert config.teacher in ("cnn", "vit", "none")
        assert config.student.model in ("test_resnet", "test_efficientnet")
        assert config.synthetic.ratio in (0, 0.5, 2)
        assert 1e-4 <= config.train.lr <= 1e-2
        assert config.train.epoch_size in range(12, 25)
        assert config.train.batch_size in (8, 16)
        assert config.train.warmup in [pytest.approx(0.05 * i) for i in range(5)]
        if config.teacher == "none":
            assert config.loss_name == "ce"

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_same_seed_and_outcomes_same_proposals_also_when_reopened(self, tmp_path: Path, sampler: str) -> None:
        num_trials = 11 if sampler == "gp" else 13  # beyond the samplers' ten random ones

        def proposals(name: str, seed: int, num_trials: int = num_trials, *, reopen: bool = False) -> list[TrialConfig]:
            book = study(tmp_path / name, sampler, seed)
            found = []
            for _ in range(num_trials):
                number, config = book.ask()
                found.append(config)
                if reopen:
                    book = study(tmp_path / name, sampler, seed)
                    assert book.interrupted() == [(number, config)]
                book.record(number, outcome(score(config), "stopped" if number % 4 == 2 else "completed"))
            return found

        first = proposals("one", 0)
        assert proposals("two", 0, reopen=True) == first
        assert all(a != b for a, b in zip(first[:3], proposals("three", 1, 3), strict=True))
        assert len({config.train.lr for config in first}) == num_trials, "nor does one proposal come twice"

    def test_the_sampler_learns_from_outcomes(self, tmp_path: Path) -> None:
        """TPE ends nearer to the best learning rate than it began; it is told through this module alone."""
        book = study(tmp_path / "journal", "tpe", objectives={"accuracy": "max"})
        gaps = []
        for _ in range(40):
            number, config = book.ask()
            gaps.append(abs(math.log10(config.train.lr) + 3))
            book.record(number, outcome(score(config)))
        assert sum(gaps[30:]) < 0.6 * sum(gaps[:10])

    def test_samplers_are_what_the_file_says(self) -> None:
        names = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}
        for sampler, name in names.items():
            found = make_sampler(SearchConfig(trials=1, sampler=sampler), 0, 0)  # type: ignore[arg-type]
            assert type(found).__name__ == name


class TestSuggest:
    def drawn(self, tree: dict[str, Any]) -> list[Any]:
        domain = parse_domain(tree)
        assert isinstance(domain, Domain)
        book = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        return [suggest(book.ask(), "x", domain) for _ in range(200)]

    def test_bounds(self) -> None:
        assert set(self.drawn({"randint": [3, 6]})) == {3, 4, 5}, "the upper end is out, as in ray.tune"
        values = self.drawn({"uniform": [2, 4]})
        assert 2 <= min(values) < 2.2 < 3.8 < max(values) <= 4
        assert {round(v, 9) for v in self.drawn({"quniform": [0.2, 0.6, 0.2]})} == {0.2, 0.4, 0.6}

    def test_loguniform_is_uniform_in_the_logarithm(self) -> None:
        values = self.drawn({"loguniform": [1e-4, 1.0]})
        assert 60 < sum(v < 1e-2 for v in values) < 140
        assert min(values) >= 1e-4

    def test_options_keep_their_types(self) -> None:
        assert {type(v) for v in self.drawn({"choice": [1, 2.5, "a", None]})} == {int, float, str, type(None)}

    def test_options_may_be_sections(self) -> None:
        options = [{"model": "a"}, {"model": "b", "init": "random"}]
        drawn = self.drawn({"choice": options})
        assert all(v in options for v in drawn)
        assert {v["model"] for v in drawn} == {"a", "b"}


class TestFirstPoints:
    def test_are_tried_in_order_and_the_sampler_draws_the_rest(self, tmp_path: Path) -> None:
        first = [
            {"teacher": "cnn", "train.lr": 3e-3, "loss.embedding.kind": "none"},
            {"teacher": "none"},
            {"teacher": "none"},
        ]
        book = Study(tmp_path / "journal", SearchConfig(trials=9, startup=0), SPACE, 0, first)
        one, two, three = (book.ask()[1] for _ in range(3))
        assert (one.teacher, one.train.lr, one.loss.embedding) == ("cnn", 3e-3, None)
        assert two.teacher == "none"
        assert len({one.train.lr, two.train.lr, three.train.lr}) == 3, "equal points count once, then the sampler draws"

    def test_a_reopened_study_goes_on_with_the_next_one(self, tmp_path: Path) -> None:
        first = [{"train.lr": rate} for rate in (1e-3, 2e-3, 3e-3)]
        rates = []
        for _ in first:
            book = Study(tmp_path / "journal", SearchConfig(trials=9), SPACE, 0, first)
            rates.append(book.ask()[1].train.lr)
        assert rates == [1e-3, 2e-3, 3e-3]

    def test_options_that_are_sections_can_be_named(self, tmp_path: Path) -> None:
        tree = {"student": {"choice": [{"model": "test_vit"}, {"model": "test_resnet"}]}, "train": {"lr": 1e-3}}
        book = Study(
            tmp_path / "j", SearchConfig(trials=3), Space(tree), 0, [{"student": {"model": "test_resnet"}}] * 2
        )
        assert book.ask()[1].student.model == "test_resnet"

    @pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
    def test_quasi_random_ones_fill_the_space_evenly(self, tmp_path: Path, sampler: str) -> None:
        book = study(tmp_path / "journal", sampler, startup=16)
        logs = sorted(math.log10(book.ask()[1].train.lr) for _ in range(16))
        low, high = (math.log10(end) for end in SPACE.domains["train.lr"].representatives())
        cells = [int((x - low) / (high - low) * 16) for x in logs]
        assert cells == list(range(16)), "one in each sixteenth of the range, which a random draw would not give"

    def test_nothing_is_tried_twice_until_all_was(self, tmp_path: Path) -> None:
        """24 points, of which a model soon likes one best; each is trained once, and then the space is used up."""
        tree = {
            "teacher": {"choice": ["cnn", "none"]},
            "student": {"model": {"choice": ["test_resnet", "test_vit"]}},
            "loss": {"kl": {"weight": {"choice": [0.5, 1, 2], "when": {"teacher": "cnn"}}}},
            "train": {"lr": {"choice": [1e-4, 1e-3, 1e-2]}},
        }
        settings = SearchConfig(trials=99, startup=4)
        book = Study(tmp_path / "journal", settings, Space(tree), 0)
        seen = []
        for number in range(24):
            if number == 12:  # also what an earlier session tried
                book = Study(tmp_path / "journal", settings, Space(tree), 0)
            asked, config = book.ask()
            seen.append(config)
            book.record(asked, outcome(score(config)))
        assert len({config.model_dump_json() for config in seen}) == 24
        again, config = book.ask()
        assert (again, config in seen) == (24, True)

    def test_random_means_random(self, tmp_path: Path) -> None:
        assert study(tmp_path / "journal", "random", startup=16).planned == []
        assert quasi_random(SPACE, 0, 1) == []

    def test_withdrawn_trials_have_no_outcome_and_hold_nothing_up(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal", "tpe")
        number, _ = book.ask()
        book.withdraw(number)
        assert (book.trials(), book.interrupted()) == ([], [])
        assert book.study.get_trials(states=(TrialState.RUNNING,)) == []


class TestWindow:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(proposals, "WINDOW", 8)

    def seen(self, book: Study) -> set[int]:
        """Numbers of the trials that the sampler sees."""
        return set(book.proposals.handles)

    def run(self, book: Study, until: int) -> None:
        while book.asked < until:
            number, config = book.ask()
            book.record(number, outcome(0.99 if number == 2 else score(config)))

    def test_holds_the_latest_and_the_front_of_the_others(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal", "tpe", objectives={"accuracy": "max"}, startup=0)
        self.run(book, 16)
        assert self.seen(book) == set(range(16))
        self.run(book, 17)
        assert self.seen(book) == {2, *range(8, 17)}
        self.run(book, 40)
        assert self.seen(book) == {2, *range(24, 40)}
        assert len(book.proposals.study.trials) == 17
        assert [t.number for t in book.trials()] == list(range(40)), "the record has them all"

    @pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
    def test_a_reopened_run_sees_the_same(self, tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(proposals, "WINDOW", 16)  # a population of NSGA-II

        def proposed(name: str, *, reopen: bool) -> list[TrialConfig]:
            book = study(tmp_path / name, sampler)
            found = []
            for until in range(1, 40):
                self.run(book, until)
                found.append(TrialConfig.model_validate(book.trials()[-1].user_attrs["config"]))
                if reopen and until % 3 == 0:
                    book = study(tmp_path / name, sampler)
            return found

        assert proposed("one", reopen=True) == proposed("two", reopen=False)

    def test_a_trial_that_outlasts_its_window_is_on_record_all_the_same(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal", "tpe")
        slow, _ = book.ask()
        self.run(book, 20)
        assert slow not in self.seen(book)
        book.record(slow, outcome(0.7))
        assert book.trials()[0].values[0] == 0.7
        with_one_open, _ = book.ask()
        self.run(book, 24)
        book.withdraw(with_one_open)
        assert with_one_open not in self.seen(book)


class TestOutcomes:
    def test_values_are_accuracy_and_hours(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal")
        told(book, accuracy=0.75, train=3600 - 3)
        assert book.trials()[0].values == [0.75, pytest.approx(1.0)]
        turned = study(tmp_path / "turned", objectives={"gpu_hours": "min", "accuracy": "max"})
        told(turned, accuracy=0.75, train=3600 - 3)
        assert turned.trials()[0].values == [pytest.approx(1.0), 0.75]
        assert turned.study.directions == [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]

    @pytest.mark.parametrize("front", ["anytime", "final"])
    def test_a_stopped_trial_informs_and_stays_out_of_the_front(self, tmp_path: Path, front: str) -> None:
        book = study(tmp_path / "journal", front=front)
        whole = told(book, accuracy=0.5, train=10)
        lucky = told(book, accuracy=0.9, state="stopped", train=4)
        frozen = book.trials()[lucky]
        assert frozen.state == TrialState.COMPLETE
        # Shared parts as they are; 4 of 10 epochs took 4 s: all of them would have taken 10.
        assert frozen.values == [0.9, pytest.approx(Cost(adapt=1, targets=2, train=10).as_hours()["gpu_hours"])]
        assert frozen.constraints == {EARLY_STOPPED: pytest.approx(0.6)}
        assert book.trials()[whole].constraints == {EARLY_STOPPED: 0.0}
        assert [t.number for t in book.study.best_trials] == [whole]

    @pytest.mark.parametrize(
        "found",
        [
            {"accuracy": None, "state": "failed", "error": "TrialFailed: the loss became nan"},
            {"accuracy": 0.99, "state": "failed", "error": "OutOfMemoryError"},
            {"accuracy": math.nan},
            {"accuracy": math.inf, "state": "stopped"},
            {"accuracy": None, "state": "stopped"},
        ],
        ids=str,
    )
    def test_without_a_usable_accuracy_the_trial_has_failed(self, tmp_path: Path, found: dict[str, Any]) -> None:
        """The sampler hears of it as the worst that there is, so that it learns where not to look."""
        book = study(tmp_path / "journal")
        number = told(book, **found)
        (trial,) = book.trials()
        assert (trial.number, trial.state, trial.values[0]) == (number, TrialState.COMPLETE, 0.0)
        assert trial.values[1] > 0
        assert trial.constraints == {EARLY_STOPPED: FAILED}
        kept = study(tmp_path / "journal").trials()[0].user_attrs["outcome"]
        assert (kept["state"], kept["error"]) == (found.get("state", "completed"), found.get("error"))
        assert book.study.best_trials == []
        told(book, accuracy=0.5)
        book.ask()

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_sampler_can_go_on_when_all_were_stopped_or_failed(self, tmp_path: Path, sampler: str) -> None:
        book = study(tmp_path / "journal", sampler, front="final")
        for number in range(12):
            told(book, accuracy=0.1 * (number % 3), state="stopped" if number % 3 else "failed")
        assert book.ask()[0] == 12
        assert all(t.constraints[EARLY_STOPPED] for t in book.trials())

    def test_spent_seconds_are_those_of_training(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal")
        told(book, train=10.0)
        told(book, train=2.5, state="stopped")
        told(book, train=0.5, state="failed", accuracy=None)
        book.ask()
        assert spent_seconds(book.trials()) == 13.0


class TestKilled:
    """Cut the journal where a kill could have cut it: at every byte of its tail, and after every line."""

    @pytest.fixture(scope="class")
    @classmethod
    def journal(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("journal") / "journal"
        book = study(path)
        told(book, accuracy=0.3)
        two, _ = book.ask()
        told(book, accuracy=0.4, state="stopped")
        book.record(two, outcome(0.5))
        told(book, accuracy=None, state="failed")
        book.ask()
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def truth(cls, journal: Path) -> dict[int, Any]:
        return {t.number: t.user_attrs for t in study(journal).study.get_trials()}

    def reopen(self, truth: dict[int, Any], part: bytes, folder: Path) -> Study:
        path = folder / "journal"
        path.write_bytes(part)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # nothing that a user would have to read about
            book = study(path)
            self.consistent(book, truth)
        return book

    def consistent(self, book: Study, truth: dict[int, Any]) -> None:
        before = {t.number: t.user_attrs["outcome"] for t in book.trials()}
        running = {t.number for t in book.study.get_trials(states=(TrialState.RUNNING,)) if t.number not in before}
        again = book.interrupted()
        for number, config in again:
            assert number in running
            assert config.model_dump(mode="json") == truth[number]["config"]
        written = {number for number in running if "config" in book.study.get_trials()[number].user_attrs}
        assert {number for number, _ in again} == written
        for number, found in before.items():
            assert found == truth[number]["outcome"]
        for trial in book.trials():
            violation = {"completed": 0.0, "stopped": 0.6, "failed": FAILED}[truth[trial.number]["outcome"]["state"]]
            assert trial.state == TrialState.COMPLETE, "what is known is told"
            assert trial.constraints == {EARLY_STOPPED: pytest.approx(violation)}
        # It goes on: the interrupted ones end, and a new one is asked for under a number of its own.
        for number, _ in again:
            book.record(number, outcome(0.2))
        count = len(book.study.get_trials())
        number, _ = book.ask()
        assert number == count
        book.record(number, outcome(0.6))
        assert not [t for t in book.study.get_trials() if t.state == TrialState.RUNNING]

    def test_after_every_line_and_within_it(self, journal: Path, truth: dict[int, Any], tmp_path: Path) -> None:
        data = journal.read_bytes()
        ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
        assert len(ends) > 15
        starts = [0, *ends[:-1]]
        finished = [0]
        for start, end in zip(starts, ends, strict=True):
            torn = self.reopen(truth, data[: (start + end) // 2], tmp_path)
            assert len(torn.trials()) == finished[-1] + 1, "what stood before the torn line, and the new one"
            finished.append(len(self.reopen(truth, data[:end], tmp_path).trials()) - 1)
        assert finished == sorted(finished)

    def test_at_every_byte_of_the_last_lines(self, journal: Path, tmp_path: Path) -> None:
        """Those of the outcome and of what is told: cut anywhere, the file loads again."""
        data = journal.read_bytes()
        first = data.rindex(b'"outcome"')
        first = data.rindex(b"\n", 0, first) + 1
        last = data.index(b"\n", data.index(b"\n", first) + 1) + 1
        for cut in range(first, last + 1):
            path = tmp_path / "journal"
            path.write_bytes(data[:cut])
            book = study(path)
            trials = {t.number: t.user_attrs["outcome"]["state"] for t in book.trials()}
            is_written = cut >= data.index(b"\n", first) + 1
            assert trials == {0: "completed", 1: "completed", 2: "stopped", **({3: "failed"} if is_written else {})}
            assert [number for number, _ in book.interrupted()] == ([] if is_written else [3])
            assert path.read_bytes().endswith(b"\n")

    def test_what_was_appended_after_a_torn_line_is_read_again(
        self, journal: Path, truth: dict[int, Any], tmp_path: Path
    ) -> None:
        """Without the mending, Optuna would append to the torn line and nothing could read the file any more."""
        data = journal.read_bytes()
        for cut in (len(data) - 1, len(data) - 20, len(data) // 2):
            book = self.reopen(truth, data[:cut], tmp_path)
            again = study(tmp_path / "journal")
            assert [t.user_attrs for t in again.trials()] == [t.user_attrs for t in book.trials()]
            assert again.interrupted() == []

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_lines_that_stand_there_twice_count_once(
        self, journal: Path, truth: dict[int, Any], tmp_path: Path, count: int
    ) -> None:
        data = journal.read_bytes()
        end = b"".join(data.splitlines(keepends=True)[-count:])
        for garbage in (b"", b"\0" * 512, b"\xff\n"):
            whole = self.reopen(truth, data, tmp_path)
            again = self.reopen(truth, data + end + garbage, tmp_path)
            assert [t.number for t in again.trials()] == [t.number for t in whole.trials()]

    def test_a_lock_that_a_killed_driver_left_is_not_waited_for(
        self, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = Path(shutil.copy(journal, tmp_path / "journal"))
        Path(f"{path}.lock").symlink_to(path)

        def waits(seconds: float) -> None:
            raise AssertionError(f"waited {seconds} s for a lock that nobody holds")

        monkeypatch.setattr("time.sleep", waits)
        assert study(path).ask()[0] == 5

    def test_interrupted_trials_come_back_until_they_have_an_outcome(self, tmp_path: Path) -> None:
        book = study(tmp_path / "journal")
        asked = [book.ask() for _ in range(3)]
        for _ in range(2):
            book = study(tmp_path / "journal")
            assert book.interrupted() == asked
        book.record(asked[1][0], outcome())
        assert study(tmp_path / "journal").interrupted() == [asked[0], asked[2]]


def test_the_space_of_these_tests_is_conditional() -> None:
    assert TRIAL_TREE["loss"]["embedding"]["weight"]["when"]
    kinds = {domain.kind for domain in SPACE.domains.values()}
    assert kinds == {"choice", "uniform", "loguniform", "quniform", "randint"}

"""Models that do not exist, losses that can not work between two models, and teachers that can not be one."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from timm.models import _builder as timm_builder

from sweeper import registry, spacefile, taps
from sweeper import student as students
from sweeper.errors import InputError, SpaceError
from sweeper.losses import ONLINE, LossContext
from sweeper.pairs import check_models
from sweeper.teachers import timm as timm_teacher
from sweeper.trial import StudentConfig

SPACE = """\
name: x
dataset: {kind: digits, train_per_class: 5, image_size: 32}
teachers:
  cnn: {kind: timm, model: test_resnet, weights: none}
  vit: {kind: timm, model: test_vit, weights: none}
synthetic:
  sd: {kind: diffusers, model: some/model, max_ratio: 2}
trial:
  teacher: {choice: [cnn, vit, none]}
  student: {model: {choice: [test_resnet, test_efficientnet]}}
  synthetic: {source: sd, ratio: {choice: [0, 1]}}
  loss:
    ce: 1
    embedding:
      kind: {choice: [KIND, none]}
search: {trials: 4}
"""
TEACHER = "{choice: [cnn, vit, none]}"
STUDENT = "{model: {choice: [test_resnet, test_efficientnet]}}"
DUO = "synthetic:\n  sd", "  duo: {kind: ensemble, members: [cnn, vit]}\nsynthetic:\n  sd"
CACHED = [k for k in registry.kinds("losses") if not registry.load("losses", k).NEEDS & ONLINE]
RUNNING = [k for k in registry.kinds("losses") if k not in CACHED]


def text_of(kind: str, *changes: tuple[str, str]) -> str:
    text = SPACE.replace("KIND", kind)
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} must stand in exactly one place"
        text = text.replace(old, new)
    return text


def load(tmp_path: Path, text: str) -> spacefile.SpaceFile:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return spacefile.load(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with the file itself, or with the models that it names."""
    with pytest.raises(SpaceError) as caught:
        check_models(load(tmp_path, text))
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


def line_of(text: str, fragment: str) -> str:
    found = [number for number, line in enumerate(text.splitlines(), 1) if fragment in line]
    assert len(found) == 1
    return f"x.yaml:{found[0]}"


class Asked(BaseException):
    """No handler of an ordinary exception may swallow it."""


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise Asked


class TestStudents:
    def test_an_unknown_one_is_told_with_the_nearest_names(self, tmp_path: Path) -> None:
        text = text_of("cosine", (STUDENT, "{model: {choice: [test_resnet, test_eficientnet]}}"))
        found = problems(tmp_path, text)
        assert len(found) == 1
        assert found[0].startswith("trial.student.model: 'test_eficientnet' is not an architecture of timm")
        assert "did you mean 'test_efficientnet'" in found[0]
        assert f"({line_of(text, 'student:')})" in found[0]

    def test_every_one_of_the_space_is_looked_at(self, tmp_path: Path) -> None:
        student = "{model: {choice: [resnt18, skresnet50d, vgg11.nobody]}, init: {choice: [random, pretrained]}}"
        found = problems(tmp_path, text_of("fsp", (STUDENT, student)))
        said = [line.partition(" (x.yaml")[0] for line in found]
        assert len(said) == 3, said
        assert "'resnt18' is not an architecture" in said[0]
        assert any("'vgg11.nobody' is not among timm's weights" in line for line in said)
        assert "timm has no weights of 'skresnet50d'" in said[2]

    def test_an_unknown_one_is_said_before_any_pair_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(students, "build", refuse)
        assert len(problems(tmp_path, text_of("fsp", (STUDENT, "{model: resnt18}")))) == 1

    def test_an_end_of_a_range_that_is_never_drawn_is_no_mistake(self, tmp_path: Path) -> None:
        """With `ce: {uniform: [0, 1]}` and no embedding loss, ce = 0 alone would train nothing."""
        text = text_of("cosine", ("ce: 1", "ce: {uniform: [0, 1]}"), ("[cosine, none]", "[none, cosine]"))
        check_models(load(tmp_path, text))


class TestTeachers:
    def test_unknown_names_and_tags_are_said_together_with_those_of_students(self, tmp_path: Path) -> None:
        text = text_of(
            "fsp",
            ("model: test_resnet, weights: none", "model: test_resnt, weights: none"),
            ("kind: timm, model: test_vit, weights: none", "kind: open_clip, model: ViT-B-32, weights: laion"),
            (STUDENT, "{model: resnt18}"),
        )
        first, second, third = problems(tmp_path, text)
        assert first.startswith("teachers.cnn.model: 'test_resnt' is not a timm model; the nearest are test_resnet")
        assert second.startswith("teachers.vit.weights: 'laion' is not a tag of 'ViT-B-32'; its tags are ")
        assert third.startswith("trial.student.model: 'resnt18'")
        assert all(f"({line_of(text, 'teachers:')})" in line for line in (first, second))

    def test_maps_of_a_clip_pair_with_those_of_a_student(self, tmp_path: Path) -> None:
        clip = "kind: open_clip, model: ViT-B-32, weights: laion2b_s34b_b79k"
        check_models(load(tmp_path, text_of("fitnet", ("kind: timm, model: test_vit, weights: none", clip))))


class TestPairs:
    @pytest.mark.parametrize("kind", RUNNING)
    def test_a_pair_that_works(self, kind: str, tmp_path: Path) -> None:
        check_models(load(tmp_path, text_of(kind)))

    def test_one_sentence_names_teacher_student_and_kind_at_the_line_of_the_loss(self, tmp_path: Path) -> None:
        """A transformer of one block has one map, and FSP is between maps."""
        text = text_of("fsp", (STUDENT, "{model: {choice: [test_vit]}, model_args: {depth: 1}}"))
        found = problems(tmp_path, text)
        assert len(found) == 2, "one for each teacher"
        for line, teacher in zip(found, ("cnn", "vit"), strict=True):
            assert line.startswith("trial.loss.embedding.kind: ")
            for fragment in ("fsp", f"teacher '{teacher}'", "'test_vit'", "at least 2 pairs of maps, got 1"):
                assert fragment in line
            assert line.endswith(f"({line_of(text, 'kind: {choice: [fsp')})")
            assert "\n" not in line

    def test_the_side_with_fewer_maps_decides(self, tmp_path: Path) -> None:
        text = text_of(
            "fsp", ("model: test_vit, weights: none", "model: test_vit, weights: none, model_args: {depth: 1}")
        )
        found = problems(tmp_path, text)
        assert [
            f"teacher 'vit' and '{student}'" in line
            for line, student in zip(found, ("test_resnet", "test_efficientnet"), strict=True)
        ] == [True, True]

    def test_maps_of_one_pixel_are_refused_where_places_count(self, tmp_path: Path) -> None:
        text = text_of("at", ("image_size: 32", "image_size: 16"), (STUDENT, "{model: test_vit}"))
        found = problems(tmp_path, text)
        assert len(found) == 2
        assert all("at with teacher" in line and "more than one pixel in common" in line for line in found)

    @pytest.mark.parametrize("side", ["student", "teacher"])
    def test_an_architecture_without_maps(self, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without = "EfficientNet" if side == "student" else "ResNet"
        whole = taps._map_points

        def none_of_one(model: Any, images: Any) -> Any:
            return ((), ()) if type(model).__name__ == without else whole(model, images)

        monkeypatch.setattr(taps, "_map_points", none_of_one)
        changes = (STUDENT, "{model: test_efficientnet}"), (TEACHER, "{choice: [cnn, none]}")
        found = problems(tmp_path, text_of("fitnet", *changes))
        assert len(found) == 1
        assert f"the {side}'s architecture offers no intermediate maps" in found[0]

    @pytest.mark.parametrize(("of_student", "of_teacher"), [(4, 4), (1, 4), (4, 1), (2, 3)])
    def test_the_context_tells_the_models_own_shapes(
        self, of_student: int, of_teacher: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same as models with weights have, paired from the deepest map on."""
        seen: list[LossContext] = []
        monkeypatch.setattr(registry.load("losses", "fsp"), "check", lambda _, context: seen.append(context))
        whole = taps._map_points

        def fewer(model: Any, images: Any) -> Any:
            count = of_student if type(model).__name__ == "EfficientNet" else of_teacher
            return tuple(part[-count:] for part in whole(model, images))

        monkeypatch.setattr(taps, "_map_points", fewer)
        changes = (STUDENT, "{model: test_efficientnet}"), (TEACHER, "{choice: [cnn, none]}")
        space = load(tmp_path, text_of("fsp", *changes))
        check_models(space)
        config: Any = space.config.teachers["cnn"]
        teacher = timm_teacher.build(config, ["a", "b", "c"])
        student = students.build(StudentConfig(model="test_efficientnet"), 3, 32, seed=0)
        assert (len(student.tap_points.maps), len(teacher.tap_points.maps)) == (of_student, of_teacher)
        (context,) = seen
        assert (context.student_dim, context.teacher_dim) == (student.embedding_dim, teacher.embedding_dim)
        count = min(of_student, of_teacher)
        for maps, points in ((context.student_maps, student.tap_points), (context.teacher_maps, teacher.tap_points)):
            assert [(m.channels, m.height, m.width) for m in maps] == list(points.shapes[-count:])

    @pytest.mark.parametrize("kind", [k for k in CACHED if not hasattr(registry.load("losses", k), "check")])
    def test_nothing_is_made_for_losses_without_conditions(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(students, "build", refuse)
        monkeypatch.setattr(timm_teacher, "sketch", refuse)
        check_models(load(tmp_path, text_of(kind)))

    def test_each_model_is_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []
        build, sketch = students.build, timm_teacher.sketch

        def built(config: Any, *rest: Any, **named: Any) -> Any:
            made.append(config.model)
            return build(config, *rest, **named)

        def sketched(config: Any, names: Any) -> Any:
            made.append(f"teacher {config.model}")
            return sketch(config, names)

        monkeypatch.setattr(students, "build", built)
        monkeypatch.setattr(timm_teacher, "sketch", sketched)
        check_models(load(tmp_path, text_of("fsp, at, ft")))
        assert sorted(made) == ["teacher test_resnet", "teacher test_vit", "test_efficientnet", "test_resnet"]

    def test_without_a_teacher_nothing_is_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(students, "build", refuse)
        when = ("kind: {choice: [fsp, none]}", "kind: {choice: [fsp], when: {teacher: none}}")
        check_models(load(tmp_path, text_of("fsp", when)))

    def test_the_hub_is_not_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm_builder, "load_pretrained", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        hub = ("model: test_resnet, weights: none", "model: resnet18.a1_in1k, weights: hub")
        pretrained = (STUDENT, "{model: resnet18.a1_in1k, init: pretrained}")
        space = load(tmp_path, text_of("fsp", hub, pretrained))
        check_models(space)
        config: Any = space.config.teachers["cnn"]
        with pytest.raises(Asked):
            timm_teacher.build(config, ["a", "b"])

    @pytest.mark.parametrize("side", ["student", "teacher"])
    def test_a_size_that_an_architecture_does_not_take_is_said(self, side: str, tmp_path: Path) -> None:
        if side == "student":
            text = text_of("fsp", ("image_size: 32", "image_size: 8"), (STUDENT, "{model: test_vit}"))
        else:
            text = text_of("fsp", ("model: test_vit, weights: none", "model: test_vit, weights: none, input_size: 8"))
        found = problems(tmp_path, text)
        assert found
        assert all("8" in line and "test_vit" in line and "x.yaml" in line for line in found)

    def test_the_loss_of_a_pre_training_is_checked_too(self, tmp_path: Path) -> None:
        text = text_of(
            "none",
            ("synthetic:\n  sd", "pools:\n  more: {kind: digits_pool, image_size: 32}\nsynthetic:\n  sd"),
            (STUDENT, "{model: {choice: [test_vit]}, model_args: {depth: 1}}"),
            ("search:", "  pretrain: {pool: more, teacher: cnn, loss: {embedding: {kind: fsp}}}\nsearch:"),
        ).replace("[none, none]", "[none]")
        found = problems(tmp_path, text)
        assert len(found) == 1
        assert "at least 2 pairs of maps, got 1" in found[0]


def with_teacher(kind: str, teacher: str, *more: tuple[str, str]) -> str:
    return text_of(kind, (TEACHER, f"{{choice: [{teacher}, none]}}"), *more)


class TestEnsembles:
    @pytest.mark.parametrize("teacher", ["cnn+vit", "vit+cnn", "duo"])
    def test_members_of_the_file_are_accepted(self, teacher: str, tmp_path: Path) -> None:
        space = load(tmp_path, with_teacher("cosine", teacher, DUO))
        check_models(space)
        members = ("vit", "cnn") if teacher == "vit+cnn" else ("cnn", "vit")
        assert space.config.members(teacher) == members
        assert space.config.members("cnn") == ("cnn",)

    def test_how_it_is_embedded(self, tmp_path: Path) -> None:
        separate = ("members: [cnn, vit]", "members: [cnn, vit], embedding: separate")
        assert load(tmp_path, with_teacher("cosine", "duo", DUO, separate)).config.embeds_separately("duo")
        config = load(tmp_path, with_teacher("cosine", "duo", DUO)).config
        assert not any(config.embeds_separately(name) for name in ("duo", "cnn", "cnn+vit"))

    @pytest.mark.parametrize("teacher", ["cnn+vti", "cnn+cnn", "cnn+", "+", "cnn+vit+cnn", "cnn + vit"])
    def test_a_joined_name_of_others_or_of_one_twice_is_refused(self, teacher: str, tmp_path: Path) -> None:
        text = with_teacher("cosine", teacher)
        found = problems(tmp_path, text)
        assert len(found) == 1, found
        assert found[0].startswith(f"trial.teacher: '{teacher}' is not named under teachers")
        assert f"({line_of(text, '  teacher:')}; allowed: cnn, vit, none)" in found[0]

    @pytest.mark.parametrize("teacher", ["duo+vit", "duo+cnn"])
    def test_an_ensemble_is_no_member_of_a_joined_name(self, teacher: str, tmp_path: Path) -> None:
        """Its members would be `duo`, which has no targets of its own."""
        assert f"'{teacher}'" in problems(tmp_path, with_teacher("cosine", teacher, DUO))[0]

    @pytest.mark.parametrize(
        ("members", "fragments"),
        [
            ("[cnn, vti]", ("duo.members: 'vti' is not one of the single teachers cnn, vit",)),
            ("[cnn, duo]", ("duo.members: 'duo' is not one of the single teachers cnn, vit",)),
            ("[cnn, none]", ("duo.members: 'none' is not one of",)),
            ("[cnn, cnn]", ("duo.members: names a teacher twice: cnn, cnn",)),
            ("[cnn]", ("duo.members: ", "1 where at least 2 are needed")),
            ("[cnn, cnn+vit]", ("duo.members: 'cnn+vit' is not one of the single teachers",)),
        ],
    )
    def test_members_that_can_not_be(self, members: str, fragments: tuple[str, ...], tmp_path: Path) -> None:
        found = problems(tmp_path, with_teacher("cosine", "duo", DUO, ("members: [cnn, vit]", f"members: {members}")))
        assert len(found) == 1, found
        assert all(fragment in found[0] for fragment in fragments), found[0]

    def test_an_ensemble_of_an_ensemble_is_refused(self, tmp_path: Path) -> None:
        trio = ("synthetic:\n  sd", "  trio: {kind: ensemble, members: [duo, vit]}\nsynthetic:\n  sd")
        found = problems(tmp_path, with_teacher("cosine", "trio", DUO, trio))
        assert len(found) == 1
        assert "trio.members: 'duo' is not one of the single teachers cnn, vit" in found[0]

    def test_a_plus_can_not_stand_in_a_name(self, tmp_path: Path) -> None:
        joined = ("synthetic:\n  sd", "  a+b: {kind: timm, model: test_vit, weights: none}\nsynthetic:\n  sd")
        found = problems(tmp_path, text_of("cosine", joined))
        assert len(found) == 1
        assert "'a+b': '+' joins teachers to an ensemble and cannot stand in a name" in found[0]

    @pytest.mark.parametrize("teacher", ["cnn+vit", "duo"])
    @pytest.mark.parametrize("kind", RUNNING)
    def test_it_can_not_run_in_the_loop(self, kind: str, teacher: str, tmp_path: Path) -> None:
        text = with_teacher(kind, teacher, DUO)
        found = problems(tmp_path, text)
        assert len(found) == 1
        assert found[0].startswith(f"trial.loss.embedding.kind: '{kind}' runs the teacher in the loop, and '{teacher}'")
        assert line_of(text, "kind: {choice:") in found[0]

    def test_with_a_condition_both_may_stand_in_one_space(self, tmp_path: Path) -> None:
        kind = ("kind: {choice: [at, none]}", "kind: {choice: [at], when: {teacher: cnn}}")
        text = text_of("at", (TEACHER, "{choice: [cnn, cnn+vit]}"), kind)
        check_models(load(tmp_path, text))


RATIO = "{source: sd, ratio: {choice: [0, 1]}}"


class TestJacobian:
    @pytest.mark.parametrize(
        "use",
        [
            "embedding: align_only",
            "embedding: none",
            "embedding: {choice: [same, none]}",
            "weight: 2",
            "weight: {choice: [1, 0.5]}",
            "weight: {uniform: [1, 3]}",
            "weight: {uniform: [0.5, 1.5]}",  # its middle is 1
        ],
    )
    def test_synthetic_images_can_not_be_treated_apart(self, use: str, tmp_path: Path) -> None:
        text = text_of("jacobian", (RATIO, f"{{source: sd, ratio: {{choice: [0, 1]}}, {use}}}"))
        found = problems(tmp_path, text)
        assert len(found) == 1
        assert found[0].startswith("trial.loss.embedding.kind: 'jacobian' looks at a batch as a whole")
        assert "synthetic.embedding: same and synthetic.weight: 1" in found[0]

    @pytest.mark.parametrize(
        "use",
        [
            "ratio: 1, source: sd, labels: none",
            "ratio: 0, source: sd, weight: 2",
            "ratio: {choice: [0, 1]}, source: sd, weight: {choice: [2], when: {loss.embedding.kind: none}}",
        ],
    )
    def test_treated_alike_or_not_there_they_may_be(self, use: str, tmp_path: Path) -> None:
        check_models(load(tmp_path, text_of("jacobian", (RATIO, f"{{{use}}}"))))

    def test_other_losses_in_the_loop_may_treat_them_apart(self, tmp_path: Path) -> None:
        use = "{source: sd, ratio: {choice: [0, 1]}, embedding: align_only, weight: 2}"
        check_models(load(tmp_path, text_of("at", (RATIO, use))))


class TestNeverAnotherException:
    @pytest.mark.parametrize(
        "change",
        [
            ("ratio: {choice: [0, 1]}", "ratio: {choice: [0, lots]}, weight: 2"),
            ("ratio: {choice: [0, 1]}", "ratio: {choice: [0, [1]]}, weight: 2"),
            (TEACHER, "{choice: [[cnn], none]}"),
            (
                "teachers:\n  cnn: {kind: timm, model: test_resnet, weights: none}\n"
                "  vit: {kind: timm, model: test_vit, weights: none}\n",
                "teachers: some\n",
            ),
        ],
        ids=["ratio is text", "ratio is a list", "teacher is a list", "teachers is text"],
    )
    def test_what_is_wrong_elsewhere_is_a_sentence(self, change: tuple[str, str], tmp_path: Path) -> None:
        assert problems(tmp_path, text_of("jacobian", change))

    def test_a_long_range_of_whole_numbers_may_be_searched(self, tmp_path: Path) -> None:
        text = text_of("crd", ("      kind:", "      negatives: {randint: [256, 16385]}\n      kind:"))
        check_models(load(tmp_path, text))

    def test_any_line_may_be_missing_or_replaced(self, tmp_path: Path) -> None:
        """As for space files in general, with a loss in the loop and an ensemble beside it."""
        kind = ("kind: {choice: [at, none]}", "kind: {choice: [at, cosine], when: {teacher: [cnn, none]}}")
        text = text_of("at", DUO, (TEACHER, "{choice: [cnn, duo, cnn+vit, none]}"), kind)
        check_models(load(tmp_path, text))
        lines = text.splitlines()
        junk = ["", "x", "- 1", "null", "model: [{}]", "kind: ensemble", "members: [cnn]", "a+b: {kind: ensemble}"]
        loaded = 0
        for number, put in itertools.product(range(len(lines)), junk):
            indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
            try:
                check_models(load(tmp_path, "\n".join([*lines[:number], indent + put, *lines[number + 1 :]])))
                loaded += 1
            except InputError as error:
                assert "x.yaml" in str(error)  # noqa: PT017 - some of these files are right
        assert 0 < loaded < len(lines) * len(junk) / 2

"""The two sources of targets against each other, and what they say against models asked by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from samples import CLASS_NAMES, SIZE, VIEWS, colour_split, sample_ids, trial_data
from torch import nn
from torch.nn import functional as F

from sweeper import views
from sweeper.feeding import BatchStream
from sweeper.losses import COLUMNS, MapShape
from sweeper.placement import Placement
from sweeper.sources import CachedTargets, LiveTeacher, Sight, TeacherBatch, stored_view, together, view_targets
from sweeper.teachers import timm as timm_teacher
from sweeper.views import ViewConfig

CPU = torch.device("cpu")
NUM = 7
SEED = 5
FP16 = {"rtol": 2.0**-10, "atol": 1e-5}  # the last bit of a stored value, and that of sums in another order


def teacher_of(input_size: int, seed: int = 0) -> Any:
    """A random convolutional teacher of the made-up classes whose every block does something."""
    config = timm_teacher.Config(model="test_resnet", weights="none", input_size=input_size)
    teacher = timm_teacher.build(config, CLASS_NAMES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):  # the last one of a block begins at 0
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 4)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) / 4)
    return teacher


def keys(num: int = NUM) -> np.ndarray:
    return np.array([views.sample_key(s) for s in sample_ids(num)], dtype=np.uint64)


def live(teacher: Any, config: ViewConfig = VIEWS, needs: str = "logits embedding pre_embedding", **more: Any) -> Any:
    return LiveTeacher(
        teacher=teacher, keys_N=keys(), views=config, view_seed=SEED, needs=frozenset(needs.split()), **more
    )


def cache_of(teacher: Any, config: ViewConfig = VIEWS) -> CachedTargets:
    """Every view of every image, as the targets pass writes them."""
    images_BCHW = colour_split(NUM).images_BCHW
    views_NVP = views.draw_views(config, SEED, keys(), np.tile(np.arange(config.per_image), (NUM, 1)))
    columns = sorted(COLUMNS)
    told = [view_targets(teacher, columns, images_BCHW, views_NVP[:, v], CPU) for v in range(config.per_image)]
    return CachedTargets(
        keys_N=keys(),
        views_NVP=views_NVP,
        columns={name: torch.from_numpy(np.stack([view[name] for view in told], axis=1)) for name in columns},
        classifiers=((teacher.classifier.weight, teacher.classifier.bias),),
        widths=(teacher.embedding_dim,),
    )


def ask(source: Any, index: np.ndarray, number: np.ndarray, size: int = SIZE) -> TeacherBatch:
    """What a source says in its own views, the student's at `size`."""
    views_BP = torch.from_numpy(source.views_of(index, number))
    whole_BCHW = colour_split(NUM).images_BCHW[torch.from_numpy(index)]
    seen_BCHW = views.apply_views(whole_BCHW, views_BP, size)
    found: TeacherBatch = source.targets(Sight(index, number, whole_BCHW, views_BP, seen_BCHW))
    return found


class TestStoredView:
    @pytest.mark.parametrize("num_views", [2, 3, 8])
    def test_any_passes_in_a_row_show_each_view_but_the_canonical_one(self, num_views: int) -> None:
        rng = np.random.default_rng(0)
        keys_B = np.concatenate([rng.integers(0, 2**64, 40, dtype=np.uint64), np.array([0, 2**64 - 1], np.uint64)])
        for start in (0, 1, 1000):
            passes = range(start, start + num_views - 1)
            shown = np.stack([stored_view(keys_B, np.full(42, q), num_views) for q in passes])
            assert (np.sort(shown, axis=0) == np.arange(1, num_views)[:, None]).all()
            for row, q in zip(shown, passes, strict=True):
                expected = [1 + (q + int(key) % (num_views - 1)) % (num_views - 1) for key in keys_B]
                assert row.tolist() == expected
            if num_views > 2:
                assert len(np.unique(shown[0])) == num_views - 1, "neighbours stand at different views"

    def test_only_where_there_is_no_other_the_canonical_one(self) -> None:
        assert stored_view(keys(3), np.array([0, 5, 9]), 1).tolist() == [0, 0, 0]


class TestSameFromBoth:
    @pytest.mark.parametrize("config", [VIEWS, ViewConfig(per_image=1)], ids=["views", "canonical"])
    @pytest.mark.parametrize("input_size", [SIZE, 32])
    def test_boxes_and_outputs(self, input_size: int, config: ViewConfig) -> None:
        teacher = teacher_of(input_size)
        cached, running = cache_of(teacher, config), live(teacher, config)
        index = np.array([3, 0, 6, 3, 1, 2])
        for shift in range(2 * config.per_image):
            number = np.array([0, 1, 2, 3, 4, 4]) + shift
            assert np.array_equal(cached.views_of(index, number), running.views_of(index, number))
            stored, told = ask(cached, index, number), ask(running, index, number)
            for name in ("logits_BK", "embedding_BT", "pre_embedding_BT"):
                assert getattr(stored, name).dtype == torch.float32
                torch.testing.assert_close(getattr(stored, name), getattr(told, name), **FP16)

    def test_fixed_targets_are_those_of_view_0_whatever_the_student_sees(self) -> None:
        """The negative control: the student's views stay what they are with `same`, the targets do not move."""
        fixed = VIEWS.model_copy(update={"match": "fixed"})
        teacher = teacher_of(32)
        same, cached = live(teacher, needs="logits jacobian"), replace(cache_of(teacher), match="fixed")
        running = live(teacher, fixed, needs="logits jacobian")
        index = np.array([3, 0, 6, 3])
        shown = []
        for shift in range(3):
            number = np.array([0, 1, 2, 5]) + shift
            for source in (cached, running):
                assert np.array_equal(source.views_of(index, number), same.views_of(index, number))
            stored, told = ask(cached, index, number), ask(running, index, number)
            for name in ("logits", "embedding"):
                column = cached.canonical(name)
                assert column is not None
                field = "logits_BK" if name == "logits" else "embedding_BT"
                assert torch.equal(getattr(stored, field), column[index])
                torch.testing.assert_close(getattr(told, field), column[index], **FP16)
            shown.append((told.jacobian_BCHW, ask(same, index, number).jacobian_BCHW))
        assert all(torch.equal(ours, shown[0][0]) for ours, _ in shown)
        assert not any(torch.equal(theirs, shown[0][0]) for _, theirs in shown)

    def test_another_view_would_be_told_apart(self) -> None:
        """The test above could pass on a teacher that says the same of all views, or before and after its ReLU."""
        cached = cache_of(teacher_of(SIZE))
        for name in COLUMNS:
            column = cached.columns[name].float()
            for one in range(VIEWS.per_image):
                for other in range(one):
                    with pytest.raises(AssertionError):
                        torch.testing.assert_close(column[:, one], column[:, other], **FP16)
        assert (cached.columns["embedding"] >= 0).all()
        assert (cached.columns["pre_embedding"] < 0).any()

    def test_a_loop_reads_the_same_from_both(self) -> None:
        teacher = teacher_of(32)
        batches = []
        for source in (cache_of(teacher), live(teacher)):
            data = trial_data(NUM, source=source, view_seed=SEED)
            batches.append(list(BatchStream(data, batch_size=4, seed=2, device=CPU).batches(0, 3 * NUM)))
        for stored, told in zip(*batches, strict=True):
            assert torch.equal(stored.images_BCHW, told.images_BCHW)
            assert torch.equal(stored.index_B, told.index_B)
            assert stored.teacher is not None
            assert told.teacher is not None
            torch.testing.assert_close(stored.teacher.logits_BK, told.teacher.logits_BK, **FP16)

    def test_both_hold_the_same_classifier_and_width(self) -> None:
        teacher = teacher_of(SIZE)
        cached, running = cache_of(teacher), live(teacher)
        assert cached.widths == running.widths == (teacher.embedding_dim,)
        told = ask(running, np.arange(NUM), np.zeros(NUM, dtype=np.int64))
        for source in (cached, running):
            ((weight_KT, bias_K),) = source.classifiers
            torch.testing.assert_close(told.embedding_BT @ weight_KT.T + bias_K, told.logits_BK)

    def test_only_a_cache_knows_the_whole_pool(self) -> None:
        teacher = teacher_of(SIZE)
        cached, running = cache_of(teacher), live(teacher)
        canonical = torch.from_numpy(np.tile(np.float32(views.CANONICAL), (NUM, 1)))
        whole = views.apply_views(colour_split(NUM).images_BCHW, canonical, SIZE)
        with torch.no_grad():
            out = teacher(whole, pre=True)
        for name, expected in (
            ("logits", out.logits_BK),
            ("embedding", out.embedding_BD),
            ("pre_embedding", out.pre_embedding_BD),
        ):
            found = cached.canonical(name)
            assert found is not None
            torch.testing.assert_close(found, expected, **FP16)
            assert running.canonical(name) is None
        assert replace(cached, columns={}).canonical("logits") is None

    def test_what_is_not_needed_is_absent(self) -> None:
        teacher = teacher_of(SIZE)
        at = np.arange(3), np.zeros(3, dtype=np.int64)
        stored = ask(replace(cache_of(teacher), columns={}), *at)
        assert stored == TeacherBatch()
        told = ask(live(teacher, needs="logits"), *at)
        assert (told.pre_embedding_BT, told.maps, told.jacobian_BCHW) == (None, (), None)


class TestLiveTeacher:
    @pytest.mark.parametrize("num_maps", [0, 1, 3])
    def test_maps_are_the_models_deepest(self, num_maps: int) -> None:
        teacher = teacher_of(32)
        source = live(teacher, num_maps=num_maps)
        index, number = np.array([4, 2]), np.array([1, 0])
        told = ask(source, index, number)
        assert source.map_shapes == tuple(MapShape(*m.shape[1:]) for m in told.maps)
        assert len(told.maps) == num_maps
        seen = views.apply_views(
            colour_split(NUM).images_BCHW[index],
            torch.from_numpy(source.views_of(index, number)),
            32,
            teacher.interpolation,
        )
        with torch.no_grad():
            every = teacher.model.forward_intermediates(
                (seen - teacher.mean_C11) / teacher.std_C11, intermediates_only=True
            )
        for found, expected in zip(told.maps, every[len(every) - num_maps :], strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("input_size", [8, 16], ids=["own size", "resized"])
    def test_jacobian_against_central_differences_in_the_pixels(self, input_size: int) -> None:
        size, step = 8, 1e-6
        teacher = teacher_of(input_size)
        index, number = np.array([5, 1]), np.array([0, 1])
        found = ask(live(teacher, needs="jacobian"), index, number, size).jacobian_BCHW
        assert found is not None
        exact = copy.deepcopy(teacher).double()
        boxes = torch.from_numpy(live(teacher).views_of(index, number))
        images = views.apply_views(colour_split(NUM).images_BCHW[index], boxes, size).double()

        def largest_B(pixels_BCHW: torch.Tensor) -> torch.Tensor:
            if input_size != size:
                pixels_BCHW = F.interpolate(
                    pixels_BCHW, size=(input_size,) * 2, mode=teacher.interpolation, antialias=True
                )
            logits_BK = exact(pixels_BCHW).logits_BK
            assert (logits_BK.argmax(dim=1) == logits_BK[0].argmax()).all(), "no step may change the largest one"
            return logits_BK.amax(dim=1)

        moves = step * torch.eye(3 * size * size, dtype=torch.float64).reshape(-1, 3, size, size)
        with torch.no_grad():
            for image, jacobian in zip(images, found, strict=True):
                expected = (largest_B(image + moves) - largest_B(image - moves)) / (2 * step)
                scale = float(expected.abs().max())
                assert scale > 1e-4, "a teacher that looks at nothing shows nothing"
                torch.testing.assert_close(jacobian.flatten().double(), expected, rtol=1e-3, atol=1e-4 * scale)

    def test_the_teacher_stays_as_it_is(self) -> None:
        teacher = teacher_of(SIZE)
        before = copy.deepcopy(teacher.state_dict())
        source = live(teacher, needs="logits embedding pre_embedding jacobian maps", num_maps=2)
        data = trial_data(NUM, source=source, view_seed=SEED)
        batch: Any = BatchStream(data, batch_size=4, seed=2, device=CPU).batch(0)
        told = batch.teacher
        tensors = [told.logits_BK, told.embedding_BT, told.pre_embedding_BT, told.jacobian_BCHW, *told.maps]
        assert not any(tensor.requires_grad for tensor in tensors)
        assert batch.images_BCHW.grad is None
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        after = teacher.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_outputs_do_not_depend_on_the_loops_precision(self) -> None:
        source = live(teacher_of(SIZE), needs="logits pre_embedding jacobian", num_maps=1)
        at = np.arange(3), np.zeros(3, dtype=np.int64)
        plain = ask(source, *at)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = ask(source, *at)
        for name in ("logits_BK", "embedding_BT", "pre_embedding_BT", "jacobian_BCHW"):
            assert torch.equal(getattr(plain, name), getattr(inside, name))
        assert torch.equal(plain.maps[0], inside.maps[0])


def made_up(width: int, scale: float, seed: int) -> CachedTargets:
    """A teacher whose logits are its classifier on its embedding, up to fp16."""
    generator = torch.Generator().manual_seed(seed)
    embedding = scale * (torch.randn(NUM, 3, width, generator=generator) + 0.5)
    weight_KT = torch.randn(len(CLASS_NAMES), width, generator=generator) / scale
    bias_K = torch.randn(len(CLASS_NAMES), generator=generator)
    return CachedTargets(
        keys_N=keys(),
        views_NVP=views.draw_views(ViewConfig(per_image=3), SEED, keys(), np.tile(np.arange(3), (NUM, 1))),
        columns={
            "logits": (embedding @ weight_KT.T + bias_K).half(),
            "embedding": embedding.half(),
            "pre_embedding": (3 * embedding - 1).half(),
        },
        classifiers=((weight_KT, bias_K),),
        widths=(width,),
    )


MEMBERS = (made_up(4, 0.01, 0), made_up(6, 50.0, 1), made_up(5, 1.0, 2))
BLOCKS = (slice(0, 4), slice(4, 10), slice(10, 15))


class TestTogether:
    @pytest.mark.parametrize("separate", [False, True])
    def test_logits_are_averaged_and_the_classifier_gives_them(self, separate: bool) -> None:
        whole = together(MEMBERS, separate=separate)
        expected = torch.stack([m.columns["logits"].double() for m in MEMBERS]).mean(dim=0)
        torch.testing.assert_close(whole.columns["logits"].double(), expected, **FP16)
        embedding = whole.columns["embedding"].float()
        blocks = BLOCKS if separate else (slice(0, 15),)
        heads = list(zip(blocks, whole.classifiers, strict=True))
        told = torch.stack([embedding[..., own] @ weight_KT.T + bias_K for own, (weight_KT, bias_K) in heads]).mean(0)
        # each of the products is rounded by 2^-11 of itself
        sizes = [embedding[..., own].abs() @ weight_KT.T.abs() + bias_K.abs() for own, (weight_KT, bias_K) in heads]
        size = torch.stack(sizes).max()
        torch.testing.assert_close(told, whole.columns["logits"].float(), rtol=0, atol=float(size) * 2.0**-10)
        assert all(column.dtype == torch.float16 for column in whole.columns.values())
        assert whole.views_NVP is MEMBERS[0].views_NVP

    @pytest.mark.parametrize("name", ["embedding", "pre_embedding"])
    def test_side_by_side_each_has_a_mean_length_of_1(self, name: str) -> None:
        whole = together(MEMBERS, separate=False)
        assert whole.widths == (15,)
        column = whole.columns[name].double()
        for member, block in zip(MEMBERS, BLOCKS, strict=True):
            lengths_N = column[:, 0, block].norm(dim=1)
            assert float(lengths_N.mean()) == pytest.approx(1, abs=2.0**-11)
            own = member.columns[name].double()
            ratio = own[:, 0].norm(dim=1).mean()  # one factor for all views and images
            torch.testing.assert_close(column[..., block], own / ratio, rtol=2.0**-9, atol=2.0**-12)

    def test_separately_each_keeps_its_scale(self) -> None:
        whole = together(MEMBERS, separate=True)
        assert whole.widths == (4, 6, 5)
        for member, block in zip(MEMBERS, BLOCKS, strict=True):
            for name in ("embedding", "pre_embedding"):
                assert torch.equal(whole.columns[name][..., block], member.columns[name])

    def test_only_the_columns_that_are_there(self) -> None:
        few = [replace(m, columns={"logits": m.columns["logits"]}) for m in MEMBERS]
        whole = together(few, separate=False)
        assert whole.columns.keys() == {"logits"}
        assert whole.widths == (15,)

    @pytest.mark.parametrize("separate", [False, True])
    def test_one_alone_is_returned_as_it_is(self, separate: bool) -> None:
        assert together(MEMBERS[:1], separate=separate) is MEMBERS[0]

    def test_a_dead_member_does_not_divide_by_0(self) -> None:
        dead = replace(MEMBERS[0], columns={name: 0 * values for name, values in MEMBERS[0].columns.items()})
        whole = together([dead, MEMBERS[1]], separate=False)
        assert all(column.isfinite().all() for column in whole.columns.values())
        assert all(tensor.isfinite().all() for tensor in whole.classifiers[0])


class TestTo:
    def test_a_cache_moves_all_of_its_tensors(self) -> None:
        moved = MEMBERS[0].placed(Placement(torch.device("meta")))
        assert all(tensor.is_meta for tensor in (*moved.columns.values(), *moved.classifiers[0]))
        assert not any(tensor.is_meta for tensor in (*MEMBERS[0].columns.values(), *MEMBERS[0].classifiers[0]))
        assert isinstance(moved.views_NVP, np.ndarray)
        assert (moved.widths, moved.map_shapes) == (MEMBERS[0].widths, MEMBERS[0].map_shapes)

    def test_a_live_teacher_moves_its_model(self) -> None:
        source = live(teacher_of(SIZE), num_maps=2)
        shapes = source.map_shapes
        moved = source.placed(Placement(torch.device("meta")))
        assert all(tensor.is_meta for tensor in (*moved.teacher.parameters(), *moved.teacher.buffers()))
        assert all(tensor.is_meta for tensor in moved.classifiers[0])
        assert moved.map_shapes == shapes

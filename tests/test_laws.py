"""The laws of the architecture, read off the imports: layers, homes of the heavy libraries, sizes.

A new module has to be given its place in `LAYERS` (a new kind has one already: its family's). Imports inside functions
count, since they couple modules as much as those at the top; those under `TYPE_CHECKING` do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "sweeper"
FAMILIES = {"datasets", "teachers", "generators", "filters", "losses", "schedulers", "trackers"}

# From the top down: a module imports from its own layer and from those below it. A folder stands for all in it.
LAYERS: tuple[set[str], ...] = (
    {"__main__", "cli", "cli_cluster", "cli_init", "cli_models", "cli_tools", "completion", "api"}
    | {"zoo.make", "zoo._classifiers", "zoo._diffusion"},  # a script of its own
    {"rehearsal", "hub_stand_in", "driver", "sweep", "tracking", "prepared", "pairs", "artifacts", "harvest", "savings"}
    | {"insight"}
    | {"session", "follow", "top", "adaptations", "contact_sheet", "planning", "reckoning", "spent", "tested", "cached"}
    | {"init_space", "choices", "hub", "survey_table"}
    | {"submission", "on_head", "jobs", "launcher"},
    {"search", "desk", "study", "proposals", "samplers", "results", "results_schema", "archive"}
    | {"report", "rows", "provenance", "page_data", "page_tables", "mistakes", "comparison"}
    | {"submitted", "export_model", "model_card", "figures", "figure_labels", "importance", "progress"},
    {"lane", "worker", "watchdog", "occupancy", "mailbox", "finalists", "retrainings", "nodes", "lane_trial"},
    {"train", "gradient", "objective", "averaging", "checkpoints"}
    | {"forecast", "plan_table", "costs", "past", "sizes", "calibration", "timing", "place"},
    {"targets", "synthesize", "sieve", "ingest", "duplicates", "adapt", "adapted", "probe", "shards", "staged"}
    | {"survey", "batches", "sources", "student", "predict", "onnx_export", "architecture", "evaluate"}
    | {"feeding", "placement", "mapped", "decoded", "streamed", "data_cache"},
    {"plan", "store", "mirror", "lease", "garbage", "record", "shard_cache", "spacefile", "crosschecks", "explain"}
    | {"config", "trial", "slots", "space_schema", "domain_schema", "row_groups"},
    FAMILIES,
    {"space", "points", "racing", "conditions", "domain_forms", "domain", "located_yaml", "rungs", "rank_agreement"}
    | {"learning_rate", "outcome", "pareto", "ledger", "registry", "fingerprint", "views", "flops", "devices", "taps"}
    | {"zoo", "cluster_file", "jitter", "resample", "storage", "sections", "weights", "cpu"},
    {"pixels", "console", "layout", "screen", "scatter", "display", "monitor", "stage", "status", "run_lock"}
    | {"tables", "latex", "findings", "tally", "journals", "files", "arrow", "redact", "wording", "errors"}
    | {"interrupt"},
)  # fmt: skip

# Where a library may be imported: module names, or folders for all in them.
HOMES = {
    "ray.data": {"ingest", "synthesize", "targets", "shards", "datasets"},
    "ray.train": {"lane", "worker"},
    "ray.tune": {"search", "lane_trial", "schedulers"},
    "ray": {"lane", "worker", "search", "driver", "artifacts", "session", "ingest", "synthesize", "targets", "shards"}
    | {"finalists", "jobs", "nodes", "lane_trial"},
    "optuna": {"search", "insight", "study", "proposals", "samplers", "importance"},
    "timm": {"teachers", "student", "architecture", "zoo"},
    "open_clip": {"teachers"},
    "diffusers": {"generators", "zoo"},
    "transformers": {"generators", "filters"},
    "datasets": {"datasets"},  # the Hugging Face library
    "rich": {"console", "layout", "screen", "display"},
    "matplotlib": {"figures", "figure_labels"},
    "plotly": {"report"},
    "onnx": {"onnx_export"},
    "onnxruntime": {"onnx_export"},
    "mlflow": {"trackers"},
    "wandb": {"trackers"},
    "tensorboardX": {"trackers"},
}
WITHOUT_RAY = {"train", "objective", "losses", "views", "resample", "jitter", "taps", "student", "batches", "sources"}
WITHOUT_RAY |= {"evaluate", "feeding", "placement", "mapped", "decoded", "streamed", "data_cache"}
WITHOUT_RAY |= {"predict", "onnx_export", "checkpoints", "gradient", "teachers", "generators", "filters", "sieve"}
# A clock that may be put forward or back: what it says may be written down, and tells how old garbage is.
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"}
WITH_A_WALL_CLOCK = {"store", "garbage", "trackers.mlflow"}
CONFIG_TO_TRAIN = ["config imports train, which is above it"]
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60


def sources() -> dict[str, str]:
    """Module name below `sweeper` -> source; a package's `__init__` has the folder's name, sweeper's own is ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Absolute names that a module imports anywhere but under TYPE_CHECKING: `a.b` for both `import` forms."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = f"sweeper.{module}".strip(".").split(".")
            package = package if is_package else package[:-1]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in HOMES:  # `import ray` and then `ray.train.report`
            found.add(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules of sweeper each one imports."""
    packages = {name.rpartition(".")[0] for name in modules}
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        edges[name] = set()
        for imported in imports(source, name, is_package=name in packages):
            target = imported.removeprefix("sweeper").removeprefix(".")
            if not imported.startswith("sweeper.") and imported != "sweeper":
                continue
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                edges[name].add(target)
    return edges


def layer_of(module: str) -> int | None:
    """The number of the layer, counted from the top; None for a module without a place."""
    while module:
        for number, names in enumerate(LAYERS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    return None


def upward(modules: Mapping[str, str]) -> list[str]:
    """Imports that go up, and modules that have no place."""
    wrong = [f"{name or 'sweeper/__init__'} has no layer" for name in modules if name and layer_of(name) is None]
    for name, targets in graph(modules).items():
        here = layer_of(name)
        for target in sorted(targets):
            there = layer_of(target)
            if here is not None and there is not None and there < here:
                wrong.append(f"{name} imports {target}, which is above it")
    return wrong


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Some circle of imports, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if found := visit(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(edges))), [])


def strangers(modules: Mapping[str, str]) -> list[str]:
    """Imports of a heavy library outside its homes."""
    wrong = []
    packages = {name.rpartition(".")[0] for name in modules}
    for name, source in modules.items():
        for imported in sorted(imports(source, name, is_package=name in packages)):
            library = next((known for known in HOMES if f"{imported}.".startswith(f"{known}.")), None)
            if library is not None and not HOMES[library] & {name, name.partition(".")[0]}:
                wrong.append(f"{name} imports {imported}, whose home is {', '.join(sorted(HOMES[library]))}")
    return wrong


def clock_readers(modules: Mapping[str, str]) -> list[str]:
    """Modules that read the wall clock."""
    return [
        name
        for name, source in modules.items()
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCK for node in ast.walk(ast.parse(source))
        )
    ]


def too_long(modules: Mapping[str, str]) -> Iterator[str]:
    """Modules and functions beyond the limits; a function counts from `def` to its last line."""
    for name, source in modules.items():
        if (count := len(source.splitlines())) > MAX_MODULE_LINES:
            yield f"{name}: {count} lines"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    yield f"{name}.{node.name}: {count} lines"


def test_imports_only_go_down() -> None:
    assert upward(sources()) == []


def test_imports_have_no_circle() -> None:
    assert circle(graph(sources())) == []


def test_heavy_libraries_stay_at_home() -> None:
    assert strangers(sources()) == []


def test_the_torch_side_knows_no_ray() -> None:
    modules = sources()
    guilty = [
        name
        for name, source in modules.items()
        if name.partition(".")[0] in WITHOUT_RAY
        and any(imported == "ray" or imported.startswith("ray.") for imported in imports(source, name))
    ]
    assert guilty == []


def test_nothing_is_decided_by_the_wall_clock() -> None:
    """Budgets, leases and patience are measured on a clock that nobody puts forward or back."""
    assert set(clock_readers(sources())) == WITH_A_WALL_CLOCK


def test_modules_and_functions_are_short() -> None:
    benchmarks = {f"benchmarks/{path.name}": path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py")}
    assert list(too_long(sources() | benchmarks)) == []


def test_every_place_is_taken() -> None:
    """A name in the tables that no module has is a law about nothing. `cli` and `driver` come last in the build."""
    modules = sources()
    named = set().union(*LAYERS, *HOMES.values(), WITHOUT_RAY)
    assert sorted(named - modules.keys()) == []


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"config": "from sweeper import train", "train": ""}, CONFIG_TO_TRAIN),
        ({"config": "def f():\n    from sweeper.train import x", "train": ""}, CONFIG_TO_TRAIN),
        ({"config": "import sweeper.train", "train": ""}, CONFIG_TO_TRAIN),
        ({"config": "if not X:\n    pass\nelse:\n    from . import train", "train": ""}, CONFIG_TO_TRAIN),
        ({"losses.a": "from .. import train", "train": ""}, ["losses.a imports train, which is above it"]),
        ({"losses": "from ..train import f", "losses.a": "", "train": ""}, ["losses imports train, which is above it"]),
        ({"train": "from sweeper import config", "config": ""}, []),
        ({"config": "if TYPE_CHECKING:\n    from sweeper import train", "train": ""}, []),
        ({"config": "if TYPE_CHECKING:\n    pass\nelse:\n    import sweeper.train", "train": ""}, CONFIG_TO_TRAIN),
        ({"losses.brand_new": "from sweeper.losses import x", "losses": ""}, []),
        ({"helpers": ""}, ["helpers has no layer"]),
    ],
)
def test_the_check_of_layers_can_fail(modules: dict[str, str], expected: list[str]) -> None:
    assert upward(modules) == expected


def test_the_check_of_circles_can_fail() -> None:
    edges = graph({"space": "from sweeper import domain", "domain": "def f():\n    import sweeper.space"})
    assert circle(edges) == ["domain", "space", "domain"]
    assert circle(graph({"space": "from sweeper.domain import a", "domain": "import os"})) == []


@pytest.mark.parametrize(
    ("module", "source", "is_wrong"),
    [
        ("train", "import ray.train", True),
        ("lane", "import ray.train.torch as t", False),
        ("lane", "from ray import tune", True),
        ("search", "from ray import tune", False),
        ("search", "from ray.train import report", True),
        ("lane", "from ray import get", False),
        ("driver", "import ray\nray.train.report()", True),
        ("driver", "import ray\nray.get()", False),
        ("plan", "def f():\n    import ray", True),
        ("plan", "import rayon", False),
        ("losses.kl", "from timm.models import x", True),
        ("teachers.timm", "from timm.models import x", False),
        ("zoo.make", "import diffusers", False),
        ("results", "from rich.table import Table", True),
    ],
)
def test_the_check_of_homes_can_fail(module: str, source: str, is_wrong: bool) -> None:
    assert bool(strangers({module: source})) == is_wrong


def test_the_check_of_clocks_can_fail() -> None:
    read = {"desk": "import time\nclock = time.time", "lease": "import time\ntime.monotonic()", "run": "x.time()"}
    assert clock_readers(read) == ["desk"]
    assert clock_readers({"record": "datetime.now(UTC)"}) == ["record"]


def test_the_check_of_sizes_can_fail() -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    assert list(too_long({"m": long})) == ["m.f: 61 lines"]
    assert list(too_long({"m": "x = 1\n" * 301})) == ["m: 301 lines"]
    assert list(too_long({"m": "def f():\n" + "    x = 1\n" * 59 + "x = 1\n" * 240})) == []

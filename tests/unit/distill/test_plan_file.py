"""Plan files: read as they were written, and whatever is wrong is named with file, key, value and what is allowed."""

import pytest

from onetrunk.distill.costs import BucketCosts, CostTable, Quartiles
from onetrunk.distill.frontier import choose
from onetrunk.distill.plan import Option
from onetrunk.distill.plan_file import plan_file, read_plan, write_plan
from onetrunk.protocol.errors import UserError

FLOORS = {"floor_task": 0.97, "floor_average": 0.996}


def fixed(value):
    return Quartiles(median=value, low=value, high=value)


@pytest.fixture
def planned(tiny_trunk):
    bucket = BucketCosts(
        tokens=32,
        batch_size=1,
        trunk_ms=tuple(fixed(0.1 + tap) for tap in range(5)),
        layer_ms=fixed(1.0),
        folded_ms=fixed(0.2),
        step_ms=fixed(0.1),
        single_ms=fixed(4.2),
        folded_single_ms=fixed(3.3),
    )
    table = CostTable(
        trunk=tiny_trunk.identity, machine='a "fast" one', versions={}, threads=2, repeats=3, buckets=(bucket,)
    )
    options = [
        Option("cola", 2, 2, "cls", score=0.41, full=0.40, run="cola-0123"),
        Option("rte", 1, 1, "mean", score=1 / 3, full=0.58),
    ]
    plan = choose(options, table.per_text(), most_share=0.5, **FLOORS)
    return plan_file(plan, table, most_share=0.5, **FLOORS)


@pytest.fixture
def path(planned, tmp_path):
    write_plan(tmp_path / "plan.toml", planned)
    return tmp_path / "plan.toml"


def test_it_is_read_as_it_was_written(planned, path, tiny_trunk):
    plan = read_plan(path)
    assert plan == planned
    assert [(option.task, option.tap, option.layers, option.query) for option in plan.options] == [
        ("cola", 2, 2, "cls"),
        ("rte", 1, 1, "mean"),
    ]
    assert plan.options[1].score == 1 / 3
    assert plan.cost.total_ms == pytest.approx(2 + (1 + 0.1) + 0.1 + 4 * 0.1)
    assert not plan.kept.meets_floor
    assert plan.kept.note.startswith("rte keeps 57.47%")
    plan.check_trunk(tiny_trunk)


def test_it_says_what_it_is_and_what_carries_it_out(path):
    text = path.read_text()
    assert text.startswith("# A plan for all tasks")
    assert "search-heads make PATH-OF-THIS-FILE" in text
    assert '[tasks.cola]\ntap = 2\nlayers = 2\nquery = "cls"\nscore = 0.41\nfull = 0.4\nrun = "cola-0123"\n' in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "layers = 2",
            "layer = 2",
            r"key tasks\.cola\.layer is not known \(did you mean layers\?\); allowed are tap",
        ),
        ("[floors]", "[floor]", r"key floor is not known \(did you mean floors\?\)"),
        ("average = 0.996", "averag = 0.996", r"key floors\.averag is not known \(did you mean average\?\)"),
        ("tap = 2", 'tap = "2"', r"key tasks\.cola\.tap: found '2': input should be a valid integer"),
        ("tap = 2", "tap = -1", r"key tasks\.cola\.tap: found -1: input should be greater than or equal to 0"),
        ("tap = 2\n", "", r"key tasks\.cola\.tap is missing"),
        ('query = "mean"', 'query = "max"', r"key tasks\.rte\.query: found 'max': .*'cls', 'mean' or 'learned'"),
        ("[tasks.rte]", "[tasks.RTE]", r"task 'RTE': a task's name has lowercase letters"),
        ("full = 0.4\n", "full = 40\n", r"key tasks\.cola\.full: found 40: .*less than or equal to 1"),
        ("score = 0.41", "score = nan", r"key tasks\.cola\.score: found nan"),
        ("schema_version = 1", "schema_version = 2", r"key schema_version: found 2: input should be 1"),
        ("[floors]", "[floors", r"plan\.toml: not TOML"),
    ],
)
def test_malformed_plan_is_refused_in_one_line(path, old, new, message):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        read_plan(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such plan file"):
        read_plan(tmp_path / "plan.toml")


def test_a_name_that_is_not_toml(planned, tmp_path):
    with pytest.raises(UserError, match=r"a plan is a file \*\.toml"):
        write_plan(tmp_path / "plan.json", planned)


def test_another_trunk_is_refused(planned, tiny_trunk):
    other = planned.model_copy(update={"trunk": "bert-6x384@0123"})
    with pytest.raises(UserError, match=r"the plan is for trunk bert-6x384@0123, but this trunk is bert-4x32"):
        other.check_trunk(tiny_trunk)


@pytest.mark.parametrize(
    ("tap", "layers", "message"),
    [
        (2, 3, r"tasks\.cola: 3 layers on tap 2: this trunk has 4 layers, so give at most 2 layers there"),
        (4, 1, r"tasks\.cola: tap 4: this trunk has a layer above taps 0 to 3 only"),
    ],
)
def test_a_head_that_does_not_fit_the_trunk(planned, tiny_trunk, tap, layers, message):
    head = planned.tasks["cola"].model_copy(update={"tap": tap, "layers": layers})
    with pytest.raises(UserError, match=message):
        planned.model_copy(update={"tasks": {"cola": head}}).check_trunk(tiny_trunk)

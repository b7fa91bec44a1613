"""Task files: three lines are enough, and whatever is wrong is named with file, key, value and what is allowed."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import CONFIG_FILE, check_task_name, head_task, hidden_name
from onetrunk.tasks import Recipe, find_task, find_tasks, load_task, read_examples

MINIMAL = 'labels = ["ham", "spam"]\ntrain = "train.csv"\ndev = "dev.csv"\n'


@pytest.fixture
def write(tmp_path):
    def run(text, name="spam.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return run


def test_three_lines_make_a_task(write):
    path = write(MINIMAL)
    task = load_task(path)
    assert (task.name, task.kind, task.form, task.metrics) == ("spam", "classification", "single", ("accuracy",))
    assert (task.text_field, task.text_pair_field, task.label_field) == ("sentence", "sentence2", "label")
    assert task.recipe == Recipe()
    assert task.folder == path.parent


def test_every_key_is_read(write):
    task = load_task(
        write(
            """
name = "likeness"
kind = "regression"
form = "pair"
range = [0, 5]
metrics = ["spearman", "pearson", "spearman"]
train = "a.tsv"
dev = "hub:glue/stsb"
text_field = "one"
text_pair_field = "two"
label_field = "score"
licence = "CC0"
[recipe]
tap = 2
layers = 2
epochs = 3
"""
        )
    )
    assert (task.name, task.kind, task.form, task.range) == ("likeness", "regression", "pair", (0.0, 5.0))
    assert task.metrics == ("spearman", "pearson")
    assert (task.text_field, task.text_pair_field, task.label_field, task.licence) == ("one", "two", "score", "CC0")
    assert task.recipe == Recipe(tap=2, layers=2, epochs=3)


def test_regression_is_measured_by_correlation_unless_told(write):
    task = load_task(write('kind = "regression"\nrange = [0, 1]\ntrain = "a.csv"\ndev = "b.csv"\n'))
    assert task.metrics == ("pearson_spearman",)


def test_labels_may_be_numbers_as_in_the_data(write):
    assert load_task(write(MINIMAL.replace('["ham", "spam"]', "[0, 1]"))).labels == ("0", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "label = 3", r"key label is not known \(did you mean labels\?\); allowed are name, kind"),
        (MINIMAL + "zzz = 3", r"key zzz is not known; allowed are"),
        (MINIMAL + 'folder = "/"', r"key folder is not known"),
        (MINIMAL + "[recipe]\nepoch = 3", r"key recipe\.epoch is not known \(did you mean epochs\?\)"),
        (MINIMAL + "[recipe]\nepochs = 0", r"key recipe\.epochs: found 0: input should be greater than or equal to 1"),
        (MINIMAL + "[recipe]\nlearning_rate = nan", r"key recipe\.learning_rate: found nan"),
        (MINIMAL + 'kind = "poetry"', r"key kind: found 'poetry': allowed are classification, regression"),
        (MINIMAL + 'form = "triple"', r"key form: found 'triple': input should be 'single' or 'pair'"),
        (MINIMAL + 'metrics = ["acuracy"]', r"key metrics: .*'acuracy' is not known; allowed are accuracy"),
        (MINIMAL + 'metrics = ["pearson"]', r"metric pearson does not fit kind classification; allowed are accuracy"),
        (
            MINIMAL + 'name = "Spam!"',
            r"key name: found 'Spam!': a task's name has lowercase letters",
        ),
        (MINIMAL + 'name = "text"', r"key name: found 'text': text is the name of a tensor"),
        (MINIMAL + 'name = "hidden_3"', r"hidden_3 is the name of a tensor"),
        (MINIMAL + 'metrics = "accuracy"', r"key metrics: found 'accuracy': give a list, as in \[\"accuracy\""),
        (MINIMAL + "metrics = []", r"key metrics: found \[\]: give one or more, or omit the key"),
        (MINIMAL + "options = 3", r"key options: found 3: give a table, as in \{output"),
        (MINIMAL + "range = [0, 1, 2]", r"key range: found \[0, 1, 2\]: give the lowest and the highest number"),
        (MINIMAL + "range = [0, inf]", r"key range: found \[0, inf\]: give the lowest and the highest number"),
        (
            MINIMAL + 'options = {class_weight = "balanced"}',
            r"options has class_weight \(did you mean class_weights\?\)",
        ),
        (
            MINIMAL + "options = {class_weights = {ham = 0}}",
            r"options.class_weights.ham: Input should be greater than 0",
        ),
        (MINIMAL.replace('["ham", "spam"]', '["ham"]'), r"labels needs at least two, all different; found \['ham'\]"),
        (MINIMAL.replace('"spam"', '"ham"'), r"labels needs at least two, all different"),
        (MINIMAL.replace('"spam"', '""'), r"labels contains one that is empty"),
        (MINIMAL.replace('"spam"', '"a\\nb"'), r"line break"),
        (MINIMAL.replace('"spam"', '"a", "b"') + 'metrics = ["f1"]', r"metric f1 is about the second of two labels"),
        ('train = "a.csv"\ndev = "b.csv"\n', r"a classification task needs labels"),
        (
            MINIMAL.replace("spam", "B-spam") + 'kind = "tagging"',
            r"are types of spans, such as artist; 'B-spam' is a tag",
        ),
        (MINIMAL + "range = [0, 1]", r"a classification task has no range"),
        (
            'kind = "regression"\nrange = [1, 0]\ntrain = "a.csv"\ndev = "b.csv"\n',
            r"range is the lowest and the highest",
        ),
        ('labels = ["a", "b"]\ntrain = "a.csv"\n', r"key dev is missing"),
        ("labels = 3 4", r"not TOML: .*line 1"),
    ],
)
def test_what_is_wrong_is_named(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}: ")


def test_all_wrong_keys_are_named_at_once(write):
    with pytest.raises(UserError) as error:
        load_task(write(MINIMAL + 'form = "x"\nkind = "y"'))
    assert [line.split("key ")[1].split(":")[0] for line in str(error.value).splitlines()] == ["kind", "form"]


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="no such task file"):
        load_task(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load_task(tmp_path / "bad.toml")


def test_tasks_are_found_by_name_and_by_path(write, tmp_path):
    path = write(MINIMAL)
    assert find_task("spam", tmp_path) == path
    assert find_task(str(path), tmp_path / "elsewhere") == path
    with pytest.raises(UserError, match=r"no task 'span' \(did you mean spam\?\); there are: spam"):
        find_task("span", tmp_path)
    with pytest.raises(UserError, match="no task files"):
        find_tasks(tmp_path / "elsewhere")


def test_every_task_file_of_the_project_is_a_task(pytestconfig):
    tasks = {task.name: task for task in map(load_task, find_tasks(pytestconfig.rootpath / "tasks"))}
    assert sorted(tasks) == ["cola", "intent", "mnli", "mrpc", "qnli", "qqp", "rte", "slots", "sst2", "stsb"]
    assert {name for name, task in tasks.items() if task.form == "single"} == {"cola", "intent", "slots", "sst2"}
    # GLUE's F1 is that of the second label, so the order of these labels is not a matter of taste.
    assert tasks["mrpc"].labels == ("not_equivalent", "equivalent")
    assert tasks["qqp"].labels == ("not_duplicate", "duplicate")
    assert tasks["stsb"].range == (0.0, 5.0)
    for name, task in tasks.items():
        assert task.licence, f"{name} says nothing about the licence of its data"
        # A bundle that ships is at most 4 MB, which is one layer of the default trunk.
        assert task.recipe.tap is not None
        assert task.recipe.layers == 1


def test_no_tensor_of_the_ensembles_can_be_a_task(pytestconfig):
    golden = pytestconfig.rootpath / "tests" / "integration" / "repository" / "golden"
    found = set()
    for path in golden.rglob(CONFIG_FILE):
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        found |= {tensor.name for tensor in (*config.input, *config.output)}
        for step in config.ensemble_scheduling.step:
            found |= {*step.input_map.keys(), *step.input_map.values(), *step.output_map.values()}
    tasks = {head_task(path.name) for path in golden.glob("head_*")}
    assert found > tasks
    for name in (*(found - tasks), hidden_name(12)):
        with pytest.raises(ValueError, match="the name of a tensor"):
            check_task_name(name)


def test_labels_that_are_not_texts_are_spelled_as_toml_spells_them(write):
    path = write('labels = [false, true]\ntrain = "train.jsonl"\ndev = "train.jsonl"\n')
    path.with_name("train.jsonl").write_text('{"sentence": "a", "label": true}\n{"sentence": "b", "label": false}\n')
    task = load_task(path)
    assert task.labels == ("false", "true")
    assert read_examples(task, "train").targets == (1, 0)
    assert load_task(write(MINIMAL.replace('"ham", "spam"', "0, 1"))).labels == ("0", "1")

"""Task files: three lines are enough, and whatever is wrong is named with file, key, value and what is allowed."""

from pathlib import Path

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


def test_dev_data_may_be_a_share_of_train(write):
    task = load_task(write(MINIMAL.replace('"dev.csv"', "0.2")))
    assert (task.dev, task.dev_share, task.how_read) == (0.2, 0.2, {"dev": 0.2})
    plain = load_task(write(MINIMAL))
    assert (plain.dev, plain.dev_share, plain.how_read) == ("dev.csv", None, {})


def test_how_data_are_written_is_read(write):
    keys = {"encoding": "latin-1", "delimiter": "\t", "quotes": False, "fold_labels": True, "empty_label": "ham"}
    lines = ['encoding = "latin-1"', r'delimiter = "\t"', "quotes = false", "fold_labels = true", 'empty_label = "ham"']
    assert load_task(write(MINIMAL + "\n".join(lines))).how_read == keys


def test_regression_is_measured_by_correlation_by_default(write):
    task = load_task(write('kind = "regression"\nrange = [0, 1]\ntrain = "a.csv"\ndev = "b.csv"\n'))
    assert task.metrics == ("pearson_spearman",)


def test_labels_may_be_numbers_as_in_the_data(write):
    assert load_task(write(MINIMAL.replace('["ham", "spam"]', "[0, 1]"))).labels == ("0", "1")


REGRESSION = 'kind = "regression"\ntrain = "a.csv"\ndev = "b.csv"\n'


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (MINIMAL + "label = 3", ["key label ", "labels?", "name, kind"]),
        (MINIMAL + "zzz = 3", ["key zzz ", "name, kind"]),
        (MINIMAL + 'folder = "/"', ["key folder "]),
        (MINIMAL + "[recipe]\nepoch = 3", ["key recipe.epoch ", "epochs?"]),
        (MINIMAL + "[recipe]\nepochs = 0", ["key recipe.epochs:", "found 0:", " 1"]),
        (MINIMAL + "[recipe]\nlearning_rate = nan", ["key recipe.learning_rate:", "found nan"]),
        (MINIMAL + 'kind = "poetry"', ["key kind:", "found 'poetry'", "classification, regression"]),
        (MINIMAL + 'kind = "multilable"', ["key kind:", "not known (did you mean multilabel?); allowed are "]),
        (MINIMAL + 'form = "pairs"', ["key form: found 'pairs' (did you mean pair?): "]),
        (MINIMAL + 'form = "triple"', ["key form:", "found 'triple'", "'single'", "'pair'"]),
        (
            MINIMAL + 'metrics = ["acuracy"]',
            ["metric 'acuracy' is not known (did you mean accuracy?); allowed"],
        ),
        (MINIMAL + 'metrics = ["pearson"]', ["metric 'pearson' ", "kind classification", "accuracy"]),
        (MINIMAL + 'name = "Spam!"', ["key name:", "found 'Spam!'", "lowercase"]),
        (MINIMAL + 'name = "text"', ["key name:", "found 'text'", "tensor"]),
        (MINIMAL + 'name = "hidden_3"', ["key name:", "hidden_3", "tensor"]),
        (MINIMAL + 'metrics = "accuracy"', ["key metrics:", "found 'accuracy'", '["accuracy"']),
        (MINIMAL + "metrics = []", ["key metrics:", "found []"]),
        (MINIMAL + "options = 3", ["key options:", "found 3:", "{output"]),
        (MINIMAL + "range = [0, 1, 2]", ["key range:", "found [0, 1, 2]"]),
        (MINIMAL + "range = [0, inf]", ["key range:", "found [0, inf]"]),
        (MINIMAL + 'options = {class_weight = "balanced"}', ["options", "class_weight ", "class_weights?"]),
        (MINIMAL + "options = {class_weights = {ham = 0}}", ["options.class_weights.ham:", " 0"]),
        (MINIMAL.replace('["ham", "spam"]', '["ham"]'), ["labels", "two", "['ham']"]),
        (MINIMAL.replace('"spam"', '"ham"'), ["labels", "different", "['ham', 'ham']"]),
        (MINIMAL.replace('"spam"', '""'), ["labels", "empty"]),
        (MINIMAL.replace('"spam"', '"a\\nb"'), ["labels", "line break"]),
        (MINIMAL.replace('"spam"', '"a", "b"') + 'metrics = ["f1"]', ["metric f1 ", "two labels"]),
        ('train = "a.csv"\ndev = "b.csv"\n', ["classification", "labels"]),
        (MINIMAL.replace("spam", "B-spam") + 'kind = "tagging"', ["'B-spam'", "tag"]),
        (MINIMAL + "range = [0, 1]", ["classification", "range"]),
        (REGRESSION + "range = [1, 0]", ["range", "lowest", "highest"]),
        ('labels = ["a", "b"]\ntrain = "a.csv"\n', ["key dev ", "dev = 0.2"]),
        (MINIMAL.replace('"dev.csv"', "2"), ["key dev:", "found 2:", "0.2"]),
        (MINIMAL.replace('"dev.csv"', "1.0"), ["key dev:", "found 1.0:", "0.2"]),
        (MINIMAL.replace('"dev.csv"', "true"), ["key dev:", "found True:", "0.2"]),
        (MINIMAL + 'delimiter = "ab"', ["key delimiter:", "found 'ab':", "one character"]),
        (MINIMAL + "delimiter = 1", ["key delimiter:", "found 1:", "one character"]),
        (MINIMAL + 'encoding = "utf9"', ["key encoding:", "found 'utf9':", "latin-1"]),
        (MINIMAL + 'empty_label = "none"', ["empty_label", "'none'", "add it to labels"]),
        (MINIMAL + 'label_separator = ","', ["label_separator", "multilabel"]),
        ('train = "C:\\Users\\a.csv"\n', ["TOML", "line 1", "'C:\\train.csv', in single quotes"]),
        ('labels = ["a"]\ntrain = "D:\\data.csv"\n', ["TOML", "line 2", "single quotes"]),
        ("labels = 3 4", ["TOML", "line 1"]),
        (MINIMAL.replace("train.csv", r"C:\new"), ["key train:", r"'C:\new'", "single quotes, or C:/train.csv"]),
        (MINIMAL.replace("dev.csv", r"data\train.csv"), ["key dev:", r"'data\train.csv'", "single quotes"]),
        (MINIMAL + r'test = "a\bc"', ["key test:", r"'a\x08c'", "single quotes"]),
        (MINIMAL.replace("dev.csv", "0.2"), ["key dev:", "found '0.2':", "without quotes, as in dev = 0.2"]),
        (MINIMAL.replace("dev.csv", "20%"), ["key dev:", "found '20%':", "without quotes, as in dev = 0.2"]),
        (MINIMAL + "test = 0.2", ["key test:", "found 0.2: give a file"]),
        (MINIMAL.replace('"train.csv"', "0.2"), ["key train:", "found 0.2: give a file"]),
        (MINIMAL + '[recipe]\ntap = 2\ntext_field = "a"', ["below [recipe] stands text_field, ", "put it above"]),
        (MINIMAL + '[options]\ntext_field = "a"', ["below [options] stands text_field, ", "put it above"]),
    ],
)
def test_malformed_task_file_is_refused_with_the_key_and_the_value(write, text, values):
    path = write(text)
    with pytest.raises(UserError) as error:
        load_task(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for value in values:
        assert value in message


def test_all_wrong_keys_are_named_at_once(write):
    with pytest.raises(UserError) as error:
        load_task(write(MINIMAL + 'form = "x"\nkind = "y"'))
    assert [line.split("key ")[1].split(":")[0] for line in str(error.value).splitlines()] == ["kind", "form"]


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="no such task file"):
        load_task(tmp_path / "none.toml")
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "bad.toml").write_text(MINIMAL.replace("spam", "späm"), encoding=encoding)
        with pytest.raises(UserError, match=r"cannot be read: it is not UTF-8 \(.*\): save it in UTF-8") as error:
            load_task(tmp_path / "bad.toml")
        assert "\n" not in str(error.value)


def test_tasks_are_found_by_name_and_by_path(write, tmp_path):
    path = write(MINIMAL)
    assert find_task("spam", tmp_path) == path
    assert find_task(str(path), tmp_path / "elsewhere") == path
    with pytest.raises(UserError, match=r"no task 'span' \(did you mean spam\?\); there are: spam"):
        find_task("span", tmp_path)
    with pytest.raises(UserError, match="no task files"):
        find_tasks(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my/spam_train.csv",
            "my/spam_train.csv is a data file, not a task file: write a .toml with",
        ),
        ("my/span.toml", "my/span.toml: no such task file (did you mean spam.toml?)"),
        ("my/other.toml", "my/other.toml: no such task file"),
        (
            "heads/spam",
            "'heads/spam'; there are: one; a task file elsewhere is given by its path, as in my/spam.toml",
        ),
    ],
)
def test_what_is_no_task_is_told_apart(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for folder, file in (
        ("my", "spam.toml"),
        ("my", "spam_train.csv"),
        ("tasks", "one.toml"),
        ("heads/spam", "head.json"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / file).write_text(MINIMAL)
    with pytest.raises(UserError) as error:
        find_task(name, Path("tasks"))
    assert message in str(error.value)
    assert str(error.value).count("did you mean") == message.count("did you mean")


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        ('["a", "b"]', "accuracy, f1, macro_f1, matthews, f1_accuracy"),
        ('["a", "b", "c"]', "accuracy, macro_f1, matthews"),
    ],
)
def test_the_metrics_of_the_kind_and_its_labels_are_named(write, labels, metrics):
    task = f'labels = {labels}\ntrain = "a.csv"\ndev = 0.2\nmetrics = ["mean"]\n'
    with pytest.raises(UserError, match=f"metric 'mean' is not known; allowed are {metrics}$"):
        load_task(write(task))


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

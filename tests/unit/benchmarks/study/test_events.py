"""Recorded runs, read back by TensorBoard's own reader."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from benchmarks.study.report import write_quality_report
from onetrunk.distill.tensorboard import write_events
from onetrunk.protocol.errors import UserError


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_are_read_back(writer, tmp_path):
    record = writer.run("blue", "student", 1, 2, 0.8, 4.0, teacher="t" * 16)
    (folder,) = write_events([record], tmp_path / "events")
    events = read(folder)
    assert [(each.step, round(each.value, 6)) for each in events.Scalars("loss/train")] == [(1, 0.7), (2, 0.5)]
    assert [(each.step, round(each.value, 6)) for each in events.Scalars("dev/accuracy")] == [(1, 0.7), (2, 0.8)]
    assert [(each.step, round(each.value, 6)) for each in events.Scalars("best/accuracy")] == [(2, 0.8)]


def test_settings_are_read_back_as_hyperparameters(writer, tmp_path):
    record = writer.run("blue", "student", 1, 2, 0.8, 4.0, teacher="t" * 16)
    (folder,) = write_events([record], tmp_path / "events")
    content = read(folder).summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["task"].string_value == "blue"
    assert settings["tap"].number_value == 1
    assert settings["distillation.temperature"].number_value == 2


def test_writing_twice_shows_each_curve_once(writer, tmp_path):
    record = writer.run("blue", "full", 0, 3, 0.8, 4.0)
    for _ in range(2):
        (folder,) = write_events([record], tmp_path)
    assert len(list(folder.iterdir())) == 1
    assert len(read(folder).Scalars("loss/train")) == 2


def test_the_report_writes_them_where_asked(whole_study, tmp_path):
    write_quality_report(whole_study.folder, tensorboard=tmp_path / "events")
    assert len(list((tmp_path / "events").iterdir())) == len(list(whole_study.store))


def test_a_folder_that_cannot_be_written_is_named(writer, tmp_path):
    record = writer.run("blue", "full", 0, 3, 0.8, 4.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/blue-full-"):
        write_events([record], tmp_path / "file")

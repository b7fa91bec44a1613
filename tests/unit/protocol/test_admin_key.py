"""The admin key: read from the environment or a file, refused where it cannot be a header, and never repeated."""

import copy
import os
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner

from onetrunk.admin import AdminClient
from onetrunk.cli.deploy_head import deploy_head
from onetrunk.protocol.admin_key import MAX_KEY_BYTES, AdminKey, read_admin_key
from onetrunk.protocol.errors import UserError
from onetrunk.serving.cli import serve_repo

NO_HEADERS = {
    "secret-\N{LATIN SMALL LETTER E WITH ACUTE}": "a character beyond ASCII at position 8",
    "secret\r": "a control character at position 7",
    "secret\x7f": "a control character at position 7",
    "\tsecret": "a control character at position 1",
    " secret": "begins with a blank",
    "secret ": "ends with a blank",
    "\n": "is empty",
    "secret" * (MAX_KEY_BYTES // 6 + 1): f"is longer than {MAX_KEY_BYTES} characters",
}


@pytest.fixture(autouse=True)
def _no_key_around(monkeypatch):
    monkeypatch.delenv("ONETRUNK_ADMIN_KEY", raising=False)
    monkeypatch.delenv("ONETRUNK_ADMIN_KEY_FILE", raising=False)


@pytest.fixture
def key_file(tmp_path):
    """Writes a file of mode 0600."""

    def write(content: str | bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "key"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


def test_no_key_anywhere_is_none(monkeypatch):
    assert read_admin_key() is None
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "")  # as docker-compose passes on a variable that is not set
    assert read_admin_key() is None


@pytest.mark.parametrize("key", ["k", "two words", 'a=b,"c"!~', "x" * MAX_KEY_BYTES])
def test_variable_file_and_option_give_the_same_key_without_its_newline(monkeypatch, key_file, key):
    for content in (key, f"{key}\n"):
        monkeypatch.setenv("ONETRUNK_ADMIN_KEY", content)
        assert read_admin_key() == key
    monkeypatch.delenv("ONETRUNK_ADMIN_KEY")
    for content in (key, f"{key}\n"):
        monkeypatch.setenv("ONETRUNK_ADMIN_KEY_FILE", str(key_file(content)))
        assert read_admin_key() == key


def test_the_option_is_read_in_place_of_the_environment_and_two_variables_are_one_too_many(monkeypatch, key_file):
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "of the variable")
    assert read_admin_key(key_file("of the file")) == "of the file"
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY_FILE", "/no/such/file")
    assert read_admin_key(key_file("of the file")) == "of the file"
    with pytest.raises(UserError, match="ONETRUNK_ADMIN_KEY and ONETRUNK_ADMIN_KEY_FILE are both set"):
        read_admin_key()


@pytest.mark.hostile
@pytest.mark.parametrize(("key", "fault"), NO_HEADERS.items())
def test_a_key_that_cannot_be_a_header_is_refused_and_not_repeated(monkeypatch, key_file, key, fault):
    file = key_file(key)
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", key)
    for read in (read_admin_key, lambda: read_admin_key(file)):
        with pytest.raises(UserError, match="the admin key") as caught:
            read()
        message = str(caught.value)
        # In a file, a character beyond ASCII has two bytes, which changes no position before it.
        assert fault in message
        assert "\n" not in message
        assert "secret" not in message


@pytest.mark.hostile
@pytest.mark.parametrize("key", ["secret\nsecret", "secret\n\n"])
def test_a_key_of_two_lines_is_refused(monkeypatch, key_file, key):
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", key)
    with pytest.raises(UserError, match="ONETRUNK_ADMIN_KEY: the admin key has a control character at position 7"):
        read_admin_key()
    file = key_file(key)
    with pytest.raises(UserError) as caught:
        read_admin_key(file)
    assert str(caught.value) == f"--admin-key-file {file}: it has 2 lines: give one key"


def test_a_client_made_in_python_refuses_it_too():
    with pytest.raises(UserError, match="admin_key: the admin key has a control character at position 7"):
        AdminClient("127.0.0.1:1", "secret\n")


@pytest.mark.hostile
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused(key_file, mode):
    with pytest.raises(UserError, match=f"its mode is {mode:04o}, and so others .*: chmod 600 it, and change the key"):
        read_admin_key(key_file("secret", mode))


@pytest.mark.hostile
def test_a_fifo_a_device_a_folder_and_nothing_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"--admin-key-file .*: it is not a regular file"):
            read_admin_key(path)
    with pytest.raises(UserError, match="No such file or directory"):
        read_admin_key(tmp_path / "missing")


def test_a_link_is_judged_by_the_file_behind_it(tmp_path, key_file):
    (tmp_path / "link").symlink_to(key_file("mine"))
    assert read_admin_key(tmp_path / "link") == "mine"
    key_file("mine", 0o644)
    with pytest.raises(UserError, match="its mode is 0644"):
        read_admin_key(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(key_file):
    file = key_file("secret")
    os.chown(file, 65534, 65534)
    with pytest.raises(UserError, match="it belongs to the user with id 65534"):
        read_admin_key(file)


@pytest.mark.parametrize("command", [deploy_head, serve_repo], ids=["deploy-head", "serve-repo"])
def test_the_commands_end_with_one_line_and_2(command, tmp_path, key_file):
    arguments = ["--list", "--repository"] if command is deploy_head else []
    for environment, option in (
        ({"ONETRUNK_ADMIN_KEY": "secret\nsecret"}, []),
        ({}, ["--admin-key-file", str(key_file(" secret"))]),
    ):
        result = CliRunner().invoke(command, [*arguments, str(tmp_path), *option], env=environment)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "the admin key" in result.stderr
        assert "secret" not in result.output


def test_a_key_is_copied_with_its_source_and_not_shown():
    key = AdminKey("the secret", "my.key")
    for one in (copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert (one, one.source) == ("the secret", "my.key")
    assert repr([key]) == "[AdminKey(source='my.key')]"

"""A server that starts follows the files: what was switched while it was starting, and candidates on trial."""

import pytest

from onetrunk.deploy import Deployer
from onetrunk.deploy.reconcile import differences
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import COMMIT, STAGING
from onetrunk.repository.state import read_state
from onetrunk.serving.following import follow
from tests.fixtures.fake_server import FakeServer


@pytest.fixture
def late(repository):
    """A server that has read the files, and is not ready yet."""
    return FakeServer("127.0.0.1:1", repository)


def test_a_server_that_read_its_files_before_a_switch_follows_it(late, repository, deployer, bundle):
    deployer.deploy(bundle())
    deployer.candidate(bundle("topic"))
    assert late.pins["head_mood"] == 1
    assert {"multitask", "candidate_topic", "head_mood", "head_topic"} <= set(follow(repository, late))
    assert late.pins["head_mood"] == 2
    assert differences(read_state(repository), late) == []
    late.calls.clear()
    assert follow(repository, late) == []
    assert not [call for call in late.calls if call.startswith(("load", "unload"))]


def test_a_server_that_serves_what_the_files_say_is_only_looked_at(late, repository):
    late.calls.clear()
    assert follow(repository, late) == []
    assert set(late.calls) == {"index", "config multitask", "config multitask_tokens"}


@pytest.mark.hostile
def test_a_changed_file_is_not_loaded(late, repository, deployer, bundle):
    deployer.deploy(bundle())
    (repository / "head_mood/2/model.onnx").write_bytes(b"evil")
    with pytest.raises(UserError, match=r"head_mood/2/model.onnx is not as it was written"):
        follow(repository, late)
    assert late.pins["head_mood"] == 1


@pytest.mark.hostile
def test_a_manifest_that_the_key_has_not_signed_is_not_followed(late, repository, deployer, bundle):
    class Verifier:
        def check(self, folder, manifest):
            assert folder == repository
            raise UserError("is not signed by the key")

    deployer.deploy(bundle())
    with pytest.raises(UserError, match="is not signed by the key"):
        follow(repository, late, Verifier())
    assert late.pins["head_mood"] == 1


def test_a_repository_in_the_middle_of_a_change_or_without_a_manifest_is_left_alone(
    late, repository, tiny_trunk_folder, bundle
):
    Deployer(repository, url=None, trunk=tiny_trunk_folder).deploy(bundle())
    (repository / STAGING).mkdir()
    (repository / STAGING / COMMIT).write_text('{"moves": [], "removed": [], "loadable": true}')
    assert follow(repository, late) == []
    (repository / STAGING / COMMIT).unlink()
    (repository / "manifest.json").unlink()
    assert follow(repository, late) == []
    assert late.pins["head_mood"] == 1

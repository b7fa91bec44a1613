"""A release is published whole or not at all, and pulled whole or not at all."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import LOCK, MANIFEST, STAGING
from onetrunk.releases import release as module
from onetrunk.releases.cli import prune_releases, pull_repo
from onetrunk.releases.prune import SETTLED_S, prune
from onetrunk.releases.release import POINTER, Found, Pointer, publish, pull, read_pointer
from onetrunk.releases.store import ChangedMeanwhileError, FolderStore, open_store, parse_store
from onetrunk.repository.working_copy import working_copy

OLD = {"a": ["a1"], "b": ["b1"]}
NEW = {"a": ["a1", "a2"], "c": ["c1"]}


def tree(folder):
    """Path -> content of all files that a server could read."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        # A writer that was killed leaves its lock, which nobody holds.
        if path.is_file() and STAGING not in path.parts and path.name != LOCK
    }


@pytest.fixture
def old(tmp_path, write_repository):
    """A repository of two heads, and its release's hash."""
    return tmp_path / "old", write_repository(tmp_path / "old", OLD)


@pytest.fixture
def new(tmp_path, write_repository):
    """One with another version of a head, another head, and one head less."""
    return tmp_path / "new", write_repository(tmp_path / "new", NEW)


def test_what_is_published_is_what_is_pulled_and_only_what_changed_moves(store, old, new, tmp_path):
    first = publish(old[0], store)
    assert (first.release, first.copied) == (old[1], 0)
    assert set(first.uploaded) == set(tree(old[0])) - {MANIFEST}
    assert read_pointer(store).pointer == Pointer(release=old[1])
    pull(store, tmp_path / "here")
    assert tree(tmp_path / "here") == tree(old[0])

    second = publish(new[0], store)
    changed = {"head_a/2/model.onnx", "head_a/config.pbtxt", "head_c/1/model.onnx", "head_c/config.pbtxt"}
    changed |= {"multitask/config.pbtxt", "multitask_tokens/config.pbtxt"}
    assert set(second.uploaded) == changed
    assert second.copied == 5  # the trunk's two, the head's first version, and .keep of two ensembles
    report = pull(store, tmp_path / "here")
    assert set(report.written) == {*changed, MANIFEST}
    assert report.removed == ("head_b",)
    assert tree(tmp_path / "here") == tree(new[0])
    assert pull(store, tmp_path / "here").written == ()
    assert publish(new[0], store) == module.Published(new[1])

    pull(store, tmp_path / "here", pointer=Pointer(release=old[1]))  # the old release is still there
    assert tree(tmp_path / "here") == tree(old[0])


def test_the_log_goes_with_the_pointer(store, old, tmp_path):
    (old[0] / "deployments.jsonl").write_text('{"action": "deploy"}\n')
    publish(old[0], store)
    pull(store, tmp_path / "here")
    assert (tmp_path / "here" / "deployments.jsonl").read_text() == '{"action": "deploy"}\n'


def killed_at(step, store, work):
    """Carry out work in a process that is killed before its step-th request or write.

    Args:
        step: The step; 0 for none.
        store: A store that has not been used yet: two processes must not share a connection.
        work: What to do with it.

    Returns:
        None if it was killed, else the number of steps that there were.
    """
    child = os.fork()
    if child == 0:
        count = [0]
        try:

            def counted(*_, **__):
                count[0] += 1
                if count[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            if isinstance(store, FolderStore):
                for owner, name in ((os, "replace"), (os, "link"), (os, "fsync"), (shutil, "copyfile")):
                    original = getattr(owner, name)
                    setattr(owner, name, lambda *a, original=original, **k: (counted(), original(*a, **k))[1])
            else:
                store._client.meta.events.register("before-send.s3", counted)
            work(store)
        finally:
            os._exit(min(count[0], 255))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def chosen_steps(total, store):
    """All steps of work on a folder; of an object store, the first, some, and the last three, as requests take long.

    The last step on a folder only makes sure that the pointer, which is there already, survives a power cut.
    """
    return range(1, total) if isinstance(store, FolderStore) else [1, total // 2, *range(total - 2, total + 1)]


@pytest.mark.hostile
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_release(store_url, store, old, new, tmp_path):
    rehearsal = open_store(replace(store_url, prefix=f"{store_url.prefix}-rehearsal"))
    publish(old[0], rehearsal)
    total = killed_at(0, open_store(rehearsal.url), lambda store: publish(new[0], store))
    assert total > 10
    unused = open_store(store_url)
    publish(old[0], store)
    for step in chosen_steps(total, store):
        store.remove([f"releases/{new[1]}/{file}" for file in store.written(f"releases/{new[1]}")])  # by earlier steps
        assert killed_at(step, unused, lambda store: publish(new[0], store)) is None, step
        assert read_pointer(store).pointer == Pointer(release=old[1]), step
    pull(store, tmp_path / "old there")
    assert tree(tmp_path / "old there") == tree(old[0])
    assert killed_at(0, unused, lambda store: publish(new[0], store)) is not None
    assert read_pointer(store).pointer == Pointer(release=new[1])
    pull(store, tmp_path / "there")
    assert tree(tmp_path / "there") == tree(new[0])


@pytest.mark.hostile
def test_a_reader_that_is_killed_at_any_step_leaves_the_old_repository_or_the_new_one(
    store_url, store, old, new, tmp_path
):
    publish(old[0], store)
    pull(store, here := tmp_path / "here")
    publish(new[0], store)
    unused = open_store(store_url)
    total = killed_at(0, unused, lambda store: pull(store, tmp_path / "rehearsal"))
    for step in chosen_steps(total, store):
        killed_at(step, unused, lambda store: pull(store, here))
        decided = (here / STAGING / "commit.json").exists()
        assert decided or tree(here) in (tree(old[0]), tree(new[0])), step
    assert killed_at(0, unused, lambda store: pull(store, here)) is not None
    assert tree(here) == tree(new[0])


@pytest.mark.hostile
def test_a_writer_that_died_half_way_is_continued(store, old, new, tmp_path, monkeypatch):
    publish(old[0], store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "replace", lambda *_: (_ for _ in ()).throw(OneTrunkError("cut off")))
        with pytest.raises(OneTrunkError, match="cut off"):
            publish(new[0], store)
    again = publish(new[0], store)
    assert again.uploaded == ()
    assert read_pointer(store).pointer.release == new[1]


def overwrite(store, name, text, tmp_path):
    (tmp_path / "bad").write_text(text)
    if isinstance(store, FolderStore):
        (store.folder / name).unlink()  # it may be one file with that of another release
        (store.folder / name).write_text(text)
    else:
        store._client.put_object(**store._at(name), Body=text.encode())


@pytest.mark.hostile
@pytest.mark.parametrize("file", ["head_a/2/model.onnx", "multitask/config.pbtxt", MANIFEST])
def test_a_release_that_was_changed_is_refused_and_nothing_moves(store, old, new, tmp_path, file):
    publish(old[0], store)
    pull(store, here := tmp_path / "here")
    publish(new[0], store)
    overwrite(store, f"releases/{new[1]}/{file}", "evil", tmp_path)
    with pytest.raises(UserError, match="nothing was changed here"):
        pull(store, here)
    assert tree(here) == tree(old[0])


@pytest.mark.hostile
def test_a_manifest_that_leads_out_is_refused_even_with_its_right_hash(store, old, tmp_path):
    import hashlib

    text = (old[0] / MANIFEST).read_text().replace("head_a/1/model.onnx", "head_a/1/../../../model.onnx")
    digest = hashlib.sha256(text.encode()).hexdigest()
    publish(old[0], store)
    overwrite_new = f"releases/{digest}/{MANIFEST}"
    (tmp_path / "manifest").write_text(text)
    store.upload(tmp_path / "manifest", overwrite_new, digest)
    with pytest.raises(UserError, match="is broken"):
        pull(store, tmp_path / "here", pointer=Pointer(release=digest))
    assert tree(tmp_path / "here") == {}


@pytest.mark.hostile
@pytest.mark.parametrize("content", [b"", b"[]", b"nonsense", b'{"release": "../../etc"}', b"x" * 5000])
def test_a_broken_pointer_is_refused(store, old, tmp_path, content):
    store.replace(POINTER, content, None)
    with pytest.raises(UserError, match=r"current.json.*(is broken|found 5,000 bytes)"):
        pull(store, tmp_path / "here")


def test_a_file_that_is_not_as_the_manifest_says_is_not_published(store, old):
    (old[0] / "head_a/1/model.onnx").write_text("other")
    with pytest.raises(UserError, match=r"head_a/1/model.onnx is not as it was written: nothing was published"):
        publish(old[0], store)
    assert read_pointer(store) == Found()


def test_of_two_writers_one_is_refused(store, old, new, tmp_path, write_repository):
    before = read_pointer(store)
    publish(old[0], store, before)
    with pytest.raises(ChangedMeanwhileError, match="give the same command again"):
        publish(new[0], store, before)
    assert read_pointer(store).pointer.release == old[1]
    stale = read_pointer(store)
    publish(new[0], store, stale)
    write_repository(tmp_path / "third", {"a": ["a3"]})
    with pytest.raises(ChangedMeanwhileError):
        publish(tmp_path / "third", store, stale)
    assert read_pointer(store).pointer.release == new[1]


@pytest.mark.hostile
def test_what_was_changed_or_removed_in_the_release_before_is_sent_anew(store, old, new, tmp_path):
    publish(old[0], store)
    overwrite(store, f"releases/{old[1]}/head_a/1/model.onnx", "evil", tmp_path)
    store.remove([f"releases/{old[1]}/trunk_00_01/1/model.onnx"])
    second = publish(new[0], store)
    assert {"head_a/1/model.onnx", "trunk_00_01/1/model.onnx"} <= set(second.uploaded)
    pull(store, tmp_path / "here")
    assert tree(tmp_path / "here") == tree(new[0])


@pytest.mark.hostile
def test_a_release_of_which_a_file_is_gone_is_completed_before_it_is_current(store, old, new, tmp_path):
    publish(old[0], store)
    publish(new[0], store)
    store.remove([f"releases/{old[1]}/head_b/1/model.onnx"])
    assert publish(old[0], store).uploaded == ("head_b/1/model.onnx",)
    pull(store, tmp_path / "here")
    assert tree(tmp_path / "here") == tree(old[0])


@pytest.mark.hostile
def test_a_file_that_is_removed_while_it_is_published_makes_no_release(store, old, new, monkeypatch):
    publish(old[0], store)
    upload = store.upload

    def upload_and_lose(path, name, sha256):
        upload(path, name, sha256)
        if name.endswith(MANIFEST):
            store.remove([f"releases/{new[1]}/head_c/1/model.onnx"])

    with monkeypatch.context() as patch:
        patch.setattr(store, "upload", upload_and_lose)
        with pytest.raises(OneTrunkError, match=r"head_c/1/model.onnx was removed meanwhile: nothing was published"):
            publish(new[0], store)
    assert read_pointer(store).pointer.release == old[1]
    assert publish(new[0], store).uploaded == ("head_c/1/model.onnx",)


def test_two_writers_of_one_process_id_write_one_file_each(tmp_path):
    """As two containers have it, each with processes numbered from 1."""
    stores = [open_store(parse_store(f"file://{tmp_path / 'store'}")) for _ in range(2)]
    with stores[0]._written("logs/x") as first, stores[1]._written("logs/x") as second:
        assert first != second
        first.write_text("whole")
        second.write_text("other")
    assert (tmp_path / "store/logs/x").read_text() == "whole"  # it was moved in last
    assert not list((tmp_path / "store/.partial").iterdir())


@pytest.mark.hostile
def test_a_file_larger_than_any_of_a_release_is_not_taken(store, old, tmp_path, monkeypatch):
    publish(old[0], store)
    with pytest.raises(UserError, match=r"found 5 bytes, allowed are 4"):
        store.download(f"releases/{old[1]}/trunk_00_01/1/model.onnx", tmp_path / "x", 4)


LATER = 2 * SETTLED_S


def releases_of(store):
    return {name.split("/")[0] for name in store.written("releases")}


def test_prune_keeps_the_last_ones_and_never_the_current_one(store, old, tmp_path, write_repository, monkeypatch):
    hashes, written = [], store.written

    def written_in_turn(folder):
        """Each release a minute after the one before, as no test has the time for."""
        turn = {name: 60.0 * number for number, name in enumerate(hashes)}
        return {name: at + turn.get(name.split("/")[0], 0.0) for name, at in written(folder).items()}

    monkeypatch.setattr(store, "written", written_in_turn)
    for number in range(4):
        (old[0] / "deployments.jsonl").write_text("{}\n" * (number + 1))
        hashes.append(write_repository(old[0], {"a": [f"a{number}"]}))
        publish(old[0], store)
    first = read_pointer(store)
    store.replace(POINTER, Pointer(release=hashes[0]).model_dump_json().encode(), first.tag)
    store.upload(old[0] / MANIFEST, "releases/readme.txt", hashes[3])  # somebody else's

    assert prune(store, 1).removed == (), "all was written a moment ago"
    later = time.time() + LATER
    dry = prune(store, 1, dry_run=True, now=later)
    assert releases_of(store) == {*hashes, "readme.txt"}
    done = prune(store, 1, now=later)
    assert (dry.removed, dry.files) == (done.removed, done.files)
    assert {one.release for one in done.removed} == {hashes[1], hashes[2]}
    assert [(one.release, one.current) for one in done.kept] == [(hashes[3], False), (hashes[0], True)]
    assert releases_of(store) == {hashes[0], hashes[3], "readme.txt"}
    assert len(store.written("logs")) == 1
    pull(store, tmp_path / "here")
    pull(store, tmp_path / "here", pointer=Pointer(release=hashes[3]))


@pytest.mark.hostile
def test_prune_removes_what_dead_writers_left_and_what_it_left_itself(tmp_path, old, new):
    store = open_store(parse_store(f"file://{tmp_path / 'store'}"))
    publish(old[0], store)
    (store.folder / f"releases/{new[1]}").mkdir()
    (store.folder / f"releases/{new[1]}/half").write_text("x")  # no manifest, so no release
    (store.folder / ".partial/dead").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (store.folder / f"releases/{'0' * 64}").mkdir()
    (store.folder / f"releases/{'0' * 64}/link").symlink_to(outside)
    done = prune(store, 1, now=time.time() + LATER)
    assert {(one.release, one.published) for one in done.removed} == {(new[1], None), ("0" * 64, None)}
    assert releases_of(store) == {old[1]}
    assert sorted(path.name for path in (store.folder / "releases").iterdir()) == [old[1]]
    assert list((store.folder / ".partial").glob("*")) == []
    assert outside.read_text() == "precious"


def test_prune_leaves_a_release_that_is_being_written_out_of_old_files(tmp_path, old, new):
    store = open_store(parse_store(f"file://{tmp_path / 'store'}"))
    publish(old[0], store)
    ago = time.time() - 10 * LATER
    for path in (store.folder / f"releases/{old[1]}").rglob("*"):
        os.utime(path, (ago, ago))
    copied = next(name for name in store.written(f"releases/{old[1]}") if name != MANIFEST)
    store.copy(f"releases/{old[1]}/{copied}", f"releases/{new[1]}/{copied}")
    assert prune(store, 1).removed == ()
    assert releases_of(store) == {old[1], new[1]}


def test_prune_stops_if_a_release_is_published_again(store, old, new, monkeypatch):
    publish(old[0], store)
    publish(new[0], store)
    written, asked, later = store.written, [], time.time() + LATER

    def published_again(under):
        found = written(under)
        asked.append(under)
        older = {path: at - 60 * (old[1] in path) for path, at in found.items()}
        return dict.fromkeys(found, later) if under == f"releases/{old[1]}" else older

    monkeypatch.setattr(store, "written", published_again)
    with pytest.raises(ChangedMeanwhileError, match="somebody is writing release"):
        prune(store, 1, now=later)
    assert f"releases/{old[1]}" in asked
    assert releases_of(store) == {old[1], new[1]}


def test_prune_stops_if_somebody_publishes(store, old, new, monkeypatch):
    publish(old[0], store)
    publish(new[0], store)
    again = read_pointer(store)
    remove = store.remove

    def publish_first(names):
        monkeypatch.setattr(store, "remove", remove)
        store.replace(POINTER, Pointer(release=old[1]).model_dump_json().encode(), again.tag)
        remove(names)

    monkeypatch.setattr(store, "remove", publish_first)
    written = store.written
    # A store may tell whole seconds, in which both were published.
    monkeypatch.setattr(
        store, "written", lambda under: {path: at - 60 * (old[1] in path) for path, at in written(under).items()}
    )
    with pytest.raises(ChangedMeanwhileError, match="somebody has published meanwhile"):
        prune(store, 1, now=time.time() + LATER)
    assert releases_of(store) == {old[1], new[1]}


@pytest.mark.parametrize("command", [pull_repo, prune_releases])
def test_a_repository_is_told_from_a_store(tmp_path, old, command):
    done = CliRunner().invoke(
        command, [f"file://{old[0]}", *([str(tmp_path / "here")] if command is pull_repo else [])]
    )
    advice = f"serve-repo and deploy-head --repository take it as {old[0]}"
    told = f"error: file://{old[0]}: this is a repository, not a store of releases: {advice}\n"
    assert (done.exit_code, done.stderr) == (2, told)


def test_prune_releases(store_url, store, old):
    run = CliRunner()
    nothing = run.invoke(prune_releases, [str(store_url)])
    assert nothing.exit_code == 2
    assert f"nothing has been published there: build-repo --tasks all --output {store_url}\n" in nothing.output
    publish(old[0], store)
    done = run.invoke(prune_releases, [str(store_url), "--dry-run"])
    assert done.exit_code == 0, done.output
    line, end = done.output.splitlines()
    assert line.startswith(old[1])
    assert line.endswith("Z  current")
    assert end == f"{store_url}: would go: 0 releases, 0 files"
    told = json.loads(run.invoke(prune_releases, [str(store_url), "--json"]).output)
    assert told["kept"][0]["release"] == old[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gs://bucket/one", "no address of a store"),
        ("s3://bucket", "found bucket 'bucket' and prefix ''"),
        ("s3://Bucket/one", "found bucket 'Bucket'"),
        ("s3://bucket/../one", "found bucket 'bucket' and prefix '../one'"),
        ("s3://bucket//one", "found bucket 'bucket' and prefix '/one'"),
        ("file://host/one", "no absolute path"),
        ("file:///../one", "no absolute path"),
    ],
)
def test_addresses_that_are_none_are_refused(text, why):
    with pytest.raises(UserError, match=f"{why}.*allowed are s3://BUCKET/PREFIX and file:///FOLDER"):
        parse_store(text)


@pytest.mark.parametrize("scheme", ["s3", "S3", "https"])
def test_a_key_in_an_address_is_refused_and_not_repeated(scheme):
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
        parse_store(f"{scheme}://AKIA:geheim@bucket/one")
    assert "geheim" not in str(caught.value)


def test_pull_repo(store_url, store, old, tmp_path):
    publish(old[0], store)
    run = CliRunner()
    report = json.loads(run.invoke(pull_repo, [str(store_url), str(tmp_path / "here"), "--json"]).output)
    assert report["release"] == old[1]
    assert tree(tmp_path / "here") == tree(old[0])
    done = run.invoke(pull_repo, [str(store_url), str(tmp_path / "here")])
    assert done.output == f"{tmp_path / 'here'} is release {old[1][:12]} already\n"
    for arguments, why in (
        (["--release", "f" * 64], "there is no release ffff"),
        (["--release", "../x"], "a release is named by the 64 digits of its hash"),
    ):
        done = run.invoke(pull_repo, [str(store_url), str(tmp_path / "here"), *arguments])
        assert done.exit_code == 2
        assert why in done.output
        assert len(done.output.splitlines()) == 1


@pytest.mark.hostile
def test_refused_credentials_and_missing_ones_are_told_in_one_line_without_them(
    s3_environment, monkeypatch, tmp_path, object_store
):
    from tests.fixtures.releases import BUCKET, SECRET

    run = CliRunner()
    done = run.invoke(pull_repo, ["s3://no-such-bucket/one", str(tmp_path / "here")])
    assert done.exit_code == 1
    assert "NoSuchBucket" in done.output
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    unreachable = run.invoke(pull_repo, [f"s3://{BUCKET}/one", str(tmp_path / "here")])
    assert "127.0.0.1:1" in unreachable.output
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    missing = run.invoke(pull_repo, [f"s3://{BUCKET}/one", str(tmp_path / "here")])
    assert missing.exit_code == 2
    assert "found no credentials" in missing.output
    for one in (done, unreachable, missing):
        assert len(one.output.splitlines()) == 1
        assert SECRET not in one.output


def test_an_endpoint_that_is_no_address(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(UserError, match=r"Invalid endpoint: 127\.0\.0\.1:9000: set AWS_ENDPOINT_URL to an address"):
        open_store(parse_store("s3://bucket/prefix"))


def test_a_download_that_nobody_wants_any_more_ends(store, old, tmp_path, monkeypatch):
    publish(old[0], store)
    store.unwanted.set()
    with pytest.raises(OneTrunkError, match="ended"):
        store.download(f"releases/{old[1]}/{MANIFEST}", tmp_path / "file")
    store.unwanted.clear()
    monkeypatch.setattr(store, "download", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pull(store, tmp_path / "here")
    assert not store.unwanted.is_set(), "the next one begins anew"


def test_a_store_that_is_empty_has_no_working_copy_of_an_earlier_time(tmp_path, old, monkeypatch):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    url = parse_store(f"file://{tmp_path / 'store'}")
    publish(old[0], open_store(url))
    with working_copy(url, dry_run=True) as copy:
        assert (copy.folder / MANIFEST).exists()
    (tmp_path / "store" / POINTER).unlink()
    with pytest.raises(UserError, match="nothing has been published there: build-repo"), working_copy(url):
        pass
    with working_copy(url, dry_run=True, new=True) as copy:
        assert not copy.folder.exists()

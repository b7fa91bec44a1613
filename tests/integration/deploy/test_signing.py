"""Signed manifests: builds and deployments sign again or are refused, and what was changed since is not served."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from onetrunk.deploy import Deployer
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import ENSEMBLES, MANIFEST, SIGNATURE, STAGING
from onetrunk.protocol.signature import Signer, Verifier
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving.repository import read_repository

pytestmark = pytest.mark.hostile

PEM = serialization.Encoding.PEM


def write_pair(folder, name="key", kind=ed25519.Ed25519PrivateKey.generate, password=None):
    private = kind()
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pair = folder / f"{name}.pem", folder / f"{name}_pub.pem"
    pair[0].touch(0o600)
    pair[0].write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
    public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    pair[1].write_bytes(public)
    return pair


@pytest.fixture
def pair(tmp_path):
    """The files of a private key and of its public key."""
    return write_pair(tmp_path)


@pytest.fixture
def request_of(repository, tiny_heads, tiny_trunk_folder):
    def make(**changes):
        return BuildRequest(output=repository, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, **changes)

    return make


@pytest.fixture
def signed(repository, pair, request_of):
    """A repository whose manifest is signed; nothing else in it was changed."""
    report = build_repository(request_of(sign=pair[0]))
    assert report.written == (SIGNATURE,)
    return repository


def serve(repository, public):
    return read_repository(repository, verify=True, verifier=Verifier(public))


def test_a_signed_repository_is_served_and_signed_once(signed, pair, request_of):
    assert serve(signed, pair[1]).tasks
    assert len((signed / SIGNATURE).read_bytes()) == 64
    assert not build_repository(request_of(sign=pair[0])).changed


def test_openssl_makes_keys_and_checks_signatures(repository, tmp_path, request_of):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private, public = tmp_path / "KEY.pem", tmp_path / "PUB.pem"
    old = os.umask(0o077)
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    finally:
        os.umask(old)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    build_repository(request_of(sign=private))
    assert serve(repository, public).tasks
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", repository / MANIFEST]
    subprocess.run([*check, "-sigfile", repository / SIGNATURE], check=True, capture_output=True)


def change_file_and_manifest(repository):
    """What an attacker does who can write the repository: the file, and its hash in the manifest."""
    (repository / "head_mood/labels_mood.txt").write_text("evil\nevil\n")
    values = json.loads((repository / MANIFEST).read_text())
    digest = hashlib.sha256(b"evil\nevil\n").hexdigest()
    values["models"]["head_mood"]["files"]["head_mood/labels_mood.txt"] = digest
    (repository / MANIFEST).write_text(json.dumps(values))


def stage_another(repository):
    files = repository / STAGING / "files"
    files.mkdir(parents=True)
    shutil.copyfile(repository / MANIFEST, files / MANIFEST)
    change_file_and_manifest(repository)
    (repository / STAGING / "commit.json").write_text(json.dumps({"moves": [MANIFEST], "loadable": True}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_file_and_manifest, "no valid signature"),
        (stage_another, "no valid signature"),
        (lambda repository: (repository / "head_mood/1/model.onnx").write_bytes(b""), "is not as it was written"),
        (lambda repository: (repository / SIGNATURE).unlink(), "is not signed"),
        (lambda repository: (repository / SIGNATURE).write_bytes(b"\0" * 64), "no valid signature"),
        (lambda repository: (repository / SIGNATURE).write_bytes(b""), "no valid signature"),
        (lambda repository: (repository / SIGNATURE).write_bytes(b"\0" * 65), "found 65 bytes"),
        (lambda repository: (repository / MANIFEST).unlink(), "there is no manifest"),
        (lambda repository: ((repository / SIGNATURE).unlink(), os.mkfifo(repository / SIGNATURE)), "found a FIFO"),
    ],
)
def test_what_was_changed_since_is_neither_served_nor_deployed_to(signed, pair, tiny_trunk_folder, change, message):
    change(signed)
    with pytest.raises(UserError, match=message) as raised:
        serve(signed, pair[1])
    assert "\n" not in str(raised.value)
    deployer = Deployer(signed, url=None, trunk=tiny_trunk_folder, sign=pair[0], verify_key=pair[1])
    with pytest.raises(UserError):
        deployer.remove("mood")


def test_another_key_is_refused(signed, tmp_path):
    other = write_pair(tmp_path, "other")
    with pytest.raises(UserError, match="signed by another key"):
        serve(signed, other[1])


def test_deployments_sign_again(signed, pair, bundle, tiny_trunk_folder):
    deployer = Deployer(signed, url=None, trunk=tiny_trunk_folder, sign=pair[0], verify_key=pair[1])
    for change in (
        lambda: deployer.deploy(bundle(shift=1.0)),
        lambda: deployer.rollback("mood"),
        lambda: deployer.candidate(bundle(shift=2.0)),
        lambda: deployer.promote(),
        lambda: deployer.remove("topic"),
        lambda: deployer.prune(1),
    ):
        change()
        serve(signed, pair[1])
        assert deployer.verify() == []


def test_a_change_without_the_key_is_refused_before_it_begins(signed, pair, bundle, tiny_trunk_folder, request_of):
    before = {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()}
    deployer = Deployer(signed, url=None, trunk=tiny_trunk_folder)
    new = bundle(shift=1.0)
    for change in (
        lambda: deployer.deploy(new),
        lambda: deployer.remove("mood"),
        lambda: build_repository(request_of(tasks=["mood"])),
    ):
        with pytest.raises(UserError, match=r"the manifest is signed, .* --sign, or remove manifest\.json\.sig"):
            change()
    assert {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()} == before
    (signed / SIGNATURE).unlink()
    deployer.remove("mood")
    assert not (signed / SIGNATURE).exists()


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_between_the_moves_of_manifest_and_signature_a_server_starts(signed, pair, tiny_trunk_folder, moved):
    from onetrunk.repository.transaction import Transaction, signed_by

    manifest = json.loads((signed / MANIFEST).read_text())
    manifest["onetrunk_version"] = "another"
    with signed_by(Signer(pair[0])), Transaction(signed) as transaction:
        transaction.write_manifest(json.dumps(manifest))
        staged = {name: transaction.current(name).read_bytes() for name in (MANIFEST, SIGNATURE)}
    files = signed / STAGING / "files"
    files.mkdir(parents=True)
    for place, (name, content) in enumerate(staged.items()):
        (signed / name if place < moved else files / name).write_bytes(content)
    (signed / STAGING / "commit.json").write_text(json.dumps({"moves": list(staged), "loadable": True}))
    assert serve(signed, pair[1]).tasks


# Keys.


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_private_key_that_others_can_read_is_refused(pair, mode):
    pair[0].chmod(mode)
    with pytest.raises(UserError, match=f"found mode {mode:04o} of user .*: chmod 600"):
        Signer(pair[0])


def elliptic_key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("wrong", ["missing", "text", "kind", "password", "public", "FIFO", "folder"])
def test_what_is_no_private_key_is_refused_in_one_line(tmp_path, pair, wrong):
    file = tmp_path / "wrong.pem"
    if wrong == "text":
        file.touch(0o600)
        file.write_text("no key")
    elif wrong == "kind":
        file = write_pair(tmp_path, "elliptic", elliptic_key)[0]
    elif wrong == "password":
        file = write_pair(tmp_path, "hidden", password=b"secret")[0]
    elif wrong == "public":
        file = pair[1]
        file.chmod(0o600)
    elif wrong == "FIFO":
        os.mkfifo(file, 0o600)
    elif wrong == "folder":
        file.mkdir(0o700)
    with pytest.raises(UserError) as raised:
        Signer(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("wrong", ["missing", "text", "kind", "private"])
def test_what_is_no_public_key_is_refused_in_one_line(tmp_path, pair, wrong):
    file = tmp_path / "wrong.pem"
    if wrong == "text":
        file.write_text("no key")
    elif wrong == "kind":
        file = write_pair(tmp_path, "elliptic", elliptic_key)[1]
    elif wrong == "private":
        file = pair[0]
    with pytest.raises(UserError, match="-pubout") as raised:
        Verifier(file)
    assert "\n" not in str(raised.value)


def test_without_the_package_it_is_named(pair, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UserError, match=r"pip install 'onetrunk\[signing\]'"):
        Signer(pair[0])


def test_ensembles_are_compared_even_if_the_manifest_calls_them_unloaded(signed):
    from onetrunk.protocol.integrity import check_files

    values = json.loads((signed / MANIFEST).read_text())
    values["models"]["multitask"]["loaded"] = []
    (signed / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match="multitask/ is not in the manifest"):
        check_files(signed, ENSEMBLES)

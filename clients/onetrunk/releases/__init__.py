"""Releases: what a fleet serves at one time, immutable and named by its hash, in a folder or an object store.

A store has a folder for each release, and one small object that names the release to serve:

    current.json                  {"release": HASH, "log": HASH or null}
    releases/HASH/                a model repository, all of whose files its manifest.json lists
    logs/HASH.jsonl               deployments.jsonl as it was when a release was published

HASH is the SHA-256 of the content: of a release, that of its manifest, which has the hashes of all files. The file
``current.json`` is written last, and only if it is still as the writer has read it. So a writer that dies leaves the
old release, and of two writers one is refused.
"""

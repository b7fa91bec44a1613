"""The command of a comparison, and the texts that it asks about."""

import pytest
from click.testing import CliRunner

from benchmarks.compare.__main__ import compare
from benchmarks.compare.texts import texts_of_length


@pytest.mark.parametrize("tokens", [24, 4000])
def test_texts_are_as_long_as_they_are_asked_for(tiny_trunk, tokens):
    """However few the sentences are that they are made of."""
    tokenizer = tiny_trunk.tokenizer()
    texts = texts_of_length(tiny_trunk, tokens, 5)
    assert len(set(texts)) == 5
    assert {len(tokenizer.encode(text).ids) for text in texts} == {tokens}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenarios", "base,none"], "no such scenario; there are: base, small"),
        (["--scenarios", "peers"], "give their Python by --peers"),
        (["--scenarios", "base", "--peers", __file__], "--peers has no effect without the scenario peers"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    result = CliRunner().invoke(compare, ["--work", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1

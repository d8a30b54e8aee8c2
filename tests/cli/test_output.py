"""What buyers and sellers wrote is shown, not obeyed, by a terminal."""

import pytest

from cli.output import show_fields, show_table


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "a\x1b[2Jb", "a\x9b31mb", "a\rb", "a\x00b"])
def test_control_characters_are_spelled_out(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show_table([{"buyer_login": text}], ["buyer_login"], empty="none")
    show_fields({"buyer_login": text}, ["buyer_login"])

    shown = capsys.readouterr().out

    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert shown.count("\\x") >= 2


def test_letters_of_any_language_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_fields({"buyer_login": "żółw 🐢"}, ["buyer_login"])

    assert "żółw 🐢" in capsys.readouterr().out

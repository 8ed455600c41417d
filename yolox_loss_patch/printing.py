"""Text from files on its way to a screen, a page or a table: names may be a stranger's, and hold what a terminal obeys."""

from __future__ import annotations

import re

# What begins a formula in a spreadsheet. A number may begin with a sign.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")


def printable(text: str) -> str:
    """The text in a single line; letters that cannot be printed, such as ESC and those that turn the direction, are spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def printable_lines(text: str) -> str:
    """The same, but the lines stay lines and spaces stay as they are."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def in_markdown(text: str) -> str:
    """Text of a file in a line of Markdown: no HTML, no link. A terminal shows it with a backslash more."""
    return re.sub(r"<(?=[A-Za-z/!?])|(?<=\])\(", r"\\\g<0>", text)


def in_latex(text: str) -> str:
    """Text of a file as LaTeX prints it."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
             ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}  # fmt: skip
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else signs.get(letter, letter) for letter in printable(text))


def in_csv(text: str) -> str:
    """A cell of text that no spreadsheet takes for a formula: such a cell gets an apostrophe in front."""
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) and text != "-" else text

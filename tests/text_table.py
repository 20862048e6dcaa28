"""Tables as text: what is asked, and indented below it what is answered.

In: text. Out: (question, answer) pairs.
Invariant: lines that start with `#` are headings; an answer may take several lines.
Next: test_errors.py and test_course.py, which hold such tables.
"""


def read(text: str) -> list[tuple[str, str]]:
    """The pairs of a table, each answer on one line."""
    rows: list[tuple[str, str]] = []
    for line in text.strip().splitlines():
        if line.startswith(" "):
            question, answer = rows.pop()
            rows.append((question, f"{answer} {line.strip()}".strip()))
        elif not line.startswith("#"):
            rows.append((line, ""))
    return rows

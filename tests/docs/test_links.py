"""Links lead somewhere."""

import re

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_relative_link_leads_to_a_file_and_a_heading(documents):
    """In every document; pictures too."""
    dead = []
    for document in documents:
        for target in LINK.findall(document.prose):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (document.path.parent / name).resolve() if name else document.path
            if not path.exists():
                dead.append(f"{document.name}: {target}")
            elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
                dead.append(f"{document.name}: {target}: no such heading")
    assert dead == []


def test_no_document_has_a_place_that_is_still_to_be_filled(documents):
    """Words in capitals with an underscore alone on a line or in a table cell stand for what was to come."""
    left = [
        f"{document.name}: {word}"
        for document in documents
        for word in re.findall(r"^(?:\|.*\| )?([A-Z]+_[A-Z_]+)(?: \|)?$", document.text, re.MULTILINE)
    ]
    assert left == []

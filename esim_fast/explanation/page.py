"""An explanation as a page for a browser: one file, which loads nothing."""

from importlib import resources

_PLACE = "{{explanation}}"


def page(explanation: str) -> str:
    """The page of an explanation, given as JSON. Its words are text to the page, whatever they are."""
    template = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
    return template.replace(_PLACE, explanation.replace("<", r"\u003c"))

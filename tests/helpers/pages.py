"""A parser of HTML pages, for tests of their content."""

from html.parser import HTMLParser

VOID_ELEMENTS = {"meta", "link", "img", "br", "wbr", "input", "hr"}


class Page(HTMLParser):
    """The tags, texts and table rows of a page; fails for tags that are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.open, self.tags, self.written, self.rows = text, [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), (tag, attributes)
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.written.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.written).split())

    def row(self, *first):
        """The cells of the only row with this first cell."""
        (found,) = [row for row in self.rows if row[: len(first)] == list(first)]
        return found

"""The explorer where nothing moves: one chart and one table, as HTML."""

from dataclasses import dataclass, field

from channelscope.explorer.page import Page
from channelscope.result import Result


@dataclass
class Still:
    """A chart of one model's layer for one class, and a table of all classes: notebooks show its HTML."""

    comparison: Result = field(repr=False)
    model: str
    layer: str
    class_name: str
    order: str

    def _repr_html_(self) -> str:
        page = Page(self.comparison, self.model, self.layer)
        return page.style() + page.chart(self.class_name, self.order) + page.classes()

"""The explorer with a kernel: the chart beneath the controls that choose what it shows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ipywidgets import HTML, Box, Button, Dropdown, IntSlider, Layout, SelectMultiple, VBox

from channelscope.explorer.page import Page, StaticExplorer, format_value
from channelscope.explorer.tables import ORDERS, list_channels
from channelscope.figures.words import measured_layers
from channelscope.result import Result

if TYPE_CHECKING:
    from channelscope.explorer.live import LiveNetwork

_CHOICES = ("model", "layer", "class_name", "order")
_FIRST = ("the first", -1)  # what is described while no channel is chosen


class Explorer(StaticExplorer):
    """Controls, and a chart that follows them; every control can be set from Python too.

    ``controls``: "model", "layer", "class_name", "order" choose the chart; "channel" is the one
    described while the mouse is elsewhere; "silenced" the channels that are set to zero; "restored"
    those that have their natural values in the adversarial run, if they are not silenced; "first"
    silences so many from the left of the chart; the button "none" undoes all. ``chart`` and
    ``silencing``, what silencing and restoring do, are HTML.
    """

    def __init__(self, result: Result, networks: "Mapping[str, LiveNetwork]", **start: str) -> None:
        super().__init__(result, **start)
        self._networks, self._layers = networks, measured_layers(result)
        self.controls = self._make_controls()
        self.style, self.chart, self.silencing = HTML(), HTML(), HTML()
        self._setting = False  # whether the program, not the user, sets controls
        self._open_layer()
        for name in _CHOICES:
            self.controls[name].observe(self._follow_choice, "value")
        self.controls["channel"].observe(self._draw, "value")
        self.controls["silenced"].observe(self._draw, "value")
        self.controls["restored"].observe(self._draw, "value")
        self.controls["first"].observe(self._silence_first, "value")
        self.controls["none"].on_click(self._undo_all)
        self.widget = self._arrange()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return the widgets, and for readers without a kernel the chart as it is now."""
        further = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return self.widget._repr_mimebundle_() | further

    def _make_controls(self) -> dict[str, Any]:
        options = {
            "model": list(self._layers),
            "layer": self._layers[self.model],
            "class_name": self.result.meta["data"]["classes"],
            "order": list(ORDERS),
        }
        words = {"class_name": "class", "order": "sorted by"}
        controls: dict[str, Any] = {
            name: Dropdown(
                options=names, value=getattr(self, name), description=words.get(name, name)
            )
            for name, names in options.items()
        }
        return controls | {
            "channel": Dropdown(description="describe"),
            "silenced": SelectMultiple(description="silence", rows=6),
            "restored": SelectMultiple(description="restore", rows=6),
            "first": IntSlider(description="from left", max=0, continuous_update=False),
            "none": Button(description="undo all"),
        }

    def _arrange(self) -> VBox:
        controls = self.controls
        wrapped = Layout(display="flex", flex_flow="row wrap")
        choices = [controls[name] for name in (*_CHOICES, "channel")]
        silence = [
            controls["silenced"],
            controls["restored"],
            VBox([controls["first"], controls["none"]]),
        ]
        below = Box([*silence, self.silencing], layout=wrapped)
        return VBox([self.style, Box(choices, layout=wrapped), self.chart, below])

    def _follow_choice(self, change: Any) -> None:
        """Show what the controls choose."""
        if self._setting:
            return
        before = (self.model, self.layer)
        if change.owner is self.controls["model"]:
            layers = self._layers[change.new]
            with self._set_controls():
                self.controls["layer"].options = layers
                self.controls["layer"].value = self.layer if self.layer in layers else layers[-1]
        for name in _CHOICES:
            setattr(self, name, self.controls[name].value)
        if (self.model, self.layer) == before:
            self._sort_channels()
        else:
            self._open_layer()

    def _open_layer(self) -> None:
        """Show another layer, in which no channel is chosen or silenced yet."""
        self._page = Page(self.result, self.model, self.layer)
        self.style.value = self._page.render_style()
        with self._set_controls():
            self.controls["channel"].options = [_FIRST]
            self.controls["channel"].value = _FIRST[1]
            self.controls["silenced"].options = ()
            self.controls["restored"].options = ()
        self._sort_channels()

    def _sort_channels(self) -> None:
        """Show the channels for the chosen class in the chosen order."""
        self._rows = list_channels(self.result, self.model, self.layer, self.class_name, self.order)
        numbers = self._rows["channel"].tolist()
        relevance = map(format_value, self._rows["relevance"])
        options = [
            (f"{channel}: relevance {text}", channel)
            for channel, text in zip(numbers, relevance, strict=True)
        ]
        with self._set_controls():
            names = {"channel": [_FIRST, *options], "silenced": options, "restored": options}
            for name, choices in names.items():
                value = self.controls[name].value
                self.controls[name].options = choices
                self.controls[name].value = value
            self.controls["first"].max, self.controls["first"].value = len(options), 0
        self._draw()

    def _silence_first(self, change: Any) -> None:
        if not self._setting:
            self.controls["silenced"].value = tuple(self._rows["channel"].head(change.new).tolist())

    def _undo_all(self, _: Any) -> None:
        with self._set_controls():
            self.controls["first"].value = 0
            self.controls["restored"].value = ()
        self.controls["silenced"].value = ()
        self._draw()

    def _draw(self, _: Any = None) -> None:
        """Draw the chart, and say what silencing does."""
        if self._setting:
            return
        silenced, restored = (self.controls[name].value for name in ("silenced", "restored"))
        self.chart.value = self._page.render_chart(
            self.class_name, self.order, self.controls["channel"].value, silenced
        )
        self.silencing.value = self._page.render_silencing(
            self.class_name, self._rows, silenced, restored, self._networks.get(self.model)
        )

    @contextmanager
    def _set_controls(self) -> Iterator[None]:
        """Let controls be set without being followed one by one."""
        self._setting = True
        try:
            yield
        finally:
            self._setting = False

"""What channels see: images that drive them, and the images of the data that do so most.

Feature visualisation by activation maximisation, after Olah et al., "Feature Visualization"
(Distill 2017, doi 10.23915/distill.00007): from noise, in a decorrelated Fourier basis and under
random shifts, which keep the ascent from patterns of single pixels; and from a natural image, in
the ball that attacks search, by PGD on the channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from channelscope.attacks import PGD
from channelscope.data import Split, as_dataset
from channelscope.data.blocks import block_size
from channelscope.devices import resolve_device
from channelscope.errors import UserError
from channelscope.figures.axes import add_title, make_grid, wrap_note
from channelscope.figures.paper import styled
from channelscope.figures.words import format_radius, shorten
from channelscope.gates import attached
from channelscope.layers.channels import channel_axis
from channelscope.layers.features import capture, capture_activations
from channelscope.layers.hooks import eval_mode, get_parameter
from channelscope.result import Result
from channelscope.scorers.gradients import gradient_x_activation
from channelscope.statistics.similarity import match_channels
from channelscope.study.measuring import shrink
from channelscope.study.models import Model, Models, choose_layers, load_models, trained_on
from channelscope.study.reach import ChannelObjective

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKINGS = ("activation", "relevance")  # what reference images are ranked by
_REFERENCES = 4  # images of each channel and ranking
_CHOSEN = 6  # channels where none are named
_RATE = 0.05  # length of a step, root mean square over an image's coefficients
_MOMENTUM = 0.9
# Of the first spectrum: nearly grey where that activates a channel, for there is no gradient behind
# a ReLU that is silent; else stronger.
_SPREADS = (0.01, 0.1, 0.5, 2.0)
_TRIED = 32  # first spectra of each spread
_ACTIVE = 1e-3  # of the best start's activation: what an earlier spread must reach
# Square root of the covariance of ImageNet's colours, as in that article's code: a unit step along
# each of its columns is as likely in natural images.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, eq=False)
class ChannelViews:
    """What m channels of one layer of one network see.

    Args:
        layer: its name.
        channels: their numbers.
        noise: images that drive them, from noise (m, c, h, w), in [0, 1].
        start, driven: natural images, and what PGD in their ball makes of them (m, c, h, w).
        activations: of each channel (m,): on its "noise", "start" and "driven" image, and the
            largest on a natural one ("natural").
        references: "activation" and "relevance" -> numbers of the natural images of the largest
            activation, and of the largest contribution to their own class's logit (gradient times
            activation; Achtibat et al., 2023, arXiv 2206.03208), the largest first (m, r).
        maps: by the same names the channel's map on each (m, r, map height, map width), at least 0
            and at most 1, the largest value of the image's map; none of layers without maps.
    """

    layer: str
    channels: tuple[int, ...]
    noise: Float[Tensor, "m c h w"]
    start: Float[Tensor, "m c h w"]
    driven: Float[Tensor, "m c h w"]
    activations: Mapping[str, Float[Tensor, " m"]]
    references: Mapping[str, Int[Tensor, "m r"]]
    maps: Mapping[str, Float[Tensor, "m r map_h map_w"]]


@dataclass(frozen=True, eq=False)
class Visualisations:
    """What channels of several networks see, row i of each beside row i of the others.

    Args:
        models: label -> what its channels see.
        pictures: small pictures (uint8) of the reference images, by number.
        fingerprint: of the images.
        digests: of the networks, by label.
        eps: radius of the ball around natural images.
    """

    models: Mapping[str, ChannelViews]
    pictures: Mapping[int, ndarray] = field(repr=False)
    fingerprint: str = field(repr=False)
    digests: Mapping[str, str] = field(repr=False)
    eps: float

    @property
    def table(self) -> pd.DataFrame:
        """A row for each channel: how far its images drive it, beside natural images."""
        rows = []
        for model, views in self.models.items():
            for place, channel in enumerate(views.channels):
                row = {"model": model, "layer": views.layer, "channel": channel}
                numbers = {key: float(a[place]) for key, a in views.activations.items()}
                rows.append(row | numbers)
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Draw the images, a row a channel, the networks side by side."""
        return _draw(self)

    def add_to(self, result: Result) -> Result:
        """Return a comparison that keeps these images too: saved with it, shown by the explorer.

        Raises:
            UserError: for a comparison of other networks, or on other images.
        """
        meta = result.meta
        if meta["data"].get("fingerprint") != self.fingerprint:
            raise UserError(
                "images: they are others than those of the comparison: pass the data that it was "
                "made on, and its number of images and seed."
            )
        arrays = {name: array for name, array in result.arrays.items() if name[:6] != "views/"}
        labels = list(meta["models"])
        for label, views in self.models.items():
            if meta["models"].get(label, {}).get("digest") != self.digests[label]:
                raise UserError(f"models: {label} is not the network of that name compared.")
            if views.layer not in meta["models"][label]["layers"]:
                raise UserError(f"layer: {views.layer} of {label} was not compared.")
            place = meta["models"][label]["layers"].index(views.layer)
            arrays |= _as_arrays(views, f"views/{labels.index(label)}/{place}")
        arrays["views/images"] = np.array([*self.pictures], np.int64)
        arrays["views/pictures"] = np.stack([*self.pictures.values()])
        return replace(result, arrays=arrays)


def visualise(
    models: Models,
    layer: str | Mapping[str, str] | None = None,
    channels: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    data: Any = None,
    *,
    images: int | None = 500,
    steps: int = 256,
    attack: PGD | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Visualisations:
    """Show what channels see: images made to drive them, and the images of the data that do most.

    From noise, with Fourier coefficients s and their frequencies f, the colours' mixing C and a
    random shift of at most an eighth of the image in each step, normalised gradient ascent with
    momentum maximises the activation of

        x = sigmoid(C irfft2(s / f)) .

    From a natural image, PGD maximises it in the ball that attacks search: what little can be done
    to a channel there, and whether it looks like anything. The natural image is the one in the
    middle of those on which the first network's channel is active. Gates are attached.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 2
    >>> views = visualise({"net": net}, "0", [1], data, steps=4)
    >>> views.models["net"].noise.shape
    torch.Size([1, 3, 8, 8])

    Args:
        models: as in ``compare``.
        layer: its name, for all networks or by label; None for each penultimate layer.
        channels: their numbers in the first network, beside which the others show those that match
            them by their activations (see ``statistics.similarity.match_channels``); or, as many
            for each, by label. None for those that contribute most to the logits of the images'
            classes.
        data: as in ``compare``.
        images, seed: how many images of the test split, and which; None for all. A comparison of
            the same images takes the result, see ``Visualisations.add_to``. The seed is that of the
            noise too.
        steps: from noise, >= 1.
        attack: the ball, the steps and their size around natural images; None for PGD-20 with its
            defaults, without a random start.
        device: where checkpoints are run.

    Raises:
        UserError: for arguments that do not fit together; the sentence names the argument.
    """
    if steps < 1:
        raise UserError(f"steps: {steps} is no number of steps from 1 up.")
    loaded = load_models(models, {}, resolve_device(device))
    if data is None:
        data = trained_on([model.training for model in loaded])
    dataset = as_dataset(data)
    fits = images is not None and images < len(dataset.test)
    split = dataset.test.sample(images if fits else None, seed).load()
    attack = attack or PGD(random_start=False)
    count = len(dataset.classes)
    viewers = {
        model.label: _Viewer.open(model, _pick("layer", layer, model.label), split, count)
        for model in loaded
    }
    numbers = _choose_channels(viewers, channels)
    first = next(iter(viewers))
    starts = viewers[first].choose_starts(numbers[first])
    views = {
        label: viewer.view(numbers[label], starts, steps, attack, seed)
        for label, viewer in viewers.items()
    }
    return Visualisations(
        models=views,
        pictures=_take_pictures(split, views.values()),
        fingerprint=split.fingerprint(),
        digests={model.label: model.digest for model in loaded},
        eps=attack.eps,
    )


def _choose_channels(
    viewers: "Mapping[str, _Viewer]", channels: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> dict[str, list[int]]:
    """Return each network's channels, as many of each."""
    if isinstance(channels, Mapping):
        chosen = {
            label: viewer.check_channels(_pick("channels", channels, label))
            for label, viewer in viewers.items()
        }
        if len({*map(len, chosen.values())}) > 1:
            raise UserError("channels: name as many for each model: they are shown side by side.")
        return chosen
    (label, first), *others = viewers.items()
    numbers = first.rank_channels() if channels is None else first.check_channels(channels)
    return {label: numbers} | {
        label: first.match_channels(numbers, label, other) for label, other in others
    }


def _pick(name: str, value: Any, label: str) -> Any:
    """Return an argument that is the same for all networks, or a network's own."""
    if not isinstance(value, Mapping):
        return value
    if label not in value:
        raise UserError(f"{name}: there is none for {label!r}: name one for each model.")
    return value[label]


@dataclass(frozen=True, eq=False)
class _Viewer:
    """A layer of a network, and what its channels do on natural images.

    Args:
        network: which returns plain logits.
        layer: its name.
        split: the images.
        activations, contributions: image by image (n, c).
    """

    network: nn.Module
    layer: str
    split: Split
    activations: Float[Tensor, "n c"]
    contributions: Float[Tensor, "n c"]

    @classmethod
    def open(cls, model: Model, layer: str | None, split: Split, classes: int) -> "_Viewer":
        """Choose the layer and run the network on the images."""
        like = get_parameter(model.network)
        few = next(split.batches(2, like.device))[0].to(like)
        network = model.adapt_output(few, classes, None).network
        names = None if layer is None else [layer]
        (layer, *_), _ = choose_layers(network, names, few, classes)
        activations, contributions = [], []
        for x, y in split.batches(block_size(split), like.device):
            x = x.to(like)
            scores = gradient_x_activation(network, [layer], x, y)
            contributions.append(scores[layer].float().cpu())
            with eval_mode(network), torch.no_grad(), capture_activations(network, layer) as a:
                network(x)
            activations.append(a[layer].float().cpu())
        return cls(network, layer, split, torch.cat(activations), torch.cat(contributions))

    def rank_channels(self) -> list[int]:
        """Return the channels that contribute most to the logits of the images' classes."""
        order = self.contributions.abs().mean(0).argsort(descending=True, stable=True)
        return order[:_CHOSEN].tolist()

    def check_channels(self, channels: Sequence[int]) -> list[int]:
        """Return channels, if the layer has them all."""
        width = self.activations.shape[1]
        for channel in channels:
            if channel not in range(width):
                raise UserError(
                    f"channels: layer {self.layer!r} has {width} channels, from 0 up: there is no "
                    f"channel {channel}."
                )
        if not len(channels):
            raise UserError("channels: none is named: give a list such as [0, 5].")
        return list(channels)

    def match_channels(self, channels: list[int], label: str, other: "_Viewer") -> list[int]:
        """Return the channels of another network that match, as those of a comparison do."""
        match = match_channels(self.activations.numpy(), other.activations.numpy())
        pairs = dict(zip(match.channel.tolist(), match.other.tolist(), strict=True))
        if unmatched := [channel for channel in channels if channel not in pairs]:
            raise UserError(
                f"channels: channel {unmatched[0]} has no match in {label}: name the channels of "
                "each model."
            )
        return [pairs[channel] for channel in channels]

    def choose_starts(self, channels: Sequence[int]) -> Int[Tensor, " m"]:
        """Choose for each channel the image in the middle of those on which it is active.

        A channel behind a ReLU has no gradient on the others.
        """
        starts = []
        for a in self.activations[:, list(channels)].T:
            order = a.argsort(stable=True)
            active = order[a[order] > a.min()]
            starts.append((active if len(active) else order)[len(active) // 2])
        return torch.stack(starts)

    def view(
        self,
        channels: list[int],
        starts: Int[Tensor, " m"],
        steps: int,
        attack: PGD,
        seed: int,
    ) -> ChannelViews:
        """Drive channels from noise and from natural images; find and locate reference images."""
        like = get_parameter(self.network)
        objective = ChannelObjective(self.layer, torch.tensor(channels, device=like.device))
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (len(channels), *self.split.image_shape)
        start = next(self.split.batches(len(starts), like.device, starts))[0].to(like)
        none = torch.zeros(len(channels), dtype=torch.long, device=like.device)
        search = replace(attack, objective=objective, early_stop=None)
        with eval_mode(self.network), attached(self.network):
            noise = draw_from_noise(self.network, objective, shape, like, steps, generator)
            driven = search(self.network, start, none, torch.Generator("cpu").manual_seed(seed))
            with torch.no_grad():
                rises = objective(self.network, driven, none) > objective(self.network, start, none)
                driven = torch.where(rises.view(-1, 1, 1, 1), driven, start)
                values = {
                    name: objective(self.network, x, none).float().cpu()
                    for name, x in (("noise", noise), ("start", start), ("driven", driven))
                }
        values["natural"] = self.activations[:, channels].amax(0)
        count = min(_REFERENCES, len(self.split))
        ranked = {"activation": self.activations, "relevance": self.contributions}
        references = {
            name: numbers[:, channels].argsort(dim=0, descending=True, stable=True)[:count].T
            for name, numbers in ranked.items()
        }
        maps = {name: self._locate(channels, images) for name, images in references.items()}
        return ChannelViews(
            layer=self.layer,
            channels=tuple(channels),
            noise=noise.float().cpu(),
            start=start.float().cpu(),
            driven=driven.detach().float().cpu(),
            activations=values,
            references=references,
            maps={name: each for name, each in maps.items() if each is not None},
        )

    def _locate(self, channels: Sequence[int], images: Int[Tensor, "m r"]) -> Tensor | None:
        """Return each channel's map on its images; None for a layer without maps."""
        like, rows = get_parameter(self.network), []
        with eval_mode(self.network), torch.no_grad(), capture(self.network, self.layer) as z:
            for channel, numbers in zip(channels, images, strict=True):
                self.network(
                    next(self.split.batches(len(numbers), like.device, numbers))[0].to(like)
                )
                features = z[self.layer]
                if features.ndim != 4:
                    return None
                axis = channel_axis(self.network, self.layer, features.shape)
                rows.append(features.select(axis, channel).float().cpu())
        maps = torch.stack(rows).clamp_min(0)
        return maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)


def draw_from_noise(
    network: nn.Module,
    objective: ChannelObjective,
    shape: tuple[int, ...],
    like: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "m c h w"]:
    """Maximise an objective from noise, see ``visualise``; return images (m, c, h, w) in [0, 1].

    Args:
        network: in eval mode.
        objective: image by image.
        shape: of the images.
        like: a tensor of the device and the type that the network takes.
        steps: of the ascent.
        generator: of the first spectrum and of the shifts, on the CPU.
    """
    basis = _Basis(shape, like)
    spectrum = _choose_spectra(network, objective, basis, generator).requires_grad_()
    reach = max(1, min(shape[2:]) // 8)
    none = torch.zeros(shape[0], dtype=torch.long, device=like.device)
    velocity = torch.zeros_like(spectrum)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            shift = torch.randint(
                -reach, reach + 1, (2,), generator=generator, device="cpu"
            ).tolist()
            x = basis.make_images(spectrum).roll(shift, (2, 3))
            (slope,) = torch.autograd.grad(objective(network, x, none).sum(), spectrum)
            size = slope.square().mean((1, 2, 3, 4), keepdim=True).sqrt().clamp_min(1e-30)
            velocity = _MOMENTUM * velocity + (1 - _MOMENTUM) * slope / size
            spectrum = (spectrum + _RATE * velocity).detach().requires_grad_()
    return basis.make_images(spectrum.detach())


class _Basis:
    """Images by their decorrelated Fourier coefficients.

    Args:
        shape: of the images (m, c, h, w).
        like: a tensor of the device and the type that the network takes.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.shape, self.like = shape, like
        _, colours, height, width = shape
        across, down = torch.fft.rfftfreq(width), torch.fft.fftfreq(height)
        frequency = (across**2 + down[:, None] ** 2).sqrt().clamp_min(1 / max(height, width))
        self.scale = ((height * width) ** 0.5 / frequency / 4).to(like.device)
        mixing = (
            torch.tensor(_COLOURS, device="cpu")
            if colours == 3
            else 0.3 * torch.eye(colours, device="cpu")
        )
        self.mixing = (mixing / mixing.norm(dim=0).max()).to(like.device)

    def draw_spectra(self, n: int, spread: float, generator: torch.Generator) -> Tensor:
        """Draw n spectra (n, c, h, w // 2 + 1, 2)."""
        shape = (n, self.shape[1], *self.scale.shape, 2)
        return spread * torch.randn(shape, generator=generator, device="cpu").to(self.like.device)

    def make_images(self, spectrum: Tensor) -> Float[Tensor, "n c h w"]:
        """Return the images of some spectra."""
        coefficients = torch.view_as_complex(spectrum) * self.scale
        x = torch.fft.irfft2(coefficients, s=self.shape[2:])
        return torch.einsum("dc,nchw->ndhw", self.mixing, x).sigmoid().to(self.like)


def _choose_spectra(
    network: nn.Module, objective: ChannelObjective, basis: _Basis, generator: torch.Generator
) -> Tensor:
    """Choose for each channel a first spectrum that activates it, as faint as may be."""
    spectra, activations = [], []
    for spread in _SPREADS:
        spectra.append(basis.draw_spectra(_TRIED, spread, generator))
        with torch.no_grad(), capture_activations(network, objective.layer) as captured:
            network(basis.make_images(spectra[-1]))
        activations.append(captured[objective.layer][:, objective.channel].float())
    values, places = torch.stack(activations).max(1)  # (spreads, m)
    is_enough = values > _ACTIVE * values.amax(0)
    first = torch.where(is_enough.any(0), is_enough.int().argmax(0), len(_SPREADS) - 1)
    rows = torch.arange(len(first), device=first.device)
    return torch.stack(spectra)[first, places[first, rows]].clone()


def _take_pictures(split: Split, views: Any) -> dict[int, ndarray]:
    """Return small pictures of all reference images, by number."""
    numbers = torch.cat([each.flatten() for one in views for each in one.references.values()])
    rows = numbers.unique()
    pictures = torch.cat([shrink(x) for x, _ in split.batches(128, indices=rows)])
    return dict(zip(rows.tolist(), pictures.numpy(), strict=True))


def _as_arrays(views: ChannelViews, name: str) -> dict[str, ndarray]:
    """Return what a result keeps."""
    arrays = {
        f"{name}/channels": np.array(views.channels, np.int64),
        f"{name}/activations": torch.stack([*views.activations.values()], 1).numpy(),
        f"{name}/references": torch.stack([views.references[by] for by in RANKINGS]).numpy(),
    }
    for which in ("noise", "start", "driven"):
        arrays[f"{name}/{which}"] = shrink(getattr(views, which)).numpy()
    if views.maps:
        maps = torch.stack([views.maps[by] for by in RANKINGS])
        arrays[f"{name}/maps"] = maps.mul(255).round().byte().numpy()
    return arrays


@styled
def _draw(views: Visualisations) -> "Figure":
    """Draw a row a channel: of each network the noise image, and the natural one driven."""
    columns = list(product(views.models, ("noise", "driven")))
    first = next(iter(views.models.values()))
    count = len(first.channels)
    figure, axes = make_grid(count, 1 + len(columns), 0.52, 0.9)
    for place in range(count):
        _show(axes[place, 0], first.start[place], "\nimage" if not place else "")
        for ax, (model, which) in zip(axes[place, 1:], columns, strict=True):
            model_views = views.models[model]
            head = {"noise": f"{shorten(model, 13)}\nfrom noise", "driven": "\nin the ball"}
            _show(ax, getattr(model_views, which)[place], head[which] if not place else "")
            value = f"{float(model_views.activations[which][place]):.2g}"
            text = f"{model_views.channels[place]}: {value}" if which == "noise" else value
            ax.set_xlabel(text, fontsize=5, labelpad=1)
    add_title(figure, "Images that drive single channels")
    note = (
        "channel: activation on its image; in the ball: from the natural image, at most "
        f"{format_radius(views.eps)} a pixel away"
    )
    figure.supxlabel(wrap_note(note), fontsize=6)
    return figure


def _show(ax: Any, image: Float[Tensor, "c h w"], title: str) -> None:
    picture = image.movedim(0, -1).numpy()
    picture = picture if picture.shape[2] == 3 else picture[..., 0]
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=5, pad=2)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)

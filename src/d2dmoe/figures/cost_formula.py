"""Figure 10: the analytic cost of a dynamic-k layer relative to the FFN that it replaces.

It shows when a router is paid for: at few executed experts and many experts the router's own
products, 2 h (d_model + n) per token, become the larger part.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from d2dmoe.errors import UserError
from d2dmoe.figures import style
from d2dmoe.figures.style import Look
from d2dmoe.formulas import layer_ratio

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # k/n, at router width WIDTH
WIDTHS = (8, 32, 128, 512)  # h, at the share SHARE
WIDTH, SHARE = 128, 0.25
HIGHEST = 1.6  # of the axis


@style.styled
def draw(d_model: int = 768, d_ff: int = 3072) -> Figure:
    """The ratio over the number of experts: several shares k/n, and several router widths h.

    Args:
        d_model: width of a token; as in the paper, ViT-B's.
        d_ff: hidden neurons of the replaced FFN; the numbers of experts are the powers of 2 that
            divide it.

    Raises:
        UserError: d_ff is odd, so that there is nothing to split.
    """
    experts = [2**i for i in range(1, d_ff.bit_length()) if d_ff % 2**i == 0]
    if not experts:
        raise UserError(f"d_ff = {d_ff} is odd: figure 10 needs a width that splits into halves")
    figure = Figure(figsize=(style.WIDTH, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, lines in ((left, _by_share()), (right, _by_width())):
        handles = [
            _line(axes, d_model, d_ff, experts, width, share, label, style.look(index))
            for index, (label, width, share) in enumerate(lines)
        ]
        axes.axhline(1, color=style.FAINT, linestyle="--", linewidth=0.9, zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(experts[::2], [str(n) for n in experts[::2]])
        axes.minorticks_off()
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.27), "ncols": 2}
        axes.legend(handles=handles, columnspacing=0.8, handlelength=2.2, **below)
        axes.set_xlabel("experts n")
    left.set_ylim(0, min(HIGHEST, left.get_ylim()[1]))
    left.set_ylabel("FLOPs relative to the FFN")
    left.set_title(f"router width h = {WIDTH}")
    right.set_title(f"executed share k/n = {SHARE:g}")
    sizes = f"d_model = {d_model:,}, d_ff = {d_ff:,}"
    figure.suptitle(f"Cost of a dynamic-k layer, {sizes}", fontsize=8)
    return figure


def _by_share() -> list[tuple[str, int, float]]:
    return [(f"k/n = {share:g}", WIDTH, share) for share in SHARES]


def _by_width() -> list[tuple[str, int, float]]:
    return [(f"h = {width}", width, SHARE) for width in WIDTHS]


def _line(
    axes: Axes,
    d_model: int,
    d_ff: int,
    experts: list[int],
    width: int,
    share: float,
    label: str,
    look: Look,
) -> Line2D:
    # The best expert always runs, so a share below 1/n does not exist.
    possible = [n for n in experts if share * n >= 1]
    ratios = [layer_ratio(d_model, d_ff, n, width, share * n) for n in possible]
    signs = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "markersize": 2.5}
    return axes.plot(possible, ratios, label=label, **signs)[0]

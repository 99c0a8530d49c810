"""What all pictures share: colours, fonts, axes and files.

Colours are those of Okabe and Ito (and of Tol's muted scheme beyond seven),
which readers with any colour vision tell apart; pools also differ in line style
and marker.
"""

import io
import os
import pathlib
from typing import Union

import numpy as np
from matplotlib import axis as mpl_axis
from matplotlib import colors
from matplotlib import figure
from matplotlib import ticker

from tff_codist import files

_OKABE_ITO = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#000000',
)
_TOL_MUTED = (
  '#332288',
  '#cc6677',
  '#117733',
  '#88ccee',
  '#882255',
  '#ddcc77',
  '#44aa99',
  '#aa4499',
  '#999933',
)
_LINE_STYLES = ('-', '--', ':', '-.', (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ('o', 's', '^', 'D', 'v')
GREY = '#8c8c8c'
# For matplotlib's rc_context.
RC = {
  'font.size': 10,
  'axes.titlesize': 11,
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.7,
  'axes.axisbelow': True,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'lines.linewidth': 1.6,
  'lines.markersize': 4.5,
}
_DPI = 120
# Share of white in the palest colour, which must stay visible on white.
_PALEST = 0.85
# More points than this on a line and markers would hide it.
MARKED_POINTS = 25

# 40%, 2.5%: no more digits than the tick needs.
PERCENT = ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g}%')
NUMBER = ticker.FuncFormatter(lambda value, _: f'{value:,.6g}')

OutDir = Union[str, os.PathLike]


def colour(rank: int, count: int, paleness: float = 0.0) -> str:
  """Returns the colour of one of `count` things that a picture tells apart.

  Args:
    rank: Which of them.
    count: How many there are.
    paleness: For variants of one thing, 0 for the full colour, below 1.
  """
  palette = _OKABE_ITO if count <= len(_OKABE_ITO) else _TOL_MUTED
  full = np.array(colors.to_rgb(palette[rank % len(palette)]))
  return colors.to_hex(full + _PALEST * paleness * (1 - full))


def line(pool_index: int) -> dict[str, object]:
  """Returns line style and marker of a pool by its place among the pools."""
  return {
    'linestyle': _LINE_STYLES[pool_index % len(_LINE_STYLES)],
    'marker': _MARKERS[pool_index % len(_MARKERS)],
  }


def log_ticks(axis: mpl_axis.Axis) -> None:
  """Labels a log axis with plain numbers, at least a few of them."""
  low, high = axis.get_view_interval()
  # Below three decades, powers of ten alone leave too few labels.
  subs = (1, 2, 5) if high < 1000 * low else (1,)
  axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(NUMBER)


def save(picture: figure.Figure, out_dir: OutDir, name: str) -> pathlib.Path:
  """Writes a picture as a PNG file and returns its path.

  Raises:
    StorageError: If the file cannot be written.
  """
  data = io.BytesIO()
  picture.savefig(data, format='png', dpi=_DPI)
  path = pathlib.Path(out_dir) / name
  files.write(path, data.getvalue())
  return path

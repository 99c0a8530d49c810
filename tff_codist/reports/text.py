"""Text for a terminal of 80 columns."""

from collections.abc import Sequence

WIDTH = 80


def shorten(text: str, width: int) -> str:
  """Returns a text of at most `width` characters, its end left out."""
  return text if len(text) <= width else text[: width - 3] + '...'


def columns(labels: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
  """Returns lines of columns beside their labels, in blocks of 80 columns.

  Args:
    labels: A label for each line.
    cells: For each column, its cell in each line.

  Returns:
    The lines; a blank one before each further block.
  """
  label_width = max(map(len, labels))
  blocks: list[list[list[str]]] = [[]]
  used = label_width
  for column in cells:
    width = max(map(len, column)) + 2
    if blocks[-1] and used + width > WIDTH:
      blocks.append([])
      used = label_width
    used += width
    blocks[-1].append([cell.rjust(width) for cell in column])
  lines: list[str] = []
  for block in blocks:
    lines += [''] if lines else []
    for label, *row in zip(labels, *block):
      lines.append((label.ljust(label_width) + ''.join(row)).rstrip())
  return lines

"""Reproducing a table of a paper: its runs, its statistics, its report."""

from tff_codist.reproduction.table import SCALES
from tff_codist.reproduction.table import Cell
from tff_codist.reproduction.table import Row
from tff_codist.reproduction.table import Table
from tff_codist.reproduction.table import cells
from tff_codist.reproduction.table import tables

__all__ = ['SCALES', 'Cell', 'Row', 'Table', 'cells', 'tables']

"""Tables and plots of finished and running experiments.

Reads run folders, or what goes into them, and nothing else. TensorFlow is never
imported: a table takes a second, also beside a training that has taken the
machine.
"""

from tff_codist.reports.heterogeneity import membership_table
from tff_codist.reports.plots import plot_comparison
from tff_codist.reports.plots import plot_run
from tff_codist.reports.pool_plots import plot_membership
from tff_codist.reports.runs import Run
from tff_codist.reports.runs import load_run
from tff_codist.reports.tables import comparison_csv
from tff_codist.reports.tables import comparison_table
from tff_codist.reports.tables import privacy_table
from tff_codist.reports.tables import summary_table

__all__ = [
  'Run',
  'comparison_csv',
  'comparison_table',
  'load_run',
  'membership_table',
  'plot_comparison',
  'plot_membership',
  'plot_run',
  'privacy_table',
  'summary_table',
]

"""The methods that CoDist is compared with; importing it registers them."""

from baselines import ds_fl
from baselines import f_aug
from baselines import fd
from baselines import fed_aux
from baselines import fed_df
from baselines import fed_md

__all__ = ('ds_fl', 'f_aug', 'fd', 'fed_aux', 'fed_df', 'fed_md')

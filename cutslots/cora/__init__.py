"""The matching experiment on the Cora citation graph: instances, learners, protocol, table (the paper's section 6.2).

`prepare` and `load` are the instances on disk; `sweeps/cora.py` runs the experiment.
"""

from cutslots.cora.instances import Instances as Instances
from cutslots.cora.instances import Options as Options
from cutslots.cora.instances import load as load
from cutslots.cora.instances import prepare as prepare

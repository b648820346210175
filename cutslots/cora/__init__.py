"""The matching experiment on the Cora citation graph (section 6.2 of the paper).

`prepare` writes the instances, `load` reads them, `sweeps/cora.py` runs the experiment.
"""

from cutslots.cora.instances import Instances as Instances
from cutslots.cora.instances import Options as Options
from cutslots.cora.instances import load as load
from cutslots.cora.instances import prepare as prepare

"""Training, evaluation and checkpoints of any model in `cutslots.models`."""

from cutslots.errors import NonFiniteLossError as NonFiniteLossError
from cutslots.train.callbacks import Callback as Callback
from cutslots.train.config import RunConfig as RunConfig
from cutslots.train.config import preset as preset
from cutslots.train.evaluate import evaluate as evaluate
from cutslots.train.export import load_model as load_model
from cutslots.train.export import predict as predict
from cutslots.train.fit import Result as Result
from cutslots.train.fit import fit as fit
from cutslots.train.published import load_published as load_published
from cutslots.train.ranks import Ranks as Ranks

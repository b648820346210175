"""Scores of segmentations and reconstructions: functions of a batch, one number per image."""

from cutslots.metrics.scores import ari as ari
from cutslots.metrics.scores import ari_fg as ari_fg
from cutslots.metrics.scores import contingency as contingency
from cutslots.metrics.scores import miou as miou
from cutslots.metrics.scores import miou_fg as miou_fg
from cutslots.metrics.scores import mse as mse
from cutslots.metrics.scores import object_iou as object_iou
from cutslots.metrics.scores import segmentation as segmentation
from cutslots.metrics.tiles import tiles as tiles

"""Scores of segmentations and reconstructions: functions of a batch, one number per image."""

from cutslots.metrics.clustering import ari as ari
from cutslots.metrics.clustering import ari_fg as ari_fg
from cutslots.metrics.clustering import contingency as contingency
from cutslots.metrics.iou import miou as miou
from cutslots.metrics.iou import object_iou as object_iou
from cutslots.metrics.scores import mse as mse
from cutslots.metrics.scores import segmentation as segmentation
from cutslots.metrics.tiles import tiles as tiles

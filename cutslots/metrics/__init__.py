"""Scores of segmentations and reconstructions: plain functions of a batch, one number an image."""

from cutslots.metrics.clustering import ari as ari
from cutslots.metrics.clustering import ari_fg as ari_fg
from cutslots.metrics.clustering import contingency as contingency
from cutslots.metrics.iou import miou as miou
from cutslots.metrics.objects import object_iou as object_iou
from cutslots.metrics.reconstruction import mse as mse
from cutslots.metrics.segmentation import segmentation as segmentation

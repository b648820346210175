"""Regularised equality-constrained quadratic programs for cuts and matchings, without images."""

from cutslots.qp.equality import EqualityQP as EqualityQP
from cutslots.qp.graph import EdgeList as EdgeList
from cutslots.qp.graph import Graph as Graph
from cutslots.qp.grid import Grid as Grid
from cutslots.qp.matching import Matching as Matching
from cutslots.qp.matching import MatchingSolution as MatchingSolution
from cutslots.qp.min_cut import CutSolution as CutSolution
from cutslots.qp.min_cut import MinCut as MinCut
from cutslots.qp.program import Gamma as Gamma
from cutslots.qp.program import min_cut_program as min_cut_program

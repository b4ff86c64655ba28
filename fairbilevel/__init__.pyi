"""What ``fairbilevel/__init__.py`` offers, room by room; each is opened when first asked for."""

from . import (
    analysis,
    certificates,
    comparison,
    data,
    deploy,
    devices,
    fairness,
    hypergrad,
    masks,
    methods,
    models,
    pretrained,
    pruners,
    records,
    report,
    run,
    solver,
    sweeps,
    train,
)
from .certificates import Certificate
from .deploy import Artifact, Profile, compact, read_artifact
from .devices import Placement
from .hypergrad import hypergradient
from .methods import solve
from .problem import FairPruningProblem, Network, Reference
from .records import TensorBoard
from .run import Run, analyze, certify, export, load_run, profile, save_run
from .solver import BilevelSolver
from .train import DivergenceError, Method, Solution

__version__: str

__all__ = [
    "Artifact",
    "BilevelSolver",
    "Certificate",
    "DivergenceError",
    "FairPruningProblem",
    "Method",
    "Network",
    "Placement",
    "Profile",
    "Reference",
    "Run",
    "Solution",
    "TensorBoard",
    "analysis",
    "analyze",
    "certificates",
    "certify",
    "compact",
    "comparison",
    "data",
    "deploy",
    "devices",
    "export",
    "fairness",
    "hypergrad",
    "hypergradient",
    "load_run",
    "masks",
    "methods",
    "models",
    "pretrained",
    "profile",
    "pruners",
    "read_artifact",
    "records",
    "report",
    "run",
    "save_run",
    "solve",
    "solver",
    "sweeps",
    "train",
]

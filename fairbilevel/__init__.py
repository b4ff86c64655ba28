"""Bilevel fair pruning in JAX: masks, weights and fairness constraints solved together.

The ten-line use::

    import fairbilevel as fb

    problem = fb.FairPruningProblem(
        my_model, x, y, group, constraints=[fb.fairness.ExcessAccuracyGap(0.02)]
    )
    solution = fb.solve(problem, sparsity=0.9)
    print(solution.evaluate("test"))
    fb.save_run(solution, "runs/mine")
"""

from fairbilevel import (
    analysis,
    certificates,
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
    train,
)
from fairbilevel.certificates import Certificate, certify
from fairbilevel.deploy import Artifact, Profile, compact, read_artifact
from fairbilevel.devices import Placement
from fairbilevel.hypergrad import hypergradient
from fairbilevel.methods import solve
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import TensorBoard
from fairbilevel.run import Run, analyze, export, load_run, profile, save_run
from fairbilevel.solver import BilevelSolver
from fairbilevel.train import DivergenceError, Method, Solution

__version__ = "0.2.0"

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
    "save_run",
    "solve",
    "train",
]

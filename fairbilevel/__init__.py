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

import lazy_loader

__version__ = "0.2.0"

# Rooms are opened when they are first asked for: importing the library costs what is used of it.
# Their names stand in the stub alone.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

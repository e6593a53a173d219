"""The operations of a traced function, those of loops and branches included."""

from collections.abc import Iterator

from jax.extend import core


def equations(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields every equation, but for those inside of kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for inner in core.jaxprs_in_params(equation.params):
                yield from equations(inner)

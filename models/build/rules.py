"""Gradient rules: one small function per operator, found through one table.

The rules of arithmetic and of products stand here; importing this module enters all of them.
"""

from models.build import (  # noqa: F401 - importing them enters their rules
    rules_convolution,
    rules_elementwise,
    rules_pool,
    rules_reduction,
    rules_shape,
)
from models.build.site import RULES, Gradients, Site, rule, summed_to

__all__ = ["RULES"]


@rule("Add", "Sum")
def _add(site: Site) -> Gradients:
    return tuple(site.summed_to(site.dy, value) for value in site.inputs)


@rule("Sub")
def _sub(site: Site) -> Gradients:
    a, b = site.inputs
    return site.summed_to(site.dy, a), site.graph.op("Neg", site.summed_to(site.dy, b))


@rule("Mul")
def _mul(site: Site) -> Gradients:
    a, b = site.inputs
    da, db = site.graph.op("Mul", site.dy, b), site.graph.op("Mul", site.dy, a)
    return site.summed_to(da, a), site.summed_to(db, b)


@rule("Div")
def _div(site: Site) -> Gradients:
    a, b = site.inputs
    da = site.graph.op("Div", site.dy, b)
    db = site.summed_to(site.graph.op("Mul", da, site.y), b)
    return site.summed_to(da, a), site.graph.op("Neg", db)


@rule("Neg")
def _neg(site: Site) -> Gradients:
    return (site.graph.op("Neg", site.dy),)


@rule("Gemm")
def _gemm(site: Site) -> Gradients:
    graph, dy = site.graph, site.dy
    a, b = site.inputs[:2]
    flip_a, flip_b = int(site.attribute("transA", 0)), int(site.attribute("transB", 0))
    scale = {"alpha": float(site.attribute("alpha", 1.0))}
    da = (
        graph.op("Gemm", b, dy, transA=flip_b, transB=1, **scale)
        if flip_a
        else graph.op("Gemm", dy, b, transB=1 - flip_b, **scale)
    )
    db = (
        graph.op("Gemm", dy, a, transA=1, transB=flip_a, **scale)
        if flip_b
        else graph.op("Gemm", a, dy, transA=1 - flip_a, **scale)
    )
    if len(site.inputs) < 3 or not site.inputs[2]:
        return da, db
    dc, beta = site.summed_to(dy, site.inputs[2]), float(site.attribute("beta", 1.0))
    return da, db, dc if beta == 1 else graph.op("Mul", dc, graph.constant(beta))


@rule("MatMul")
def _matmul(site: Site) -> Gradients:
    graph, dy = site.graph, site.dy
    a, b = site.inputs
    shape_a, shape_b, shape_y = site.shape(a), site.shape(b), site.shape(site.y)
    if len(shape_a) < 2 or len(shape_b) < 2:
        raise site.refuse("a product with a vector", "give the vector a second dimension of size 1")
    da = graph.op("MatMul", dy, _swapped(site, b))
    da = summed_to(graph, da, (*shape_y[:-2], *shape_a[-2:]), shape_a)
    if len(shape_b) == 2 and len(shape_a) > 2:
        # One product over all leading dimensions: cheaper than a batch of products and a sum.
        rows = graph.op("Reshape", a, graph.integers(-1, site.size(a, -1)))
        columns = graph.op("Reshape", dy, graph.integers(-1, site.size(site.y, -1)))
        return da, graph.op("Gemm", rows, columns, transA=1)
    db = graph.op("MatMul", _swapped(site, a), dy)
    return da, summed_to(graph, db, (*shape_y[:-2], *shape_b[-2:]), shape_b)


def _swapped(site: Site, value: str) -> str:
    rank = len(site.shape(value))
    return site.graph.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])

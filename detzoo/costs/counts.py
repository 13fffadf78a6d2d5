"""The costs of programs: parameters, multiplications, and the FLOPs and memory that their compilers report.

parameter_count(params)            -> number of parameters
multiply_adds(function, ...)       -> multiplications, counted as papers do
compiled_cost(lowered.compile())   -> Cost on one device
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core
import numpy as np


class Cost(NamedTuple):
    """The cost of a compiled program on each device.

    flops: number of FLOPs; a multiply-add is two. As the compiler counts them, the body of a loop counts as often as it is known
        to run, else once. For the costs of a detector they are replaced by those of its `multiply_adds`, which do not depend on
        how a platform computes a convolution.
    bytes_accessed: bytes of memory that all operations read and write.
    argument_bytes, output_bytes, temporary_bytes: memory of each kind. An output that replaces a donated argument is in both.
    peak_bytes: memory of arguments, outputs and temporaries together, with donated arguments counted once.
    """

    flops: float
    bytes_accessed: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    peak_bytes: int


def parameter_count(params: Any) -> int:
    """Counts the numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def compiled_cost(compiled: Any) -> Cost:
    """Reads the cost of a compiled program (`jax.jit(f).lower(...).compile()`) on one of its devices."""
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Cost(
        flops=analysis['flops'],
        bytes_accessed=analysis['bytes accessed'],
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=total - memory.alias_size_in_bytes,
    )


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-adds of a function's convolutions and matrix products.

    It counts as papers and model zoos do: padding is included, all other operations are not, and the body of a loop counts as
    often as the loop is known to run. Of the formulations for different platforms (`jax.lax.platform_dependent`) it counts the
    default, and of other branches the one with most multiply-adds.

    Args:
        function: a function that JAX can trace.
        arguments: arrays or shapes.
    """
    return _multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            kernel, dimensions = equation.invars[1].aval.shape, equation.params['dimension_numbers']
            taps = math.prod(kernel) // kernel[dimensions.rhs_spec[0]]  # for each output, with its group's channels
            # A deconvolution also multiplies zeros; papers do not count them.
            count += equation.outvars[0].aval.size * taps // math.prod(equation.params['lhs_dilation'])
        elif equation.primitive.name == 'dot_general':
            ((contracted, _), _) = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            count += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        times = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
        inner = [_multiply_adds(part) for part in jax.extend.core.jaxprs_in_params(equation.params)]
        if equation.primitive.name == 'cond':
            platforms = equation.params.get('branches_platforms') or ()  # of `platform_dependent`; None: the default
            inner = [inner[platforms.index(None)]] if None in platforms else [max(inner)]
        count += times * sum(inner)
    return count

"""The stages of a detector are named scopes of JAX, found here in the names of its operations."""

import re

STAGES = ('backbone', 'neck', 'rpn', 'roi', 'heads', 'post', 'loss')  # the named scopes of detectors
OTHER = 'other'  # operations in no stage: normalising images, the optimiser, copies


def stage_of(line: str) -> str:
    """Finds the stage in an operation's name, e.g. 'backbone' in op_name="jit(f)/transpose(jvp(backbone))/add"; or OTHER."""
    name = re.search(r'op_name="([^"]*)"', line)
    return (name and stage_in(name[1])) or OTHER


def stage_in(scopes: str) -> str | None:
    """Finds the stage in a path of named scopes, e.g. 'backbone' in 'jit(f)/vmap(backbone)/add'."""
    stage = re.search(rf'(?<![\w.-])({"|".join(STAGES)})(?![\w.-])', scopes)
    return stage and stage[1]

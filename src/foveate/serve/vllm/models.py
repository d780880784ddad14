"""The classes that vLLM finds in the registry: each of its own, behind the plug-in's.

vLLM names them as strings and imports this module only when it needs one, so they are made then.
"""

from __future__ import annotations

from typing import Any

from foveate.serve.vllm.families import FAMILIES, Family

_made: dict[str, type] = {}


def __getattr__(name: str) -> Any:
    if name not in FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _made:
        _made[name] = planned_class(FAMILIES[name])
    return _made[name]


def planned_class(family: Family) -> type:
    """vLLM's model class of a family with the plug-in's before it, and its processor likewise."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from foveate.serve.vllm.model import PlannedModel
    from foveate.serve.vllm.mrope import PlannedMRopeModel
    from foveate.serve.vllm.processor import PlannedProcessor
    from foveate.serve.vllm.startup import stock_class

    stock = stock_class(family.architecture)
    factories: Any = stock._processor_factory

    def processor(*args: Any, **kwargs: Any) -> Any:
        # Some families choose their class in a function, so vLLM makes the object and ours takes over
        # what it holds.
        made = factories.processor(*args, **kwargs)
        own = type(made)
        members = {"family": family, "__module__": __name__}
        planned: Any = type(f"Planned{own.__name__}", (PlannedProcessor, own), members)
        out = planned.__new__(planned)
        vars(out).update(vars(made))
        return out

    base = PlannedMRopeModel if family.mrope else PlannedModel
    members = {"family": family, "__module__": __name__, "__qualname__": family.architecture}
    cls = type(family.architecture, (base, stock), members)
    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=factories.info, dummy_inputs=factories.dummy_inputs
    )
    made: type = register(cls)
    return made

"""Requests about features that are not finite end with an error instead of an answer made of NaN.

The model cannot end one request: what it raises ends all that share the step. So it hands NaN on, vLLM
counts NaN in the logits of each request, and the scheduler ends those that have any. Their keys and
values leave the prefix cache. On a CPU their blocks are also filled with zeros before anyone takes them
over: vLLM's attention there multiplies what lies behind a request's last token by zero, which leaves
NaN as it is.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

_log = logging.getLogger("foveate")
_MARK = "_foveate_void"
_DIRTY = "_foveate_dirty_blocks"  # in the scheduler's instance dict, for its next step
COUNTING = "VLLM_COMPUTE_NANS_IN_LOGITS"


def count_nans() -> None:
    """Have vLLM count NaN in logits, unless the variable says otherwise. Before the engine starts, for
    its processes take the environment over.
    """
    os.environ.setdefault(COUNTING, "1")


def let_scheduler_end_void() -> None:
    """Put the checks around vLLM's scheduler; may be called again."""
    from vllm.v1.core.sched.scheduler import Scheduler

    if not hasattr(Scheduler.update_from_output, _MARK):
        Scheduler.update_from_output = _ending(Scheduler.update_from_output)
        Scheduler.schedule = _cleaning(Scheduler.schedule)


def _ending(original: Any) -> Any:
    @functools.wraps(original)
    def update_from_output(self: Any, scheduled: Any, made: Any, *args: Any, **kwargs: Any) -> Any:
        void = void_requests(self, made.num_nans_in_logits or {})
        if not void:
            return original(self, scheduled, made, *args, **kwargs)
        held = {name: self.kv_cache_manager.get_block_ids(name) for name in void}
        outputs = original(self, scheduled, made, *args, **kwargs)
        ended = end(self, outputs, void)
        forget(self, {b for name in ended for group in held[name] for b in group})
        return outputs

    setattr(update_from_output, _MARK, True)
    return update_from_output


def _cleaning(original: Any) -> Any:
    @functools.wraps(original)
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        dirty = vars(self).pop(_DIRTY, None)
        if dirty:
            out.new_block_ids_to_zero = [*(out.new_block_ids_to_zero or ()), *sorted(dirty)]
        return out

    return schedule


def void_requests(scheduler: Any, counts: dict[str, int]) -> set[str]:
    """Requests with pictures or videos whose logits hold NaN. Without a plan, none: then vLLM's own
    behaviour stays.
    """
    from foveate.serve.vllm.startup import serving_of

    found = {name: scheduler.requests.get(name) for name, n in counts.items() if n}
    if not found or serving_of(scheduler.vllm_config.model_config) is None:
        return set()
    return {name for name, request in found.items() if request and request.mm_features}


def end(scheduler: Any, outputs: Any, void: set[str]) -> set[str]:
    """Replace what this step says of the requests in `void` by an error, and let go of them. Those whose
    prompt is not read to its end have said nothing yet; their last chunk ends them.
    """
    from vllm.v1.engine import FinishReason
    from vllm.v1.request import RequestStatus

    ended = set()
    for group in outputs.values():
        for one in group.outputs:
            if one.request_id in void:
                one.new_token_ids, one.new_logprobs = [], None
                one.finish_reason, one.stop_reason = FinishReason.ERROR, None
                ended.add(one.request_id)
    if ended:
        scheduler.finish_requests(ended, RequestStatus.FINISHED_ERROR)
        _log.error("ended with an error, for their logits are NaN: %s", ", ".join(sorted(ended)))
    return ended


def forget(scheduler: Any, blocks: set[int]) -> None:
    """Take blocks out of the prefix cache, and have those that nobody holds cleaned."""
    from vllm.platforms import current_platform

    scheduler.kv_cache_manager.evict_blocks(blocks)
    if current_platform.is_cpu():
        known = scheduler.kv_cache_manager.block_pool.blocks
        free = {b for b in blocks if known[b].ref_cnt == 0 and not known[b].is_null}
        vars(scheduler).setdefault(_DIRTY, set()).update(free)

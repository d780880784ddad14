"""Planted faults of the memory stage: the store, attention over it, and cache policies."""

from __future__ import annotations

from tests.bite.faults import Fault

STORE = ("tests/engine/test_memory.py", "-k", "plain_loop or frees or ragged")
CONTRACT = ("tests/memory/test_contract.py",)
REFERENCE = ("tests/memory/test_reference.py",)
MODELS = ("tests/memory/test_memory_engine.py",)

MEMORY = (
    Fault(
        "uneven heads answer for each other",
        "engine/kv_attention.py",
        "        out[:, :, wanted] = part",
        "        out[:, :, sorted(wanted, reverse=True)] = part",
        STORE,
    ),
    Fault(
        "a group's query heads are its KV heads",
        "engine/kv_attention.py",
        "wanted = [h * each + j for h in group.heads for j in range(each)]",
        "wanted = [h + j * store.heads for h in group.heads for j in range(each)]",
        STORE,
    ),
    Fault(
        "origins do not follow their entries",
        "engine/kv.py",
        "        return k[anchor], v[anchor], at[anchor]",
        "        return k[anchor], v[anchor], at[: len(anchor)]",
        (*MODELS, "-k", "taking_back"),
    ),
    Fault(
        "one head's entries are taken back for all",
        "engine/kv.py",
        "if all(bool((c == c[0]).all()) for c in counts):",
        "if counts:",
        (*MODELS, "-k", "taking_back"),
    ),
    Fault(
        "the window comes on top of the budget",
        "memory/snapkv.py",
        "min(prefix, count - (n - prefix))",
        "min(prefix, count)",
        (*CONTRACT, "-k", "budget and snapkv"),
    ),
    Fault(
        "a share shrinks from step to step",
        "engine/kv_policy.py",
        "if longest <= mean or not (whole or self.policy.overflows(longest, mean)):",
        "if longest <= mean:",
        (*MODELS, "-k", "capacity_while"),
    ),
    Fault(
        "merged keys forget the kept one",
        "memory/look_m.py",
        "size = np.bincount(target, minlength=k) + 1.0",
        "size = np.maximum(np.bincount(target, minlength=k), 1.0)",
        (*REFERENCE, "-k", "look_m"),
    ),
    Fault(
        "text leaves before pictures",
        "memory/look_m.py",
        "for part in (early & text, early & ~text):",
        "for part in (early & ~text, early & text):",
        (*REFERENCE, "-k", "look_m"),
    ),
)

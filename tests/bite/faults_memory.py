"""Planted faults of the memory stage: the store, attention over it, and cache policies."""

from __future__ import annotations

from tests.bite.faults import Fault

STORE = ("tests/engine/test_memory.py", "-k", "plain_loop or frees or ragged")
CONTRACT = ("tests/memory/test_contract.py",)
REFERENCE = ("tests/memory/test_reference.py",)
MODELS = ("tests/memory/test_memory_engine.py",)
PAGES = ("tests/engine/test_pages.py",)
HYBRID = ("tests/memory/test_hybridkv.py",)
FLEX = ("tests/engine/test_kv_flex.py", "-k", "plain_loop")

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
        "if bool((counts == counts[0]).all()):",
        "if counts.numel():",
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
    Fault(
        "a new page takes the place of one that is wanted",
        "engine/kv_pages.py",
        "free = np.flatnonzero(~np.isin(have, want))",
        "free = np.flatnonzero(np.isin(have, have))",
        (*PAGES, "-k", "pages_they_want or copied"),
    ),
    Fault(
        "origins do not follow retrieved pages",
        "engine/kv_pages.py",
        "        self.origin[there] = self.host.origin[page].to(device)\n",
        "",
        (*PAGES, "-k", "copied"),
    ),
    Fault(
        "all queries of a chunk see the pages of the first",
        "engine/kv_attention.py",
        "group.retrieve(q[0, :, i].unflatten(0, (len(group.heads), -1)))",
        "group.retrieve(q[0, :, 0].unflatten(0, (len(group.heads), -1)))",
        (*PAGES, "-k", "pages_they_want"),
    ),
    Fault(
        "copies of a sequence share their pages on the device",
        "engine/kv_pages.py",
        "            self.held.copy(),",
        "            self.held,",
        (*PAGES, "-k", "copied"),
    ),
    Fault(
        "mean keys are not counted",
        "engine/kv_report.py",
        " * store.bytes_per_entry + store.digest_bytes",
        " * store.bytes_per_entry",
        (*PAGES, "-k", "resident"),
    ),
    Fault(
        "a head is static if a tenth of the mass is spread",
        "memory/hybridkv.py",
        "order = np.sort(np.asarray(weights, np.float64))[::-1]",
        "order = np.sort(np.asarray(weights, np.float64))",
        (*HYBRID, "-k", "reach or budgets"),
    ),
    Fault(
        "pages are ranked by one query head",
        "memory/hybridkv.py",
        "torch.softmax(logits, -1).mean(1)",
        "torch.softmax(logits, -1)[:, 0]",
        (*HYBRID, "-k", "retrieval"),
    ),
    Fault(
        "static heads prune text first",
        "memory/hybridkv.py",
        "for part in (early & text, early & ~text):",
        "for part in (early & ~text, early & text):",
        (*HYBRID, "-k", "budgets"),
    ),
    Fault(
        "flex attention sees an entry of the future",
        "engine/kv_flex.py",
        "causal: Tensor = key <= query + (n - s)",
        "causal: Tensor = key <= query + (n - s + 1)",
        FLEX,
    ),
    Fault(
        "flex attention takes all heads' windows from the first head",
        "engine/kv_flex.py",
        "row = head // each if own else torch.zeros_like(head)",
        "row = torch.zeros_like(head)",
        FLEX,
    ),
)

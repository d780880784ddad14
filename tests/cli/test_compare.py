"""`foveate compare` on a tiny model: the table, the JSON object, the page, refusals and bad input."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from foveate.cli.compare_run import CONTROLS, FULL
from tests.cli.cli_cases import call, last_json, noise

METHODS = ("divprune", "uniform", "fastervlm")
REFUSED = "tiles"  # the tiny model sees a picture as a whole
ASK = ("--question", "what is in the picture", "--max-new-tokens", 3)


class Page(HTMLParser):
    """Sources, addresses and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "srcset", "action", "data", "poster")
        self.addresses += [v or "" for k, v in attrs if k in names]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, (width, height) in enumerate([(60, 40), (40, 40), (30, 70)]):
        noise(folder / f"p{i}.png", width, height, i)
    return folder


@pytest.fixture(scope="module")
def told(llava: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The JSON object and the page of three methods on three pictures."""
    out = tmp_path_factory.mktemp("out") / "page.html"
    names = ",".join([*METHODS, REFUSED])
    done = call(
        "compare", pictures, *ASK, "--methods", names, "--model", llava, "--out", out, "--json"
    )
    assert done.exit_code == 0, done.stderr
    return last_json(done.stdout), out.read_text(encoding="utf-8")


def test_json_says_what_each_method_kept_and_answered(told: Any) -> None:
    data, _ = told
    assert [m["name"] for m in data["methods"]] == [FULL, *METHODS, REFUSED, *CONTROLS]
    assert data["keep"] == "1/4" and len(data["results"]) == 3
    by_name = {m["name"]: m for m in data["methods"]}
    for name in (*METHODS, *CONTROLS):
        m = by_name[name]
        assert m["error"] is None and m["answered"] == 3 and m["plan"] == f"{name}:keep=1/4"
        assert (m["tokens_in"], m["tokens_kept"]) == (16, 4)
        assert {"encode", "select", "prefill", "decode"} <= set(m["ms"]) and m["ttft_ms"] > 0
        cells = [r["answers"][name] for r in data["results"]]
        full = [r["answers"][FULL] for r in data["results"]]
        same = [c["answer"] == f["answer"] for c, f in zip(cells, full, strict=True)]
        assert [c["same"] for c in cells] == same
        agreement = m["agreement"]
        assert (agreement["hits"], agreement["of"]) == (sum(same), 3)
        assert 0 <= agreement["low"] <= agreement["share"] <= agreement["high"] <= 1
        assert m["accuracy"] is None and all(c["right"] is None for c in cells)
    assert by_name[FULL]["tokens_kept"] == 16 and by_name[FULL]["agreement"]["share"] == 1
    assert [m["control"] for m in data["methods"]] == [False] * 5 + [True] * 3


def test_a_comparison_gives_the_tokens_of_a_single_run(
    told: Any, llava: Path, pictures: Path
) -> None:
    data, _ = told
    words = ("run", pictures / "p2.png", *ASK, "--model", llava, "--json", "--plan")
    alone = last_json(call(*words, "divprune:keep=1/4").stdout)["results"][0]["plan"]
    assert data["results"][2]["answers"]["divprune"]["token_ids"] == alone["token_ids"]


def test_a_method_the_model_cannot_serve_is_listed_with_its_reason(told: Any) -> None:
    data, page = told
    (row,) = [m for m in data["methods"] if m["name"] == REFUSED]
    assert row["error"]["type"] == "UnsupportedError" and row["answered"] == 0
    assert row["tokens_kept"] is None and row["ms"] == {} and row["agreement"] is None
    assert "not available on llava" in row["error"]["message"]
    assert "not on this model: " + row["error"]["message"] in "".join(Page(page).words)


def test_the_page_holds_everything_and_fetches_nothing(told: Any) -> None:
    _, text = told
    page = Page(text)
    # Three pictures, each as it is and with what the methods and controls kept.
    assert page.tags.count("img") == 3 * (1 + len(METHODS) + len(CONTROLS))
    assert page.addresses and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert {"script", "link", "iframe", "object", "video", "base"}.isdisjoint(page.tags)
    assert re.search(r"https?:|url\(|@import", text) is None
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    words = " ".join(page.words)
    assert all(name in words for name in (FULL, *METHODS, *CONTROLS, "p0.png", "p2.png"))


def test_entries_take_turns_on_each_picture(
    llava: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foveate.engine.engine import Engine

    seen: list[tuple[str, str]] = []
    generate = Engine.generate

    def spy(self: Any, requests: Any, plan: Any = None, **options: Any) -> Any:
        if options["max_new_tokens"] > 1:
            seen.append((Path(requests[0].images[0]).name, str(plan)))
        return generate(self, requests, plan, **options)

    monkeypatch.setattr(Engine, "generate", spy)
    done = call("compare", pictures, *ASK, "--methods", "divprune", "--model", llava, "--out",
                tmp_path / "a.html")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert [name for name, _ in seen] == [f"p{i}.png" for i in range(3) for _ in range(5)]
    orders = [[plan for _, plan in seen[i : i + 5]] for i in (0, 5, 10)]
    assert orders[0][0] == "none" and len({tuple(o) for o in orders}) == 3
    assert all(sorted(o) == sorted(orders[0]) for o in orders)


def test_rendered_pictures_bring_questions_and_truths(llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ("compare", "--rendered", 3, "--methods", "divprune", "--model", llava, "--out", out)
    done = call(*words, "--max-new-tokens", 2, "--json", "--draw", 1)
    assert done.exit_code == 0, done.stderr
    data = last_json(done.stdout)
    assert all(r["truth"] and r["question"] for r in data["results"])
    assert len({r["question"] for r in data["results"]}) == 3
    for m in data["methods"]:
        if m["error"] is None:
            right = [r["answers"][m["name"]]["right"] for r in data["results"]]
            assert m["accuracy"]["hits"] == sum(right) and m["accuracy"]["of"] == 3
    assert Page(out.read_text(encoding="utf-8")).tags.count("img") == 5
    table = call(*words, "--max-new-tokens", 2, "--methods", "divprune,tiles")
    assert table.exit_code == 0 and "divprune" in table.stdout and f"wrote {out}" in table.stdout
    assert "tiles: not on this model" in table.stdout


def judged(family: str, answers: list[str | None]) -> Any:
    from foveate.cli.compare_run import Cell, Look, _judge
    from foveate.lab import samples

    drawn = samples(family)[0]
    row = [Cell(answer=answer) for answer in answers]
    _judge(row, Look("rendered", family, drawn.question, None, None, drawn))  # type: ignore[arg-type]
    return row


def test_rendered_questions_are_judged_by_the_lab_s_rule() -> None:
    from foveate.lab import samples

    truth = samples("shape")[0].answer
    row = judged("shape", [f" {truth}\n", truth, truth.upper(), f"a {truth}", None])
    assert [c.right for c in row] == [True, True, False, False, None]
    assert [c.same for c in row] == [True, False, False, False, None]


def test_a_box_near_enough_is_right() -> None:
    from foveate.lab import samples

    left, top, right, bottom = (int(samples("ground")[0].answer[i : i + 2]) for i in (0, 2, 4, 6))
    near = f"{left:02d}{top:02d}{right - 1:02d}{bottom:02d}"  # not the same text
    far = f"{(left + 14) % 26:02d}{(top + 14) % 26:02d}2828"
    row = judged("ground", [samples("ground")[0].answer, near, far, "left"])
    assert [c.right for c in row] == [True, True, False, False]


def test_a_bad_picture_is_reported_and_the_others_are_compared(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad<b>.png"
    bad.write_bytes(b"no picture")
    out = tmp_path / "page.html"
    done = call("compare", bad, pictures / "p0.png", *ASK, "--methods", "divprune", "--model", llava,
                "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 2
    assert done.stderr.startswith("error: bad<b>.png: ") and done.stderr.count("\n") == 1
    data = last_json(done.stdout)
    assert [m["answered"] for m in data["methods"]] == [1, 1, 1, 1, 1]
    (full, *_) = data["results"][0]["answers"].values()
    assert full["error"]["type"] == "MediaError" and full["answer"] is None
    text = out.read_text(encoding="utf-8")
    assert "bad&lt;b&gt;.png" in text and "<b>.png" not in text


def test_only_methods_that_the_model_cannot_serve_leave_with_5(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    done = call("compare", pictures / "p0.png", *ASK, "--methods", "downscale,tiles,evs", "--model", llava,
                "--out", tmp_path / "a.html", "--json")  # fmt: skip
    assert done.exit_code == 5
    rows = {m["name"]: m["error"] for m in last_json(done.stdout)["methods"]}
    assert rows["tiles"]["type"] == "UnsupportedError" and rows["random"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "divprun"), "did you mean divprune"),
        (("--methods", "divprune:keep=1/2"), "--plan"),
        (("--keep", "2"), "--keep"),
        (("--keep", "many"), "--keep"),
        (("--plan", "none"), "always stand beside"),
        (("--out", "page.png"), "must end in .html"),
        (("--rendered", "2", "--question", "what is it"), "leave out --question"),
    ],
)
def test_bad_words_are_refused_before_a_model_is_loaded(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "foveate.cli.compare.open_engine", lambda *_: pytest.fail("a model was loaded")
    )
    done = call("compare", *words)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_sources_need_a_question(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "foveate.cli.compare.open_engine", lambda *_: pytest.fail("a model was loaded")
    )
    done = call("compare", pictures, "--json")
    assert done.exit_code == 2 and last_json(done.stdout)["error"]["type"] == "InputError"
    assert "--question" in done.stderr

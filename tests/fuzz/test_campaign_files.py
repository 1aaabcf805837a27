"""Mutants of campaign files and of ``--set``: a campaign, or one clear line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.campaign import load_campaign
from autotune.local.resolve import resolve
from autotune.yaml_reader import read_yaml
from tests.fuzz.mutants import TOKENS, WRITTEN, Jury, cut_up, cut_up_bytes, reshape, swap_tokens

MUTANTS = 100
"""Of each kind and seed."""

SHORT = """\
name: demo
objective: math:fsum
metric: {name: loss, mode: min}
space:
  x: {float: [-2, 2]}
budget: {max_trials: 12}
"""

LONG = """\
# a search over two models
name: two-models
objective: package.module:train
description: |
  Two lines
  of text.
metric: {name: marginal_ll, mode: max}
search: {algorithm: tpe, seed: 3, startup: 5}
schedule: {algorithm: none}
space:
  lr: {log_float: [1e-4, 1e-2]}
  layers: {int: [1, 5], step: 2}
  units: {log_int: [16, 1024]}
  dropout: {float: [0, 0.9], step: 0.1}
  noise: {normal: [0, 1]}
  loss: {choice: [zinb, nb], weights: [2, 1]}
  model:
    choice:
      - {kind: linear}
      - {kind: mlp, depth: {int: [1, 4]}}
  note: {const: {a: [1, null, true]}}
fixed: {epochs: 10, genes: [a, b]}
budget: {max_trials: 200}
lease: {duration_s: 30, renewal_s: 10}
failures: {abort_after: 10}
"""

TEXTS = {"short": SHORT, "long": LONG, "json": json.dumps(read_yaml(LONG, "long"), indent=1)}


def run(file: Path, overrides: tuple[str, ...] = ()) -> None:
    """Do what `launch` does with a file before it writes anything."""
    campaign = load_campaign(file, overrides)
    if campaign.is_callable and campaign.data is None:
        resolve(campaign)


@pytest.mark.parametrize("name", TEXTS)
def test_the_originals_are_campaigns(tmp_path: Path, name: str) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(TEXTS[name])
    run(file)


@pytest.mark.parametrize("name", TEXTS)
def test_changed_characters(tmp_path: Path, name: str) -> None:
    chance, file = random.Random(f"characters {name}"), tmp_path / "campaign.yaml"
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = cut_up(TEXTS[name], chance)
            file.write_bytes(mutant.encode("utf-8", "surrogatepass"))
            jury.judge(lambda: run(file), mutant)
        assert jury.refused > MUTANTS / 4


def test_changed_bytes(tmp_path: Path) -> None:
    chance, file = random.Random("bytes"), tmp_path / "campaign.yaml"
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = cut_up_bytes(LONG.encode(), chance)
            file.write_bytes(mutant)
            jury.judge(lambda: run(file), mutant)


@pytest.mark.parametrize("name", TEXTS)
def test_changed_words(tmp_path: Path, name: str) -> None:
    chance, file = random.Random(f"words {name}"), tmp_path / "campaign.yaml"
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = swap_tokens(TEXTS[name], chance)
            file.write_text(mutant)
            jury.judge(lambda: run(file), mutant)


@pytest.mark.parametrize("name", ["short", "long"])
@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_changed_structure(tmp_path: Path, name: str, kind: str) -> None:
    chance, file = random.Random(f"structure {name} {kind}"), tmp_path / "campaign.yaml"
    original = read_yaml(TEXTS[name], "original")
    with Jury() as jury:
        for _ in range(MUTANTS):
            mutant = reshape(original, chance, WRITTEN)
            file.write_text(_written(mutant, kind))
            jury.judge(lambda: run(file), mutant)
        assert jury.refused > MUTANTS / 4


def _written(value: Any, kind: str) -> str:
    if kind == "yaml":
        return yaml.dump(value)
    try:
        return json.dumps(value, default=str)
    except TypeError:  # keys that JSON does not have
        return yaml.dump(value)


KEYS = (
    "budget.max_trials",
    "budget",
    "space.x",
    "space.x.float",
    "name",
    "fixed.a",
    "search.seed",
    "data.path",
    "lease",
    "metric.name",
    "failures.abort_after",
    "objective",
    "",
    ".",
    "a..b",
    "budget.",
    ".x",
    "space.x.float.0",
)


def test_changed_overrides(tmp_path: Path) -> None:
    chance, file = random.Random("overrides"), tmp_path / "campaign.yaml"
    file.write_text(SHORT)
    with Jury() as jury:
        for _ in range(2 * MUTANTS):
            value = chance.choice(
                [chance.choice(TOKENS), json.dumps(chance.choice(WRITTEN), default=str, skipkeys=True)]
            )
            override = f"{chance.choice(KEYS)}={value}"
            mutant = override if chance.random() < 0.5 else cut_up(override, chance)
            jury.judge(lambda mutant=mutant: run(file, (mutant,)), mutant)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "aliases that multiply": BOMB + SHORT,
    "aliases in fixed": SHORT + "fixed:\n" + "".join(f"  {line}\n" for line in BOMB.splitlines()),
    "an alias of itself": SHORT + "fixed: &a {b: *a}\n",
    "a list in itself": SHORT + "fixed: {c: &a [*a]}\n",
    "deep lists": SHORT + f"fixed: {{a: {'[' * 3_000}{']' * 3_000}}}\n",
    "deep mappings": SHORT + f"fixed: {'{a: ' * 3_000}1{'}' * 3_000}\n",
    "deep JSON": '{"name": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep space": SHORT.replace("{float: [-2, 2]}", "{choice: [" * 400 + "1" + "]}" * 400),
    "a huge number": SHORT.replace("12", "9" * 10_000),
    "a huge step": SHORT.replace("{float: [-2, 2]}", "{float: [0, 1.0e+300], step: 1.0e-300}"),
    "a huge choice": SHORT.replace("{float: [-2, 2]}", "{choice: [" + ", ".join(map(str, range(20_000))) + "]}"),
    "python objects": SHORT + "fixed: !!python/object/apply:os.system [echo hacked]\n",
    "merge keys": "base: &b {name: a}\n<<: *b\n" + SHORT,
    "merge of itself": SHORT + "fixed: &a {<<: *a}\n",
    "two documents": SHORT + "---\n" + SHORT,
    "binary": "\x00" * 1_000,
    "nothing": "",
    "only a comment": "# hello\n",
    "a list": "- a\n- b\n",
    "an odd name": SHORT.replace("demo", '"demo\\n"'),
    "a set": SHORT + "fixed: !!set {a, b}\n",
    "ordered": SHORT + "fixed: !!omap [a: 1]\n",
    "pairs": SHORT + "fixed: {a: !!pairs [a: 1]}\n",
    "a time": SHORT + "fixed: {a: 2026-01-01T00:00:00Z}\n",
    "a time out of range": SHORT + "fixed: {a: 2026-99-99}\n",
    "bytes": SHORT + "fixed: {a: !!binary aGVsbG8=}\n",
    "bad bytes": SHORT + "fixed: {a: !!binary a}\n",
    "no number": SHORT + "fixed: {a: !!int x}\n",
    "a float key": SHORT + "fixed: {1.5: 1}\n",
    "a key of a list": SHORT + "fixed: {[a]: 1}\n",
    "a key of a mapping": SHORT + "fixed: {{a: 1}: 1}\n",
    "a key of a tuple": SHORT + "? !!python/tuple [a]\n: 1\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(text)
    with Jury() as jury:
        jury.judge(lambda: run(file), text[:300])

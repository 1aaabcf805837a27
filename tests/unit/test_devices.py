"""Which GPUs a worker sees, what its slots are, and how several workers of a machine share them."""

from __future__ import annotations

import os

import pytest

from autotune.errors import InputError
from workers.cli import share_slots
from workers.devices import Slot, make_slots, visible_gpus

A, B, C = (f"GPU-{letter * 8}-0000" for letter in "abc")
LISTING = f"0, {A}\n1, {B}\n2, {C}\n"
MIG = "MIG-12345678-1111"


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (LISTING, [A, B, C]),
        ("", []),
        ("No devices were found\n", []),
        (f"0, {A}\nnonsense\n, {B}\n2,\n\n 3 ,  {C}  \n", [A, C]),
    ],
)
def test_listing(listing: str, found: list[str]) -> None:
    assert visible_gpus({}, listing) == found


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("0,2", [A, C]),
        ("2,0", [C, A]),
        (" 1 , 0 ", [B, A]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [A]),
        ("0,7,1", [A]),
        ("0,,1", [A]),
        ("NoDevFiles", []),
        ("void", []),
        (f"{B},{A}", [B, A]),
        ("GPU-bbbb", [B]),
        ("GPU-", []),
        ("GPU-ffff,0", []),
        (MIG, [MIG]),
        (f"{MIG},1", [MIG, B]),
        ("0,0,1", [A, B]),
        ("²", []),
    ],
)
def test_mask(mask: str, found: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": mask}, LISTING) == found


def test_a_mask_without_gpus_names_none() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": f"0,{A},{MIG}"}, "") == []


def test_no_nvidia_smi_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert visible_gpus({}) == []


@pytest.mark.parametrize(("script", "found"), [(f"echo '0, {A}'", [A]), ("echo '0, x'; exit 9", [])])
def test_nvidia_smi_is_asked(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str, found: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert visible_gpus({}) == found


@pytest.mark.parametrize(
    ("option", "gpus", "expected"),
    [
        ("auto", [A, B], [A, B]),
        ("auto", [], [""]),
        ("cpu", [A, B], [""]),
        ("1", [A, B], [B]),
        (" 1, 0", [A, B], [B, A]),
        (B, [A, B], [B]),
    ],
)
def test_devices_option(option: str, gpus: list[str], expected: list[str]) -> None:
    slots = make_slots(option, gpus=gpus)
    assert [s.visible for s in slots] == expected
    assert [s.device for s in slots] == [f"cuda:{gpu}" if gpu else "cpu" for gpu in expected]
    assert [s.index for s in slots] == list(range(len(expected)))


@pytest.mark.parametrize(
    ("option", "options", "message"),
    [
        ("2", {}, "no GPU 2"),
        ("gpu", {}, "takes auto, cpu or GPU numbers"),
        ("", {}, "takes auto"),
        ("0,", {}, "takes auto"),
        ("-1", {}, "takes auto"),
        ("0,0", {}, "twice"),
        (f"0,{A}", {}, "twice"),
        ("²", {}, "takes auto"),
        ("auto", {"per_device": 0}, "slots-per-device"),
        ("auto", {"threads": 0}, "threads"),
    ],
)
def test_devices_errors(option: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_slots(option, gpus=[A, B], **options)


def test_slots_per_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(13)))
    slots = make_slots("auto", 3, gpus=[A, B])
    assert [s.visible for s in slots] == [A, A, A, B, B, B]
    assert {s.threads for s in slots} == {2}
    assert {s.threads for s in make_slots("auto", 20, gpus=[A, B])} == {1}
    assert {s.threads for s in make_slots("cpu", 2, threads=7)} == {7}


def test_slot_confines_a_trial_to_its_device() -> None:
    gpu, cpu = (Slot(index=0, device="x", visible=visible, threads=1) for visible in (A, ""))
    assert (gpu.trial_device, gpu.environment()) == ("cuda:0", {"CUDA_VISIBLE_DEVICES": A})
    assert (cpu.trial_device, cpu.environment()) == ("cpu", {"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        ([], 1, [[""]]),
        ([], 3, [[""], [""], [""]]),
        ([A], 1, [[A]]),
        ([A], 2, [[A], [A]]),
        ([A, B], 2, [[A], [B]]),
        ([A, B, C], 2, [[A, C], [B]]),
        ([A, B], 5, [[A], [B], [A], [B], [A]]),
    ],
)
def test_share_of_devices(gpus: list[str], workers: int, shares: list[list[str]]) -> None:
    slots = make_slots(gpus=gpus)
    got = [share_slots(slots, f"{i}/{workers}", given_threads=None) for i in range(workers)]
    assert [[s.visible for s in share] for share in got] == shares
    for share in got:
        assert [s.index for s in share] == list(range(len(share)))


def test_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    slots = make_slots("cpu", 2)
    assert [s.threads for s in share_slots(slots, "1/3", given_threads=None)] == [2, 2]
    assert [s.threads for s in share_slots(slots, "0/3", given_threads=5)] == [5, 5]
    assert [s.threads for s in share_slots(slots, "0/30", given_threads=None)] == [1, 1]


@pytest.mark.parametrize("share", ["", "1", "1/1", "2/1", "-1/2", "a/b", "0/0", "1/²"])
def test_share_errors(share: str) -> None:
    with pytest.raises(InputError, match="i/n"):
        share_slots(make_slots("cpu"), share, given_threads=None)

"""The settings that `auto` chooses, and its messages if nothing fits."""

from dataclasses import replace
from typing import Any

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.estimate.auto import Plan, Room, candidates, choose, hpz_group, resolve, whole_nodes
from ift_scale.estimate.memory import GIB, Setting
from ift_scale.estimate.shape import ModelShape
from ift_scale.plan.memory import PRESETS, memory_table, parts, read_shape

GPU_80, GPU_141 = 80e9, 141e9


def _plan(model: str, gpus: int, gpu_bytes: float, **train: Any) -> Plan:
    return choose(read_shape(model), Room(gpu_bytes, gpus, 8), TrainConfig(**train))


@pytest.mark.parametrize(
    ("model", "gpus", "gpu_bytes", "expected"),
    [
        ("llama-2-7b", 1, GPU_141, Setting(2, "none", "full")),
        ("llama-3-8b", 8, GPU_80, Setting(2, "none", "selective")),
        ("llama-2-13b", 16, GPU_80, Setting(3, "none", "selective", hpz=8)),
        ("llama-2-70b", 64, GPU_80, Setting(3, "none", "full", hpz=8)),
        ("llama-2-70b", 8, GPU_80, Setting(3, "optimizer", "full")),
    ],
)
def test_the_settings_in_the_documentation(
    model: str, gpus: int, gpu_bytes: float, expected: Setting
) -> None:
    plan = _plan(model, gpus, gpu_bytes)
    assert plan.chosen.setting == expected
    earlier = plan.options[: plan.options.index(plan.chosen)]
    assert (
        all(option.memory.total > gpu_bytes for option in earlier)
        and plan.chosen.memory.total <= gpu_bytes
    )


def test_values_set_by_the_user_are_kept() -> None:
    assert _plan("llama-3-8b", 8, GPU_80, zero_stage=3).chosen.setting == Setting(3, "none", "none")
    assert _plan(
        "llama-3-8b", 8, GPU_80, activation_checkpointing="full"
    ).chosen.setting == Setting(2, "none", "full")
    assert _plan("llama-3-8b", 8, GPU_80, offload="all").chosen.setting == Setting(3, "all", "none")
    config = TrainConfig(
        zero_stage=1, offload="none", activation_checkpointing="none", precision="bfloat16"
    )
    settled = config.model_copy(update={"hpz": "off"})
    assert resolve(config, read_shape("llama-2-70b"), Room(GPU_80, 8, 8)) == (settled, None)


def test_offload_with_an_impossible_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.offload: all needs ZeRO-3"):
        _plan("llama-3-8b", 8, GPU_80, offload="all", zero_stage=2)
    with pytest.raises(ConfigError, match=r"train\.offload: optimizer needs ZeRO-1, 2 or 3"):
        _plan("llama-3-8b", 8, GPU_80, offload="optimizer", zero_stage=0)


def test_if_nothing_fits_the_message_has_the_amount_and_remedies() -> None:
    message = (
        r"needs [\d.]+ GiB per GPU, [\d.]+ GiB more .*train on more GPUs; lower .*offload to auto"
    )
    with pytest.raises(EnvironmentProblem, match=message):
        _plan("llama-2-70b", 8, GPU_80, offload="none")
    message = r"GiB of host memory per GPU, more than the 32\.0 GiB available"
    with pytest.raises(EnvironmentProblem, match=message):
        choose(read_shape("llama-2-70b"), Room(GPU_80, 8, 8, host_bytes=256 * GIB), TrainConfig())


def test_a_cpu_with_unknown_memory_uses_plain_stage_2() -> None:
    resolved, said = resolve(TrainConfig(), read_shape("llama-1b"), Room(None, 2, 2))
    assert (resolved.zero_stage, resolved.offload, resolved.activation_checkpointing) == (
        2,
        "none",
        "none",
    ) and said is None


SMOL = ModelShape.dense(576, 1536, 30, 9, 3, 64, 49152, tied=True)  # 134.5e6 parameters


@pytest.mark.parametrize(
    ("gib", "ranks", "per_node", "expected"),
    [
        (64, 2, 2, Setting(2, "none", "none")),
        (24, 2, 1, Setting(2, "none", "none")),  # one rank per node
        (22, 2, 2, Setting(2, "none", "selective")),
        (18.5, 2, 2, Setting(2, "none", "full")),
        (9, 2, 2, Setting(2, "none", "full")),
        (40, 4, 4, Setting(2, "none", "selective")),
    ],
)
def test_ranks_on_a_cpu_share_their_nodes_memory(
    gib: float, ranks: int, per_node: int, expected: Setting
) -> None:
    room = Room(None, ranks, per_node, gib * GIB)
    plan = choose(SMOL, room, TrainConfig())
    assert plan.chosen.setting == expected and room.host_need(plan.chosen.memory) <= gib * GIB
    assert all(
        room.host_need(option.memory) > gib * GIB
        for option in plan.options[: plan.options.index(plan.chosen)]
    )
    _, said = resolve(TrainConfig(), SMOL, room)
    assert (
        said is not None
        and said.startswith(f"{expected}: ")
        and f"of a node's {gib:.2f} GiB for its {min(ranks, per_node)} ranks" in said
    )
    assert ("ZeRO-2, none activation checkpointing, no offload would need 1" in said) == (
        expected.checkpointing != "none"
    )


def test_if_nothing_fits_a_cpu_the_message_has_the_amount() -> None:
    room = Room(None, 2, 2, 8 * GIB)
    message = (
        r"no setting fits 0\.13e9 parameters on 2 ranks on CPUs, with 8,192 tokens per "
        r"micro-batch: the lightest .*full.* needs [\d.]+ GiB per rank, [\d.]+ of a node's "
        r"8\.00 GiB for its 2 ranks\. One of these helps: .*fewer ranks"
    )
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        resolve(TrainConfig(), SMOL, room)
    assert caught.value.exit_code == 3
    with pytest.raises(
        EnvironmentProblem,
        match=r"set train\.activation_checkpointing to auto; set train\.zero_stage to auto",
    ):
        resolve(
            TrainConfig(activation_checkpointing="none", zero_stage=2),
            SMOL,
            Room(None, 2, 2, 10 * GIB),
        )
    config, _ = resolve(TrainConfig(), SMOL, room, tokens=64)  # sets smaller than the limit
    assert config.activation_checkpointing == "none" and config.tokens_per_micro_batch == 8192
    by_hand = TrainConfig(zero_stage=2, offload="none", activation_checkpointing="none")
    assert resolve(by_hand, SMOL, room) == (by_hand.model_copy(update={"hpz": "off"}), None)


def _documented() -> list[list[str]]:
    lines = (PRESETS.parents[1] / "docs" / "memory.md").read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if " GB |" in line
    ]


@pytest.mark.parametrize("row", _documented(), ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_table_in_the_documentation(row: list[str]) -> None:
    num_gpus, gigabytes = row[1].removesuffix(" GB").split(" x ")
    config = TrainConfig(attention="flash_attn")  # `auto` depends on the installed torch
    option = choose(read_shape(row[0]), Room(int(gigabytes) * 1e9, int(num_gpus), 8), config).chosen
    assert row[2:5] == [option.setting.stage, option.setting.checkpointing, option.setting.offload]
    reported = ["0" if part == 0 else f"{part / GIB:.1f}" for part in parts(option.memory)]
    assert row[5:14] == reported[:-1] and row[14] == (
        reported[-1] if option.memory.host == 0 else f"{8 * option.memory.host / GIB:.1f}"
    )


def test_weights_are_held_once_per_node_if_they_fit() -> None:
    shape = read_shape("llama-2-70b")
    plan = choose(shape, Room(GPU_80, 64, 8), TrainConfig())
    without = next(o for o in plan.options if o.setting == replace(plan.chosen.setting, hpz=1))
    assert plan.chosen.memory.weights - without.memory.weights == pytest.approx(
        2 * shape.parameters / 8
    )
    shown = memory_table(plan).columns[0]
    assert list(shown.cells)[:4] == ["2", "2", "3, hpZ", "3"] and "once per 8 ranks" in str(
        plan.chosen.setting
    )
    tight = without.memory.total + 1  # fits, but the copy does not
    by_hand = TrainConfig(zero_stage=3, offload="none", activation_checkpointing="full")
    assert [resolve(by_hand, shape, Room(room, 64, 8))[0].hpz for room in (GPU_80, tight, 1e9)] == [
        8,
        "off",
        "off",
    ]
    off = TrainConfig(hpz="off")
    assert choose(shape, Room(GPU_80, 64, 8), off).chosen.setting == without.setting


@pytest.mark.parametrize(
    ("ranks", "per_node", "group"),
    [(8, 8, 1), (16, 8, 8), (12, 8, 1), (4, 1, 1), (1, 1, 1), (6, 2, 2)],
)
def test_hpz_uses_a_node_if_there_are_several_equal_ones(
    ranks: int, per_node: int, group: int
) -> None:
    assert hpz_group(TrainConfig(), ranks, per_node) == group
    assert {
        found.hpz for found in candidates(TrainConfig(zero_stage=3), ranks, per_node=per_node)
    } == {1, group}
    assert {
        found.hpz for found in candidates(TrainConfig(zero_stage=2), ranks, per_node=per_node)
    } == {1}


def test_nodes_are_whole_if_ranks_fill_one_after_another() -> None:
    assert whole_nodes(["a", "a", "b", "b"]) and whole_nodes(["a", "a"]) and whole_nodes(["a", "b"])
    for hosts in (
        ["a", "b", "a", "b"],
        ["a", "a", "b"],
        ["a", "b", "b"],
        ["a", "a", "b", "c"],
        ["a", "b", "b", "a"],
    ):
        assert not whole_nodes(hosts)


def test_hpz_with_a_number_of_ranks() -> None:
    assert resolve(TrainConfig(hpz=2), read_shape("llama-1b"), Room(GPU_80, 4, 4))[0].hpz == 2
    assert {found.zero_stage for found in candidates(TrainConfig(hpz=2), 4)} == {3}
    for ranks in (2, 5):
        with pytest.raises(
            ConfigError, match=rf"train\.hpz: 2 must divide the number of ranks .*\({ranks} ranks\)"
        ):
            candidates(TrainConfig(hpz=2), ranks)


def test_compiled_layers_are_never_checkpointed_selectively() -> None:
    assert all(
        found.checkpointing != "selective" for found in candidates(TrainConfig(compile=True), 8)
    )

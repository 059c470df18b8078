"""The predicted step, compared with values computed by hand and with its limits."""

from dataclasses import replace

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError
from ift_scale.estimate import flops, memory, scaling
from ift_scale.estimate.activations import Checkpointing
from ift_scale.estimate.collectives import seconds
from ift_scale.estimate.communication import gathered_again, traffic
from ift_scale.estimate.flops import BatchShape, OpCounter
from ift_scale.estimate.machine import Link, Machine, read_machine
from ift_scale.estimate.memory import Setting
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.step_time import Prediction, StepSetup, predict
from ift_scale.plan.memory import read_shape

SHAPE = read_shape("llama-2-7b")
LARGE = read_shape("llama-2-70b")
BATCH = BatchShape((700.0, 300.0), (500.0, 100.0))
STEP = [[BATCH] * 8]


def _job(
    stage: int = 2, checkpointing: Checkpointing = "none", shape: object = SHAPE, **changes: object
) -> StepSetup:
    return replace(
        StepSetup(shape, Setting(stage, "none", checkpointing), mixed=True, pruned=True), **changes
    )  # type: ignore[arg-type]


def _ideal(**changes: object) -> Machine:
    """Returns a machine on which only the operations in `changes` take time."""
    fast = {1: 1e30}
    link = Link(bandwidth=1e30, latency=0)
    free = {
        "matrix": fast,
        "attention": fast,
        "memory": fast,
        "in_place": fast,
        "op_seconds": 0.0,
        "inside": link,
        "between": link,
    }
    return read_machine("h100-sxm").model_copy(update=free | changes)


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "qwen2.5-7b"])
def test_flops_are_those_of_the_trainer(name: str, pruned: bool) -> None:
    shape = read_shape(name)
    counter = OpCounter(shape, 2, fused=True, pruned=pruned, on_gpu=True)
    ops = [*counter.forward(BATCH), *counter.backward(BATCH), *counter.head(BATCH)]
    assert flops.flops(ops) == pytest.approx(
        train_flops(shape, BATCH.lengths, BATCH.rows, pruned), rel=1e-12
    )  # type: ignore[arg-type]


def test_with_only_products_the_step_is_its_flops_over_the_rate() -> None:
    found = predict(_job(), _ideal(matrix={1: 1e14}, attention={1: 1e14}), STEP)
    one_rank = train_flops(SHAPE, BATCH.lengths, BATCH.rows, True)  # type: ignore[arg-type]
    assert found.seconds == pytest.approx(one_rank / 1e14, rel=1e-6)
    assert found.flops == pytest.approx(8 * one_rank)
    assert found.mfu == pytest.approx(1e14 / found.peak_flops, rel=1e-6)
    assert found.tokens_per_second_per_device == pytest.approx(BATCH.tokens / found.seconds)


def test_full_checkpointing_repeats_the_layers_forward_pass() -> None:
    machine = _ideal(matrix={1: 1e14}, attention={1: 1e14})
    none, full, selective = (
        predict(_job(3, how), machine, STEP).seconds for how in ("none", "full", "selective")
    )  # type: ignore[arg-type]
    head = 6 * SHAPE.embedding_parameters * BATCH.num_rows / 1e14
    assert full - none == pytest.approx((none - head) / 3, rel=1e-6)
    assert selective == pytest.approx(none, rel=1e-6)


def test_a_step_without_overlap_is_the_sum_of_computing_and_sending() -> None:
    """Stage 0 in float32 on 8 devices: an all-reduce per 5e8 gradients, and two of scalars."""
    link = Link(bandwidth=1e9, latency=1e-3)
    job = _job(0, mixed=False)
    found = predict(job, _ideal(inside=link, overlap=False), STEP)
    buckets = -(-SHAPE.parameters // 500_000_000)
    expected = 2 * (buckets + 2) * 7 * 1e-3 + 2 * 7 / 8 * (4 * SHAPE.parameters + 2 * 8) / 1e9
    assert (
        found.parts["communication"]
        == pytest.approx(expected)
        == pytest.approx(found.seconds, rel=1e-3)
    )


def test_communication_is_hidden_except_for_one_call() -> None:
    link = Link(bandwidth=1e12, latency=0)
    slow = {"matrix": {1: 1e13}, "attention": {1: 1e13}}
    update = sum(
        call.size
        for call in traffic(SHAPE, Setting(2, "none", "none"), 8, True).update
        if call.kind == "all_gather"
    )
    found = predict(_job(), _ideal(inside=link, **slow), STEP)
    (reduced,) = traffic(SHAPE, Setting(2, "none", "none"), 8, True).backward
    assert found.parts["communication"] == pytest.approx(
        reduced.size / 1e12 + 7 / 8 * update / 1e12, rel=1e-3
    )
    assert found.hidden == pytest.approx((reduced.count - 1) * reduced.size / 1e12, rel=1e-3)
    alone = predict(_job(), _ideal(inside=link), STEP)  # no computation hides it
    assert alone.parts["communication"] == pytest.approx(
        reduced.count * reduced.size / 1e12 + 7 / 8 * update / 1e12, rel=1e-3
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_device_sends_nothing(stage: int) -> None:
    assert traffic(SHAPE, Setting(stage, "none", "none"), 1, True) == traffic(
        SHAPE, Setting(0, "none", "none"), 1, False
    )
    assert predict(_job(stage), read_machine("h100-sxm"), [[BATCH]]).parts["communication"] == 0


def test_what_each_stage_sends() -> None:
    def sent(stage: int, part: str) -> dict[str, float]:
        calls = getattr(traffic(LARGE, Setting(stage, "none", "none"), 64, True), part)
        return {call.kind: call.size * call.count for call in calls if call.size > 8}

    parameters = LARGE.parameters
    assert sent(1, "boundary") == {"all_reduce": 4 * parameters} and sent(1, "update") == {
        "all_gather": 2 * parameters
    }
    assert (
        sent(2, "backward") == pytest.approx({"reduce": 2 * parameters})
        and sent(2, "boundary") == {}
    )
    assert sent(3, "forward") == pytest.approx({"all_gather": 2 * parameters})
    again = 2 * (parameters - memory.LIVE / 2)
    assert sent(3, "backward") == pytest.approx(
        {"reduce_scatter": 2 * parameters, "all_gather": again}
    )
    assert gathered_again(read_shape("llama-1b"), Setting(3, "none", "none")) < 1e9


def test_weights_held_once_per_node_cross_the_network_once_per_step() -> None:
    machine = read_machine("h100-sxm")
    plain, copied = (traffic(LARGE, Setting(3, "none", "full", size), 64, True) for size in (1, 8))
    assert plain.later_forward == plain.forward == copied.forward
    assert [call.within for call in (*copied.forward, *copied.later_forward)] == [0, 8]
    assert [call.within for call in copied.backward] == [0, 8]  # gradients go to all
    assert [call.size * call.count for call in copied.backward] == [
        call.size * call.count for call in plain.backward
    ]
    (gathered,) = copied.later_forward
    assert seconds(gathered, machine, 64) == pytest.approx(
        seconds(replace(gathered, within=0), machine, 8)
    )
    alone = _ideal(
        inside=Link(bandwidth=1e30, latency=0), between=Link(bandwidth=1e9, latency=0)
    )  # only the network takes time
    steps = [[BATCH] * 64] * 3
    times = [
        predict(_job(3, setting=Setting(3, "none", "none", size)), alone, steps).parts[
            "communication"
        ]
        for size in (1, 8)
    ]
    once, again = 2 * SHAPE.parameters / 8e9, 2 * (SHAPE.parameters - memory.LIVE / 2) / 8e9
    assert times[0] == pytest.approx(63 / 64 * 3 * (2 * once + again), rel=1e-2)
    assert times[1] == pytest.approx(63 / 64 * (once + 3 * once), rel=1e-2)


def test_slices_to_their_owners_are_half_the_bytes_and_many_more_calls() -> None:
    """use_multi_rank_bucket_allreduce: false sends less on a node, but is slower on 1,000."""
    machine = read_machine("h100-sxm")

    def sending(devices: int, whole: bool | None) -> float:
        found = predict(_job(whole_buckets=whole), machine, [[BATCH] * devices])
        return found.parts["communication"] + found.hidden

    assert sending(8, whole=False) < sending(8, whole=True)
    assert sending(1024, whole=False) > 10 * sending(1024, whole=True)
    for devices in (
        memory.SLICED_UP_TO,
        2 * memory.SLICED_UP_TO,
    ):  # the trainer's choice is the faster one, within a tenth
        assert sending(devices, whole=None) < 1.1 * min(
            sending(devices, whole=True), sending(devices, whole=False)
        )


def test_the_slowest_rank_determines_the_time() -> None:
    machine = read_machine("h100-sxm")
    half, idle = BatchShape((700.0,), (500.0,)), BatchShape((), ())
    even, uneven = (
        predict(_job(), machine, [[BATCH] * 2]),
        predict(_job(), machine, [[BATCH, half]]),
    )
    assert uneven.seconds == pytest.approx(even.seconds) and uneven.flops < even.flops
    assert predict(_job(), machine, [[BATCH, idle]]).seconds == pytest.approx(even.seconds)


def test_a_slow_host_determines_the_time() -> None:
    quick, slow = (
        predict(_job(), read_machine("h100-sxm").model_copy(update={"op_seconds": s}), STEP)
        for s in (1e-9, 1e-2)
    )
    assert quick.parts["forward host"] == 0 < slow.parts["forward host"]
    assert slow.seconds > 5 * quick.seconds


def _rows(shape: object, **changes: object) -> list[scaling.ScalingRow]:
    train = TrainConfig(**changes)  # type: ignore[arg-type]
    machine, examples = read_machine("h100-sxm"), scaling.Examples()
    return scaling.rows(shape, train, machine, examples)  # type: ignore[arg-type]


def test_a_device_is_never_faster_among_more_devices() -> None:
    rows = _rows(LARGE, zero_stage=3, offload="none", activation_checkpointing="full")
    sending = [row.prediction.parts["communication"] + row.prediction.hidden for row in rows]
    assert sending == sorted(sending) and len(rows) == 8
    assert [row.memory.total for row in rows] == sorted(
        (row.memory.total for row in rows), reverse=True
    )
    assert all(0 < row.prediction.mfu < 0.73 for row in rows)


def test_a_global_batch_leaves_devices_idle() -> None:
    train, examples = (
        TrainConfig(global_batch_size=24, tokens_per_micro_batch=2048),
        scaling.Examples(400.0),
    )
    step = scaling.global_batch(examples, train, 16)
    assert len(step) == 1 and [len(batch.lengths) for batch in step[0]] == [2] * 8 + [1] * 8
    assert sum(bool(batch.lengths) for batch in scaling.global_batch(examples, train, 64)[0]) == 24
    assert len(scaling.global_batch(examples, train, 2)) == 3  # five of them fit into a micro-batch


def test_offload_waits_for_the_host() -> None:
    job = _job(setting=Setting(3, "optimizer", "none"))
    machine = read_machine("h100-sxm")
    assert machine.host is not None
    found: Prediction = predict(job, machine, STEP)
    own = SHAPE.parameters / 8
    assert found.parts["offload"] == pytest.approx(
        2 * 2 * own / machine.host.link + 28 * own / machine.host.memory
    )
    assert "update" not in found.parts
    with pytest.raises(DataError, match=r"host.*missing, but offload needs it"):
        predict(job, machine.model_copy(update={"host": None}), STEP)

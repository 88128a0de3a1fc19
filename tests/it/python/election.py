"""A client of Regent in another language: campaigns, proclaims and observes over mTLS.

Usage: election.py PROTO_DIR ENDPOINT CA CERT KEY SERVER_NAME ELECTION
Prints one JSON object on its last line; exit code 0 only if all of it worked.
"""

import importlib
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2


def stubs(proto_dir):
    """Compiles the protos into a folder of their own and imports them."""
    out = tempfile.mkdtemp(prefix="regent-proto-")
    # With what it imports.
    names = ["common", "topology", "agent", "election"]
    files = [f"regent/v1/{name}.proto" for name in names]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", proto_dir]
        + ["--python_out", out, "--grpc_python_out", out] + files,
        check=True,
    )
    sys.path.insert(0, out)
    return (
        importlib.import_module("regent.v1.common_pb2"),
        importlib.import_module("regent.v1.election_pb2"),
        importlib.import_module("regent.v1.election_pb2_grpc"),
    )


def reflected(channel):
    """The services that the node says it has."""
    # The package has the messages of v1alpha only; those of v1 are the same on the wire.
    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(call(iter([ask]), timeout=10)))
    return [service.name for service in answer.list_services_response.service]


def read(path):
    with open(path, "rb") as f:
        return f.read()


def main():
    proto_dir, endpoint, ca, cert, key, server_name, election = sys.argv[1:8]
    common, pb, rpc = stubs(proto_dir)
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    channel = grpc.secure_channel(
        endpoint, credentials, options=[("grpc.ssl_target_name_override", server_name)]
    )
    services = sorted(reflected(channel))
    health = health_pb2_grpc.HealthStub(channel)
    asked = ["", "regent.v1.ElectionService", "regent.v1.ClusterService"]
    serving = {
        name: health_pb2.HealthCheckResponse.ServingStatus.Name(
            health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
        )
        for name in asked
    }
    stub = rpc.ElectionServiceStub(channel)
    lane, serial = random.getrandbits(63), [0]

    def request_id():
        serial[0] += 1
        return common.RequestId(client=lane, serial=serial[0])

    nonce = random.getrandbits(63)
    opened = stub.OpenSession(
        pb.OpenSessionRequest(
            request=request_id(), ttl_ms=5000, nonce=nonce, label=f"python {os.getpid()}"
        ),
        timeout=10,
    )

    # One thread of renewals; each acknowledgement says the highest grant, the next renewal names it.
    sending, state, lock = queue.Queue(), {"number": 0, "acked": 0, "grant": 0, "named": {}}, threading.Lock()

    def renewals():
        while True:
            item = sending.get()
            if item is None:
                return
            yield item

    def renew():
        with lock:
            state["number"] += 1
            state["named"][state["number"]] = state["grant"]
            renewal = pb.Renewal(
                session=opened.session, nonce=nonce, number=state["number"],
                acked=state["acked"], known_grant=state["grant"],
            )
        sending.put(pb.KeepAliveRequest(renewals=[renewal]))

    confirmed = threading.Event()
    wanted = [None]

    def answers():
        for answer in stub.KeepAlive(renewals()):
            for renewed in answer.renewed:
                with lock:
                    if renewed.outcome == pb.Renewed.EXTENDED:
                        state["acked"] = max(state["acked"], renewed.number)
                        state["grant"] = max(state["grant"], renewed.grant)
                        named = state["named"].pop(renewed.number, 0)
                        if wanted[0] is not None and named >= wanted[0]:
                            confirmed.set()

    threading.Thread(target=answers, daemon=True).start()
    stop = threading.Event()

    def ticking():
        while not stop.wait(opened.renew_interval_ms / 1000):
            renew()

    renew()
    threading.Thread(target=ticking, daemon=True).start()

    campaign = stub.Campaign(
        pb.CampaignRequest(
            request=request_id(), election=election, session=opened.session, nonce=nonce, value=b"first"
        ),
        timeout=10,
    )
    assert campaign.HasField("epoch"), f"queued behind {campaign.ahead}"
    wanted[0] = campaign.epoch.revision
    with lock:
        state["grant"] = max(state["grant"], campaign.epoch.revision)
    renew()
    assert confirmed.wait(10), "no renewal that names the grant was acknowledged"

    seen, snapshot_done = [], threading.Event()

    def observe():
        for event in stub.Observe(pb.ObserveRequest(election=election), timeout=30):
            kind = event.WhichOneof("event")
            if kind == "snapshot_end":
                snapshot_done.set()
            elif kind == "change" and event.change.HasField("election"):
                seen.append(event.change.election.holder.value.decode())

    def observing():
        try:
            observe()
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
                print(f"observe: {error}", file=sys.stderr)

    threading.Thread(target=observing, daemon=True).start()
    assert snapshot_done.wait(10), "the watch gave no snapshot"
    stub.Proclaim(
        pb.ProclaimRequest(
            request=request_id(), election=election, session=opened.session,
            epoch=campaign.epoch, value=b"second",
        ),
        timeout=10,
    )
    deadline = time.monotonic() + 10
    while "second" not in seen and time.monotonic() < deadline:
        time.sleep(0.01)
    leader = stub.Leader(pb.LeaderRequest(election=election), timeout=10)
    stub.Resign(
        pb.ResignRequest(request=request_id(), election=election, session=opened.session, nonce=nonce),
        timeout=10,
    )
    stale = None
    try:
        stub.Proclaim(
            pb.ProclaimRequest(
                request=request_id(), election=election, session=opened.session,
                epoch=campaign.epoch, value=b"late",
            ),
            timeout=10,
        )
    except grpc.RpcError as error:
        stale = error.code().name
    stop.set()
    sending.put(None)
    print(json.dumps({
        "epoch": [campaign.epoch.incarnation, campaign.epoch.revision],
        "services": services,
        "serving": serving,
        "seen": seen,
        "leader_value": leader.election.holder.value.decode(),
        "after_resign": stale,
    }))


main()

"""Instances that serve gRPC, and a client that finds them by xDS.

Usage: xds.py NAME=PORT...   (the bootstrap by GRPC_XDS_BOOTSTRAP, as with any client)
Each NAME answers calls with its name. Then reads one JSON object a line and answers each with one:
  {"call": target, "timeout": seconds}            one call
  {"until": target, "said": name}                 calls until that one answers; at most 20 s
Of a call that failed the code and details are told, of all how long they took.
"""

import datetime
import json
import sys
import time
from concurrent import futures

import grpc

METHOD = "/regent.test.Who/Am"


def serve(name, port):
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode())
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service = grpc.method_handlers_generic_handler("regent.test.Who", {"Am": handler})
    server.add_generic_rpc_handlers((service,))
    if not server.add_insecure_port(f"127.0.0.1:{port}"):
        raise OSError(f"cannot listen on {port}")
    server.start()
    return server


CHANNELS = {}


def call(target, timeout):
    if target not in CHANNELS:
        CHANNELS[target] = grpc.insecure_channel(f"xds:///{target}")
    begun = time.monotonic()
    try:
        said = {"said": CHANNELS[target].unary_unary(METHOD)(b"", timeout=timeout).decode()}
    except grpc.RpcError as error:
        said = {"said": None, "code": error.code().name, "details": error.details()}
    return said | {"ms": 1000 * (time.monotonic() - begun)}


def until(target, wanted):
    """Beside what the last call said: when others answered last, and how many calls failed since."""
    begun = last = time.monotonic()
    failed = 0
    while time.monotonic() - begun < 20:
        said = call(target, 5)
        now = time.monotonic()
        if said["said"] == wanted:
            at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            return said | {"at": at, "gap_ms": 1000 * (now - last), "failed": failed}
        if said["said"] is None:
            failed += 1
        else:
            last, failed = now, 0
        time.sleep(0.0005)
    return said


def main():
    servers = [serve(*one.split("=")) for one in sys.argv[1:]]
    print(json.dumps({"ready": len(servers), "grpc": grpc.__version__}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        if "call" in ask:
            said = call(ask["call"], ask["timeout"])
        else:
            said = until(ask["until"], ask["said"])
        print(json.dumps(said), flush=True)


main()

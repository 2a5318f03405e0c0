"""gRPC server of the scenarios: answers every call of lab.Echo/Who with its name. `answerer.py PORT NAME`."""

import sys
from concurrent import futures

import grpc

port, name = sys.argv[1:]


def who(_request, _context):
    return name.encode()


server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
# Without serializers, messages are bytes, so that no generated code is needed.
handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Echo", handlers),))
server.add_insecure_port(f"0.0.0.0:{port}")
server.start()
print("listening", flush=True)
server.wait_for_termination()

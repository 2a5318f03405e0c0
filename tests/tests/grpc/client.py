"""A gRPC client that knows no stubs: it learns the services and messages of a node by reflection.

client.py list ADDRESS              prints the services, then the instances and members of the node
client.py health ADDRESS SERVICE    prints each health of a service, one a line
client.py register ADDRESS MESSAGE  opens a Register stream with this message (JSON), and prints each event
"""

import json
import queue
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

mode, address = sys.argv[1:3]
channel = grpc.insecure_channel(address)
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)


def call(service, method, kind):
    """The callable of a method, and the class of its requests."""
    found = pool.FindServiceByName(service).FindMethodByName(method)
    request = message_factory.GetMessageClass(found.input_type)
    response = message_factory.GetMessageClass(found.output_type)
    create = getattr(channel, kind)
    return create(
        f"/{service}/{method}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    ), request


def show(message):
    print(json.dumps(json_format.MessageToDict(message, pool, preserving_proto_field_name=True)), flush=True)


if mode == "list":
    print(json.dumps(sorted(database.get_services())))
    for method in ["List", "Members"]:
        ask, request = call("hearsay.v1.Discovery", method, "unary_unary")
        show(ask(request(), timeout=10))
elif mode == "health":
    stub = health_pb2_grpc.HealthStub(channel)
    for status in stub.Watch(health_pb2.HealthCheckRequest(service=sys.argv[3])):
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(status.status), flush=True)
elif mode == "register":
    register, request = call("hearsay.v1.Discovery", "Register", "stream_stream")
    messages = queue.SimpleQueue()
    messages.put(json_format.ParseDict(json.loads(sys.argv[3]), request(), descriptor_pool=pool))
    for event in register(iter(messages.get, None)):
        show(event)

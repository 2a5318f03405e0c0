//! Reflection (`grpc.reflection.v1` and `v1alpha`): tools such as grpcurl learn from it which services a node
//! has, and their messages.

use tonic::service::Routes;
use tonic_reflection::server::{Builder, Error};

/// The descriptors of `proto/`, written by the build script.
const HEARSAY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearsay_descriptor.bin"));

/// The descriptors of all services that reflection lists.
pub(super) const DESCRIPTORS: &[&[u8]] = &[
    HEARSAY,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Adds both versions of reflection.
pub(super) fn add(routes: Routes) -> Routes {
    match services(&routes) {
        Ok(with_reflection) => with_reflection,
        Err(error) => {
            // The descriptors are constants, which a test reads. Without them the other services still work.
            tracing::error!(%error, "gRPC reflection is off: its descriptors cannot be read");
            routes
        }
    }
}

/// Size of a request, which is the name of a service, a method or a file.
const REQUEST_BYTES_MAX: usize = 4 * 1024;

fn services(routes: &Routes) -> Result<Routes, Error> {
    let v1 = builder().build_v1()?.max_decoding_message_size(REQUEST_BYTES_MAX);
    let v1alpha = builder().build_v1alpha()?.max_decoding_message_size(REQUEST_BYTES_MAX);
    Ok(routes.clone().add_service(v1).add_service(v1alpha))
}

fn builder() -> Builder<'static> {
    let builder = Builder::configure().include_reflection_service(false);
    DESCRIPTORS.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
}

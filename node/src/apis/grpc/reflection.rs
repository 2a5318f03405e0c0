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

fn services(routes: &Routes) -> Result<Routes, Error> {
    let routes = routes.clone().add_service(builder().build_v1()?);
    Ok(routes.add_service(builder().build_v1alpha()?))
}

fn builder() -> Builder<'static> {
    let builder = Builder::configure().include_reflection_service(false);
    DESCRIPTORS.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
}

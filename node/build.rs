//! Generates the code of `proto/`, the descriptors that gRPC reflection answers with, and the trait of
//! Envoy's aggregated discovery service. The compiler of protos is a crate, so a build needs no installed
//! program.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_prost_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("hearsay/v1/discovery.proto")?;
    let dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(dir.join("hearsay_descriptor.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Builder::new().build_client(false).compile(&[aggregated_discovery()]);
    Ok(())
}

/// Describes the service with requests of the node's own, which have fewer fields than Envoy's.
fn aggregated_discovery() -> Service {
    let method = |name: &str, route: &str, request: &str, response: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::apis::xds::request::{request}"))
            .output_type(format!("envoy_types::pb::envoy::service::discovery::v3::{response}"))
            .codec_path("tonic_prost::ProstCodec")
            .client_streaming()
            .server_streaming()
            .build()
    };
    let (stream, delta) = ("StreamAggregatedResources", "DeltaAggregatedResources");
    Service::builder()
        .name("AggregatedDiscoveryService")
        .package("envoy.service.discovery.v3")
        .method(method("stream_aggregated_resources", stream, "DiscoveryRequest", "DiscoveryResponse"))
        .method(method(
            "delta_aggregated_resources",
            delta,
            "DeltaDiscoveryRequest",
            "DeltaDiscoveryResponse",
        ))
        .build()
}

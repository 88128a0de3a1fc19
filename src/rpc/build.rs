//! Compiles `proto/` without a `protoc`: protox is pure Rust, so a fresh machine needs nothing but
//! cargo. The descriptor set is kept for gRPC reflection.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "regent/v1/common.proto",
        "regent/v1/calls.proto",
        "regent/v1/topology.proto",
        "regent/v1/election.proto",
        "regent/v1/cluster.proto",
        "regent/v1/audit.proto",
        "regent/v1/agent.proto",
        "regent/v1/operation.proto",
        "regent/v1/routing.proto",
        "regent/raft/v1/raft.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` instead of `Vec<u8>`: a Raft body is passed on without a copy.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

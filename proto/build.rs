//! Compiles the protos without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["raft.proto", "cluster.proto", "node.proto", "security.proto", "store.proto"];
    for proto in protos {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(protos, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

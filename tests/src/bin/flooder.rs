//! Program that floods one address with connections, for scenarios: see [`hearsay_tests::run_flooder`].

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    hearsay_tests::run_flooder(&arguments)
}

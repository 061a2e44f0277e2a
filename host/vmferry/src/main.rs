//! Replicates running VMs between XCP-ng and XenServer pools.

fn main() -> std::process::ExitCode {
    vmferry::program::main()
}

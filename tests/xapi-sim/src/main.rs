//! A simulated pool as a program. When it is ready it prints one line of JSON that says where and what it is.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use xapi_sim::{DiskSpec, NbdPurpose, Sim, SimConfig, VmSpec};

/// A simulated XAPI pool for tests
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where XAPI is served; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve HTTPS with a certificate made at start
    #[arg(long)]
    tls: bool,
    /// The only account
    #[arg(long, default_value = "root")]
    username: String,
    /// Its password
    #[arg(long, default_value = "password")]
    password: String,
    /// The pool's name
    #[arg(long, default_value = "pool")]
    name: String,
    /// A raw image; each becomes a disk of a running VM named "vm"
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Where the control port is served; without it there is none
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// How many hosts the pool has; the members listen at free ports
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// Where the NBD server is; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    nbd_listen: SocketAddr,
    /// Let the network serve NBD from the start, with TLS or without; otherwise network.add_purpose does
    #[arg(long, value_name = "nbd|insecure_nbd", value_parser = purpose)]
    nbd_purpose: Option<NbdPurpose>,
    /// Size of the SR in bytes
    #[arg(long, default_value_t = 1 << 40)]
    sr_size: u64,
    /// Guests say nothing after their start
    #[arg(long)]
    hold_guests: bool,
}

fn purpose(text: &str) -> Result<NbdPurpose, String> {
    let known = [NbdPurpose::Nbd, NbdPurpose::InsecureNbd].into_iter().find(|purpose| purpose.as_str() == text);
    known.ok_or_else(|| "it is nbd or insecure_nbd".to_owned())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    // Before anything can be waited for, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let sim = Sim::start(SimConfig {
        listen: arguments.listen,
        tls: arguments.tls,
        name: arguments.name,
        username: arguments.username,
        password: arguments.password,
        admin_listen: arguments.admin,
        sr_size: arguments.sr_size,
        hold_guests: arguments.hold_guests,
        hosts: arguments.hosts,
        nbd_listen: arguments.nbd_listen,
        nbd_purpose: arguments.nbd_purpose,
        ..SimConfig::default()
    })
    .await?;
    let disks = arguments.images.into_iter().enumerate().map(|(number, image)| {
        // Said here: the library takes a missing file for a mistake of the test.
        std::fs::File::open(&image).map_err(|error| anyhow::anyhow!("open {}: {error}", image.display()))?;
        Ok(DiskSpec { name: format!("disk {number}"), image: Some(image), ..DiskSpec::default() })
    });
    let disks = disks.collect::<anyhow::Result<Vec<_>>>()?;
    let vms = match disks.is_empty() {
        true => Vec::new(),
        false => {
            let vm = sim.add_vm(VmSpec { name: "vm".to_owned(), disks, running: true, vifs: 1, ..VmSpec::default() });
            vec![json!({ "vm": vm, "name": "vm", "disks": sim.vm_disks(&vm) })]
        }
    };
    let hosts = sim.host_urls().into_iter().zip(sim.nbd_addresses());
    let hosts: Vec<_> = hosts.map(|(url, nbd)| json!({ "url": url, "nbd": nbd.to_string() })).collect();
    let ready = json!({
        "url": sim.url(),
        "nbd": hosts[0]["nbd"],
        "hosts": hosts,
        "admin_url": sim.admin_url(),
        "certificate_sha256": sim.certificate_sha256(),
        "pool": sim.pool(),
        "sr": sim.default_sr(),
        "vms": vms,
    });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")?;
    stdout.flush()?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sim.stop().await;
    Ok(())
}

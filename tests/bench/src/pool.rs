//! A simulated pool in a process of its own, so that its CPU time is its own.

use anyhow::{Context as _, ensure};
use clap::Args;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use vmferry_xapi::{Endpoint, Session, Trust};
use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};

/// What a disk is written in.
const BLOCK: u64 = 2 << 20;

/// How large the VM's disk is, and how much of it holds data.
#[derive(Clone, Copy)]
pub(crate) struct Disk {
    pub(crate) gib: u64,
    /// Blocks of 2 MiB that hold data, spread evenly.
    pub(crate) blocks: u64,
}

impl Disk {
    pub(crate) fn size(self) -> u64 {
        self.gib << 30
    }

    /// Length of the VHD stream that holds `blocks` of the disk.
    pub(crate) fn stream_length(self, blocks: u64) -> u64 {
        2048 + (4 * (self.size() / BLOCK)).next_multiple_of(512) + blocks * (512 + BLOCK) + 512
    }
}

/// The served pool.
#[derive(Args)]
pub(crate) struct Serve {
    #[arg(long)]
    tls: bool,
    /// Size of the VM's disk; without it there is no VM
    #[arg(long, requires = "blocks")]
    gib: Option<u64>,
    /// Blocks of 2 MiB that hold data, spread evenly
    #[arg(long, requires = "gib")]
    blocks: Option<u64>,
    /// VMs beside that one, which are nothing but their records
    #[arg(long, default_value_t = 0)]
    crowd: usize,
}

impl Serve {
    /// Serves until standard input ends. Each line of it is a number: so many blocks of the disk get new data.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        let sim = runtime.block_on(Sim::start(SimConfig { tls: self.tls, ..SimConfig::default() }))?;
        sim.add_crowd(self.crowd);
        let disk = self.gib.zip(self.blocks).map(|(gib, blocks)| Disk { gib, blocks });
        let mut data = Random(0x9e37_79b9_7f4a_7c15);
        let vm = disk.map(|disk| {
            let disk = DiskSpec { name: "disk".to_owned(), size: disk.size(), ..DiskSpec::default() };
            sim.add_vm(VmSpec { name: "vm".to_owned(), disks: vec![disk], ..VmSpec::default() })
        });
        let vdi = vm.as_ref().map(|vm| sim.vm_disks(vm).remove(0));
        let mut write = |blocks: u64| {
            let (Some(disk), Some(vdi)) = (disk, &vdi) else { return };
            for number in 0..blocks {
                let place = number * (disk.blocks / blocks) * (disk.size() / BLOCK / disk.blocks);
                sim.write(vdi, place * BLOCK, &data.block());
            }
        };
        write(disk.map_or(0, |disk| disk.blocks));
        let ready = serde_json::json!({
            "url": sim.url(), "sr": sim.default_sr(), "vm": vm, "disk": vdi, "pin": sim.certificate_sha256(),
        });
        println!("{ready}");
        for line in std::io::stdin().lines() {
            write(line?.parse()?);
            println!("written");
            std::io::stdout().flush()?;
        }
        Ok(())
    }
}

/// Data of which no block repeats (xorshift, fixed seed).
struct Random(u64);

impl Random {
    fn block(&mut self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
        block
    }
}

/// A pool as its clients see it. It ends with its value.
pub(crate) struct Pool {
    process: Child,
    commands: ChildStdin,
    lines: BufReader<ChildStdout>,
    facts: serde_json::Value,
}

impl Pool {
    pub(crate) fn start(tls: bool, disk: Option<Disk>) -> anyhow::Result<Self> {
        Self::with_crowd(tls, disk, 0)
    }

    /// The same with so many VMs beside.
    pub(crate) fn with_crowd(tls: bool, disk: Option<Disk>, crowd: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.args(["--crowd", &crowd.to_string()]);
        if tls {
            command.arg("--tls");
        }
        if let Some(Disk { gib, blocks }) = disk {
            command.args(["--gib", &gib.to_string(), "--blocks", &blocks.to_string()]);
        }
        let mut process = command.spawn()?;
        let commands = process.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(process.stdout.take().context("stdout")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(Self { process, commands, lines, facts: serde_json::from_str(&line)? })
    }

    /// Puts new data into `blocks` blocks of the disk.
    pub(crate) fn write(&mut self, blocks: u64) -> anyhow::Result<()> {
        writeln!(self.commands, "{blocks}")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line.trim() == "written", "the pool did not write: {line}");
        Ok(())
    }

    /// A fact that it told at its start.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.facts[key].as_str().unwrap_or_default()
    }

    /// Its part of a configuration file.
    pub(crate) fn section(&self, name: &str) -> String {
        let pin = self.facts["pin"].as_str().map(|pin| format!("certificate_sha256 = \"{pin}\"\n"));
        let (url, pin) = (self.text("url"), pin.unwrap_or_default());
        format!("[pool.{name}]\nurl = \"{url}\"\nusername = \"root\"\npassword = \"password\"\n{pin}\n")
    }

    /// Its URL with credentials.
    pub(crate) fn authorised(&self) -> String {
        self.text("url").replace("://", "://root:password@")
    }

    pub(crate) async fn login(&self) -> anyhow::Result<Session> {
        let endpoint = Endpoint::parse(self.text("url"))?.with_credentials("root", "password");
        let endpoint = match self.facts["pin"].as_str().and_then(Trust::parse_pin) {
            Some(pin) => endpoint.with_trust(pin),
            None => endpoint,
        };
        Ok(Session::login(&endpoint, "bench").await?)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

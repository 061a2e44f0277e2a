//! Counters that do not depend on the machine's mood: bytes that come into user space, system calls and user
//! instructions for each MiB. A transfer runs in a process of its own under `strace` or valgrind; its far ends are
//! threads here.
#![cfg(target_os = "linux")]

use std::io::{Write, copy, sink};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::thread::spawn;
use std::time::Duration;

use uuid::Uuid;
use vmferry_disk::transfer::{EngineName, Options, lockstep, relay};
use vmferry_disk::vhd::{Head, NewDisk, StreamPart, Writer};

/// Tells the child what to do: the engine, and the addresses of source and sink.
const TASK: &str = "VMFERRY_COUNTED_TRANSFER";

const SMALL_MIB: u32 = 32;
const LARGE_MIB: u32 = 160;

#[test]
#[ignore = "the other tests run it under a tracer"]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [engine, source, sink] = words[..] else { panic!("not a task: {task:?}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connect = async |address: &str| tokio::net::TcpStream::connect(address).await.expect("a connection");
        let (mut source, mut sinks) = (connect(source).await, [connect(sink).await]);
        let head = Head::read(&mut source).await.expect("a good head");
        let minute = Duration::from_secs(60);
        let options = Options { leaves: None, progress: &(), throttles: &[], stall: minute, first_byte: minute };
        let outcome = match engine {
            "splice" => relay(&mut source, &head, &mut sinks, options).await,
            _ => lockstep(&mut source, &head, &mut sinks, options).await,
        };
        assert_eq!(outcome.expect("a good stream").engine.to_string(), engine);
    });
}

/// Whether `program` is there. Where the environment demands peers, it has to be.
#[expect(clippy::print_stderr, reason = "a skipped test should say so")]
fn is_missing(program: &str) -> bool {
    if Command::new(program).arg("--version").output().is_ok() {
        return false;
    }
    let required = std::env::var_os("VMFERRY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "{program} is required here; install the package {program}");
    eprintln!("skipped: there is no {program}");
    true
}

/// Moves a stream of `mib` MiB of data by `engine`, under `tracer`.
fn traced(tracer: &mut Command, engine: EngineName, mib: u32) -> Output {
    let (source, sink) = (Listening::new(), Listening::new());
    let task = format!("{engine} {} {}", source.address, sink.address);
    let (sender, taker) = (spawn(move || source.send(mib)), spawn(move || sink.take()));
    let output = tracer
        .arg(std::env::current_exe().expect("a test has a program"))
        .args(["--exact", "child", "--ignored", "--test-threads=1"])
        .env(TASK, task)
        .output()
        .expect("the tracer runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(taker.join().expect("the sink takes"), sender.join().expect("the source sends"), "{words}");
    output
}

struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        Self { listener, address }
    }

    fn send(self, mib: u32) -> u64 {
        let disk = NewDisk { virtual_size: 1 << 30, unique_id: Uuid::nil(), creator: *b"tap\0", parent: None };
        let writer = Writer::new(&disk, &(0..mib / 2).collect::<Vec<_>>()).expect("a good disk");
        let data = vec![0x5a; 2 << 20];
        let mut connection = self.listener.accept().expect("the child connects").0;
        for part in writer.parts() {
            let bytes = match part {
                StreamPart::Bytes(bytes) => bytes,
                StreamPart::Disk { length, .. } => &data[..length as usize],
            };
            connection.write_all(bytes).expect("the child reads");
        }
        writer.head().stream_length()
    }

    fn take(self) -> u64 {
        copy(&mut self.listener.accept().expect("the child connects").0, &mut sink()).expect("bytes and an end")
    }
}

/// What a child did on TCP sockets, and how many system calls it made in all.
struct Calls {
    all: usize,
    /// Bytes that came from a socket into user space.
    received: u64,
    /// Bytes that went from user space to a socket.
    sent: u64,
}

fn calls(engine: EngineName, mib: u32) -> Calls {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    traced(Command::new("strace").args(["-f", "-yy", "-s", "0", "-o"]).arg(&trace), engine, mib);
    count(&trace)
}

fn count(trace: &Path) -> Calls {
    let trace = std::fs::read_to_string(trace).expect("a trace");
    let mut calls = Calls { all: 0, received: 0, sent: 0 };
    for line in trace.lines().filter(|line| line.contains('(')) {
        calls.all += 1;
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        let name = call.split('(').next().unwrap_or("");
        let on_tcp = call.split(',').next().is_some_and(|first| first.contains("<TCP:["));
        let result: u64 = call.rsplit("= ").next().and_then(|result| result.trim().parse().ok()).unwrap_or(0);
        match name {
            "read" | "readv" | "recvfrom" | "recvmsg" if on_tcp => calls.received += result,
            "write" | "writev" | "sendto" | "sendmsg" if on_tcp => calls.sent += result,
            _ => {}
        }
    }
    calls
}

fn slope(small: f64, large: f64) -> f64 {
    (large - small) / f64::from(LARGE_MIB - SMALL_MIB)
}

#[test]
fn under_splice_no_payload_comes_into_user_space() {
    if is_missing("strace") {
        return;
    }
    let calls = calls(EngineName::Splice, LARGE_MIB);
    // The head, a sector bitmap for each 2 MiB, and the last footer.
    let metadata = 2048 + 2048 + u64::from(LARGE_MIB / 2) * 512 + 512;
    assert_eq!(calls.received, metadata);
    // The first bitmap goes through a pipe, to try it.
    assert_eq!(calls.sent, metadata - 512);
}

#[test]
fn in_lockstep_every_byte_is_received_and_sent_once() {
    if is_missing("strace") {
        return;
    }
    let calls = calls(EngineName::Lockstep, SMALL_MIB);
    let length = 2048 + 2048 + u64::from(SMALL_MIB / 2) * (512 + (2 << 20)) + 512;
    assert_eq!((calls.received, calls.sent), (length, length));
}

#[test]
fn system_calls_for_each_mib_are_few() {
    if is_missing("strace") {
        return;
    }
    for (engine, limit) in [(EngineName::Lockstep, 9.0), (EngineName::Splice, 12.0)] {
        let [small, large] = [SMALL_MIB, LARGE_MIB].map(|mib| calls(engine, mib).all as f64);
        let per_mib = slope(small, large);
        assert!(per_mib > 1.0 && per_mib <= limit, "{engine}: {per_mib} system calls per MiB");
        report(engine, "system calls", per_mib);
    }
}

#[test]
fn user_instructions_for_each_mib_are_few() {
    if is_missing("valgrind") {
        return;
    }
    // How often sockets are waited for adds some thousands, more on a busy machine and without optimisation; work for each
    // byte would add hundreds of thousands.
    const LIMIT: f64 = 25_000.0;
    for engine in [EngineName::Lockstep, EngineName::Splice] {
        let [small, large] = [SMALL_MIB, LARGE_MIB].map(|mib| instructions(engine, mib));
        let per_mib = slope(small, large);
        assert!(per_mib > 10.0 && per_mib <= LIMIT, "{engine}: {per_mib} user instructions per MiB");
        report(engine, "user instructions", per_mib);
    }
}

fn instructions(engine: EngineName, mib: u32) -> f64 {
    let arguments = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"];
    let output = traced(Command::new("valgrind").args(arguments), engine, mib);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = words.lines().find(|line| line.contains("I refs:") || line.contains("I   refs:"));
    let digits: String = line
        .unwrap_or_else(|| panic!("no count in {words}"))
        .split(':')
        .next_back()
        .unwrap_or("")
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().expect("a count")
}

#[expect(clippy::print_stderr, reason = "the figures are of interest also when they are good")]
fn report(engine: EngineName, what: &str, per_mib: f64) {
    eprintln!("{engine}: {per_mib:.1} {what} per MiB");
}

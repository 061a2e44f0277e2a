//! Two simulated pools in processes of their own, a configuration file, and the program.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// A pool in a process of its own, ended with its value.
pub(crate) struct Pool {
    process: Child,
    pub(crate) facts: Value,
}

impl Pool {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(simulator())
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, facts: serde_json::from_str(&line).unwrap() }
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.facts[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.facts))
    }

    /// A request to the control port.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let address = self.text("admin_url").trim_start_matches("http://").trim_end_matches('/');
        let mut socket = TcpStream::connect(address).unwrap();
        let body = body.to_string();
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    pub(crate) fn records(&self, class: &str) -> Vec<Value> {
        let answer = self.admin("GET", &format!("/records?class={class}"), &Value::Null);
        answer.as_array().unwrap().clone()
    }

    pub(crate) fn write(&self, disk: &str, offset: u64, data: &[u8]) {
        self.admin("POST", "/write", &json!({ "vdi": disk, "offset": offset, "data_base64": BASE64.encode(data) }));
    }

    pub(crate) fn sha256(&self, disk: &str) -> String {
        self.admin("GET", &format!("/sha256?vdi={disk}"), &Value::Null)["sha256"].as_str().unwrap().to_owned()
    }

    /// The digests of a VM's disks, by device number.
    pub(crate) fn content(&self, vm: &str) -> Vec<String> {
        self.disks(vm).iter().map(|disk| self.sha256(disk)).collect()
    }

    /// The disks of a VM, by device number.
    pub(crate) fn disks(&self, vm: &str) -> Vec<String> {
        let vms = self.records("VM");
        let vm = vms.iter().find(|record| record["uuid"] == vm).unwrap_or_else(|| panic!("no VM {vm}"));
        let mut found: Vec<(String, String)> = self
            .records("VBD")
            .iter()
            .filter(|vbd| vbd["VM"] == vm["$ref"])
            .map(|vbd| (vbd["userdevice"].as_str().unwrap().to_owned(), vbd["VDI"].as_str().unwrap().to_owned()))
            .collect();
        found.sort();
        let disks = self.records("VDI");
        let uuid = |reference: &str| disks.iter().find(|disk| disk["$ref"] == reference).unwrap()["uuid"].clone();
        found.iter().map(|(_, vdi)| uuid(vdi).as_str().unwrap().to_owned()).collect()
    }

    /// Everything the pool holds, sessions and tasks aside, and what a storage occupies: that is brought up to date at
    /// moments of its own.
    pub(crate) fn everything(&self) -> Value {
        let mut classes = ["VM", "VDI", "VBD", "VIF", "SR", "network"].map(|class| self.records(class));
        for record in classes.iter_mut().flatten() {
            record.as_object_mut().unwrap().remove("physical_utilisation");
        }
        json!(classes)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The simulator's program beside ours. `cargo test` builds both; a test of this crate alone builds it here.
fn simulator() -> PathBuf {
    let simulator = Path::new(env!("CARGO_BIN_EXE_vmferry")).with_file_name("xapi-sim");
    if !simulator.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "xapi-sim"]).status().unwrap();
        assert!(built.success(), "cargo build -p xapi-sim");
    }
    simulator
}

/// Two pools, a VM with two disks on the first, and a job `erp` between them.
pub(crate) struct Stage {
    pub(crate) source: Pool,
    pub(crate) target: Pool,
    pub(crate) vm: String,
    pub(crate) folder: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self::with(Pool::start(&[]), Pool::start(&[]));
        stage.configure("");
        stage
    }

    /// The same on these pools, not configured yet.
    pub(crate) fn with(source: Pool, target: Pool) -> Self {
        let vm = source.admin(
            "POST",
            "/add-vm",
            &json!({
                "name": "erp-db", "running": true, "tags": ["erp"], "vifs": 1,
                "disks": [{ "name": "system", "size": 64 * MIB }, { "name": "data", "size": 32 * MIB }],
            }),
        );
        let disks: Vec<String> = serde_json::from_value(vm["disks"].clone()).unwrap();
        source.write(&disks[0], 0, b"boot sector");
        source.write(&disks[1], 7 * MIB, b"a row in a table");
        Self::of(source, target, vm["vm"].as_str().unwrap())
    }

    pub(crate) fn of(source: Pool, target: Pool, vm: &str) -> Self {
        Self { source, target, vm: vm.to_owned(), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration of both pools, the store and the job, with more lines for the job, and more sections after them.
    pub(crate) fn configure(&self, more: &str) {
        self.configure_pools(&pool_section("prod", &self.source), &pool_section("dr", &self.target), more);
    }

    /// The same with targets that are stores: name, plugin, settings, and the folder that it is granted beside locks.
    pub(crate) fn configure_with_stores(&self, stores: &[(&str, &str, &str, &Path)]) {
        let store = |(name, plugin, with, _): &(&str, &str, &str, &Path)| {
            format!("{{ name = '{name}', plugin = '{plugin}', with = {{ {with} }} }}")
        };
        let grant = |(_, plugin, _, folder): &(&str, &str, &str, &Path)| {
            format!("[plugin.{plugin}]\ngrants = {{ folders = ['{}'], lock = true }}\n", folder.display())
        };
        let targets: Vec<String> = stores.iter().map(store).collect();
        self.configure(&stores.iter().map(grant).collect::<String>());
        let file = self.path("vmferry.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace("' }]\n", &format!("' }}, {}]\n", targets.join(", ")));
        std::fs::write(&file, text).unwrap();
    }

    pub(crate) fn configure_pools(&self, source: &str, target: &str, more: &str) {
        let (store, vm, sr) = (self.path("state"), &self.vm, self.target.text("sr"));
        let text = format!(
            "{source}\n{target}\n[store]\npath = '{}'\n\n[job.erp]\nselect = {{ pool = 'prod', vms = ['{vm}'] }}\n\
             targets = [{{ name = 'dr', pool = 'dr', sr = '{sr}' }}]\n{more}\n",
            store.display()
        );
        let file = self.path("vmferry.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
        command.arg("--config").arg(self.path("vmferry.toml")).args(arguments);
        command
    }

    pub(crate) fn vmferry(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a verb that must end with `code` and answers with its JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.vmferry(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    }
}

/// A `[pool.NAME]` section.
pub(crate) fn pool_section(name: &str, pool: &Pool) -> String {
    let pin = match pool.facts["certificate_sha256"].as_str() {
        Some(pin) => format!("certificate_sha256 = '{pin}'\n"),
        None => String::new(),
    };
    format!("[pool.{name}]\nurl = '{}'\nusername = 'root'\npassword = 'password'\n{pin}", pool.text("url"))
}

/// Both outputs of a program.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether a test that needs this program can go on. Where peers are required, a missing one fails the test.
pub(crate) fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    let required = std::env::var("VMFERRY_REQUIRE_PEERS").is_ok_and(|value| value == "1");
    assert!(found || !required, "{program} is required and not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

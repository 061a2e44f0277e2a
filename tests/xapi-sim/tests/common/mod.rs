//! A client without a library: JSON-RPC and raw HTTP over a socket, so that tests see what is on the wire.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Read as _;

use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xapi_sim::{DiskSpec, Sim, VmSpec};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Client {
    address: String,
    pub(crate) session: String,
}

/// An answer that ended with its connection.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Client {
    /// At another host of the pool that the session is of.
    pub(crate) fn at(url: &str, session: &str) -> Self {
        Self { address: url.trim_start_matches("http://").to_owned(), session: session.to_owned() }
    }

    pub(crate) async fn login(sim: &Sim) -> Self {
        let mut client = Self { address: sim.url().trim_start_matches("http://").to_owned(), session: String::new() };
        let session =
            client.bare("session.login_with_password", json!(["root", "password", "1.0", "test"])).await.unwrap();
        client.session = session.as_str().unwrap().to_owned();
        client
    }

    /// A call as it is, without the session.
    pub(crate) async fn bare(&self, method: &str, params: Json) -> Result<Json, Vec<String>> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let answer = self.post("/jsonrpc", &body).await;
        let reply: Json = serde_json::from_slice(&answer.body).unwrap();
        match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => {
                let params = error["data"].as_array().unwrap().iter().map(|param| param.as_str().unwrap().to_owned());
                Err(std::iter::once(error["message"].as_str().unwrap().to_owned()).chain(params).collect())
            }
        }
    }

    pub(crate) async fn call(&self, method: &str, params: Json) -> Result<Json, Vec<String>> {
        let Json::Array(mut params) = params else { panic!("parameters are an array") };
        params.insert(0, json!(self.session));
        self.bare(method, Json::Array(params)).await
    }

    pub(crate) async fn text(&self, method: &str, params: Json) -> String {
        self.call(method, params).await.unwrap().as_str().unwrap().to_owned()
    }

    pub(crate) async fn by_uuid(&self, class: &str, uuid: &str) -> String {
        self.text(&format!("{class}.get_by_uuid"), json!([uuid])).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        self.exchange(format!("{head}{body}").as_bytes()).await
    }

    /// Sends and reads to the end of the connection.
    pub(crate) async fn exchange(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request).await;
        read_answer(&mut stream).await
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.exchange(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await
    }

    pub(crate) async fn task(&self) -> String {
        self.text("task.create", json!(["test", ""])).await
    }

    /// A task as (status, error).
    pub(crate) async fn outcome(&self, task: &str) -> (String, Vec<String>) {
        let record = self.call("task.get_record", json!([task])).await.unwrap();
        let error = record["error_info"].as_array().unwrap().iter().map(|part| part.as_str().unwrap().to_owned());
        (record["status"].as_str().unwrap().to_owned(), error.collect())
    }

    /// Waits for a task by its events.
    pub(crate) async fn wait(&self, task: &str) -> (String, Vec<String>) {
        let mut token = String::new();
        loop {
            let (status, error) = self.outcome(task).await;
            if status != "pending" {
                return (status, error);
            }
            let answer = self.call("event.from", json!([[format!("task/{task}")], token, 10.0])).await.unwrap();
            token = answer["token"].as_str().unwrap().to_owned();
        }
    }

    /// Exports with a task of its own: (body, status, error).
    pub(crate) async fn export(&self, parameters: &str) -> (Vec<u8>, String, Vec<String>) {
        let task = self.task().await;
        let target = format!("/export_raw_vdi?{parameters}&session_id={}&task_id={task}", self.session);
        let answer = self.get(&target).await;
        assert_eq!(answer.status(), "200", "{}", answer.head);
        let (status, error) = self.wait(&task).await;
        (answer.body, status, error)
    }

    /// Imports a body with its length: (answer, status, error).
    pub(crate) async fn import(&self, parameters: &str, body: &[u8]) -> (Answer, String, Vec<String>) {
        self.import_with(parameters, &format!("Content-Length: {}\r\n", body.len()), body).await
    }

    pub(crate) async fn import_with(
        &self,
        parameters: &str,
        headers: &str,
        body: &[u8],
    ) -> (Answer, String, Vec<String>) {
        let task = self.task().await;
        self.put(&format!("/import_raw_vdi?{parameters}"), &task, headers, body).await
    }

    /// Sends a body to a path that has parameters, under a task: (answer, status, error).
    pub(crate) async fn put(
        &self,
        target: &str,
        task: &str,
        headers: &str,
        body: &[u8],
    ) -> (Answer, String, Vec<String>) {
        let head =
            format!("PUT {target}&session_id={}&task_id={task} HTTP/1.1\r\nHost: x\r\n{headers}\r\n", self.session);
        let mut stream = self.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(body).await;
        let _ = stream.shutdown().await;
        let answer = read_answer(&mut stream).await;
        let (status, error) = self.wait(task).await;
        (answer, status, error)
    }
}

pub(crate) async fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A reset after the answer loses nothing of it.
    let _ = stream.read_to_end(&mut bytes).await;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let body = bytes.split_off(end);
    Answer { head: String::from_utf8(bytes).unwrap(), body }
}

/// A halted VM with disks of these sizes: (uuid, disk uuids).
pub(crate) fn vm_with_disks(sim: &Sim, sizes: &[u64]) -> (String, Vec<String>) {
    let disks = sizes.iter().map(|size| DiskSpec { size: *size, name: "disk".into(), ..DiskSpec::default() }).collect();
    let vm = sim.add_vm(VmSpec { name: "vm".into(), disks, vifs: 1, ..VmSpec::default() });
    let disks = sim.vm_disks(&vm);
    (vm, disks)
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    let file = std::fs::File::open(format!("{}/tests/golden/{name}.gz", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

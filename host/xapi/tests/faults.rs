//! Every way a host can fail a disk stream, at every stage, with and without TLS: what the client says of it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{EARLY_OK, Host, Identity, Later, PATIENCE, SESSION, Wire, in_no_time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Error, Export, Import, Ref, Session};

const EXPORT: &str = "GET /export_raw_vdi";
const IMPORT: &str = "PUT /import_raw_vdi";

/// Bytes of a whole body: more than the buffers of a connection hold.
const BODY: u64 = 24 << 20;
/// Where a body breaks off.
const SOME: u64 = 1 << 20;

type Script = fn(Wire) -> Later<()>;

/// What a host does, and what the client is to say of it.
struct Case {
    name: &'static str,
    script: Script,
    /// Where it ended, and how: see [`class`].
    outcome: &'static str,
}

/// What kind of failure it is, with the host's own reason where the client learnt one.
fn class(error: &Error) -> String {
    match error {
        Error::Transfer { task, stream } => format!("{} because {}", class(stream), task.code()),
        Error::Api(task) => format!("task says {}", task.code()),
        Error::Http { status, .. } => format!("HTTP {status}"),
        Error::Transport { .. } => "connection failed".to_owned(),
        Error::Cut { .. } => "cut".to_owned(),
        Error::NotAtEnd { .. } => "not at end".to_owned(),
        Error::Redirect { .. } => "redirect not followed".to_owned(),
        Error::Timeout { .. } => "timeout".to_owned(),
        Error::Malformed { .. } => "no HTTP".to_owned(),
        Error::TaskVanished { .. } => "task vanished".to_owned(),
        Error::TaskPending { .. } => "task pending".to_owned(),
        Error::TaskCancelled { .. } => "task cancelled".to_owned(),
        other => format!("unexpected: {other:?}"),
    }
}

fn outcome(stage: &str, result: Result<(), Error>) -> String {
    let error = match result {
        Ok(()) => return "success".to_owned(),
        Err(error) => error,
    };
    assert!(!format!("{error} {error:?}").contains(SESSION), "a secret in {error:?}");
    format!("{stage}: {}", class(&error))
}

/// Lets the host do as `script` says, and takes the stream through `work`.
async fn try_case<F: Future<Output = String>>(
    request: &str,
    case: &Case,
    identity: Option<&Identity>,
    work: impl FnOnce(Session) -> F,
) {
    let host = Host::start_with(identity.map(|identity| identity.acceptor(rustls::DEFAULT_VERSIONS))).await;
    let endpoint = match identity {
        Some(identity) => host.endpoint().with_trust(identity.pin()),
        None => host.endpoint(),
    };
    let script = case.script;
    host.on_stream(request, script);
    let session = Session::login(&endpoint, "test").await.expect("login");
    let seen = tokio::time::timeout(PATIENCE, work(session)).await.expect(case.name);
    assert_eq!(seen, case.outcome, "{}{}", case.name, if identity.is_some() { ", over TLS" } else { "" });
    tokio::time::timeout(PATIENCE, host.asked_for("task.destroy")).await.expect("no task is left behind");
}

async fn try_all<F: Future<Output = String>>(request: &str, cases: &[Case], work: impl Fn(Session) -> F) {
    let identity = Identity::new("xen1");
    for case in cases {
        try_case(request, case, None, &work).await;
        try_case(request, case, Some(&identity), &work).await;
    }
}

/// Reads an export to its end and confirms it.
async fn read_whole(session: Session) -> String {
    let mut export = match session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await {
        Ok(export) => export,
        Err(error) => return outcome("open", Err(error)),
    };
    let mut buffer = vec![0; 256 << 10];
    let stage = loop {
        match export.read(&mut buffer).await {
            Ok(0) => break "finish",
            // As a reader does that knows where the stream has to end.
            Ok(_) if export.received() > BODY => break "finish",
            Ok(_) => {}
            Err(_) => break "read",
        }
    };
    outcome(stage, export.finish().await)
}

/// Writes an import of [`BODY`] bytes and confirms it.
async fn write_whole(session: Session) -> String {
    match session.import_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), BODY, "import").await {
        Ok(import) => fill(import, BODY).await,
        Err(error) => outcome("open", Err(error)),
    }
}

/// The same by an import that tells its end itself.
async fn write_chunked(session: Session) -> String {
    match session.import_chunked(&Ref::<Vdi>::new("OpaqueRef:d"), "import").await {
        Ok(import) => fill(import, BODY).await,
        Err(error) => outcome("open", Err(error)),
    }
}

async fn fill(mut import: Import, mut left: u64) -> String {
    let block = vec![7; 256 << 10];
    let mut stage = "finish";
    while left > 0 && stage == "finish" {
        let n = left.min(block.len() as u64) as usize;
        left -= n as u64;
        if import.write_all(&block[..n]).await.is_err() {
            stage = "write";
        }
    }
    if stage == "finish" && import.flush().await.is_err() {
        stage = "flush";
    }
    outcome(stage, import.finish().await)
}

macro_rules! cases {
    ($($name:literal, |$wire:ident| $script:block => $outcome:literal;)*) => {
        // A script that needs no `mut` is a script all the same.
        [$(Case {
            name: $name,
            script: |#[allow(unused_mut, reason = "scripts differ")] mut $wire: Wire| Box::pin(async move $script),
            outcome: $outcome,
        }),*]
    };
}

const FIVE_HUNDRED: &str = "HTTP/1.1 500 Internal Error\r\nconnection: close\r\n\r\n<html>no such luck</html>";

/// A redirect to a port that was free a moment ago.
async fn redirect_to_nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    format!("HTTP/1.1 302 Found\r\nLocation: https://{address}/\r\n\r\n")
}

fn body(length: u64) -> Vec<u8> {
    vec![7; length as usize]
}

#[tokio::test]
async fn exports_fail_as_what_they_failed_of() {
    let cases = cases! {
        "whole", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(BODY)).await;
            wire.task.succeed("");
        } => "success";

        "FIN before the answer", |wire| { wire.half_close().await; } => "open: connection failed";
        "RST before the answer", |wire| { wire.reset(); } => "open: connection failed";
        "FIN within the answer's head", |wire| {
            wire.say("HTTP/1.1 200 OK\r\nconn").await;
        } => "open: connection failed";
        "500 in place of 200", |wire| {
            wire.task.fail_with_io_error();
            wire.say(FIVE_HUNDRED).await;
        } => "open: HTTP 500 because VDI_IO_ERROR";
        "500 that is reset", |wire| {
            wire.task.fail_with_io_error();
            wire.say(FIVE_HUNDRED).await;
            wire.reset();
        } => "open: HTTP 500 because VDI_IO_ERROR";
        "401 of a dead session", |wire| {
            wire.task.fail(&["SESSION_AUTHENTICATION_FAILED", "root", "no session"]);
            wire.say("HTTP/1.1 401 Unauthorized\r\n\r\n").await;
        } => "open: HTTP 401 because SESSION_AUTHENTICATION_FAILED";
        "something else than HTTP", |wire| { wire.say("SSH-2.0-OpenSSH_9.2\r\n").await; } => "open: no HTTP";
        "an endless head", |wire| {
            wire.say("HTTP/1.1 200 OK\r\n").await;
            while wire.try_say("x-more: of the same, and again, and again\r\n").await {}
        } => "open: no HTTP";
        "a redirect without a place", |wire| {
            wire.say("HTTP/1.1 302 Found\r\n\r\n").await;
        } => "open: redirect not followed";
        "a redirect out of HTTP", |wire| {
            wire.say("HTTP/1.1 302 Found\r\nLocation: ftp://10.0.0.2/export_raw_vdi\r\n\r\n").await;
        } => "open: redirect not followed";
        "a redirect to a closed port", |wire| {
            wire.say(redirect_to_nobody().await).await;
        } => "open: connection failed";

        "500 right behind the 200", |wire| {
            wire.task.fail(&["VDI_IN_USE", "OpaqueRef:d", "export"]);
            wire.say([EARLY_OK, FIVE_HUNDRED.as_bytes()].concat()).await;
        } => "read: HTTP 500 because VDI_IN_USE";
        "500 cut within its head", |wire| {
            wire.task.fail_with_io_error();
            wire.say([EARLY_OK, b"HTTP/1.1 500 Inter"].concat()).await;
        } => "read: no HTTP because VDI_IO_ERROR";
        "no body", |wire| {
            wire.task.fail_with_io_error();
            wire.say(EARLY_OK).await;
        } => "finish: task says VDI_IO_ERROR";
        "RST before the body", |wire| {
            wire.task.fail_with_io_error();
            wire.say(EARLY_OK).await;
            wire.reset();
        } => "read: connection failed because VDI_IO_ERROR";
        "FIN within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(SOME)).await;
            wire.task.fail_with_io_error();
        } => "finish: task says VDI_IO_ERROR";
        "500 within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(SOME)).await;
            wire.say(FIVE_HUNDRED).await;
            wire.task.fail_with_io_error();
        } => "finish: task says VDI_IO_ERROR";
        "RST within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(SOME)).await;
            wire.task.fail_with_io_error();
            wire.reset();
        } => "read: connection failed because VDI_IO_ERROR";
        "endless", |wire| {
            wire.say(EARLY_OK).await;
            while wire.try_say(body(SOME)).await {}
            wire.task.fail_with_io_error();
        } => "finish: not at end because VDI_IO_ERROR";
        "endless, and the task sees nothing wrong in it", |wire| {
            wire.say(EARLY_OK).await;
            while wire.try_say(body(SOME)).await {}
            wire.task.succeed("");
        } => "finish: not at end";

        "whole, but the task fails", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(BODY)).await;
            wire.task.fail_with_io_error();
        } => "finish: task says VDI_IO_ERROR";
        "whole, but the task is cancelled", |wire| {
            wire.say(EARLY_OK).await;
            wire.say(body(BODY)).await;
            wire.task.fail(&["TASK_CANCELLED", "OpaqueRef:t"]);
        } => "finish: task cancelled";
        "whole, but the task is gone", |wire| {
            wire.task.vanish();
            wire.say(EARLY_OK).await;
            wire.say(body(BODY)).await;
        } => "finish: task vanished";
    };
    try_all(EXPORT, &cases, read_whole).await;
}

#[tokio::test]
async fn imports_fail_as_what_they_failed_of() {
    let cases = cases! {
        "whole", |wire| {
            wire.say(EARLY_OK).await;
            assert_eq!(wire.swallow(BODY).await.len() as u64, BODY);
            wire.task.succeed("");
        } => "success";
        "whole, without a farewell", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.task.succeed("");
            wire.half_close().await;
        } => "success";

        "FIN before the answer", |wire| { wire.half_close().await; } => "open: connection failed";
        "RST before the answer", |wire| { wire.reset(); } => "open: connection failed";
        "500 in place of 200", |wire| {
            wire.task.fail_with_io_error();
            wire.say(FIVE_HUNDRED).await;
        } => "open: HTTP 500 because VDI_IO_ERROR";
        "404 as for a transfer encoding", |wire| {
            wire.task.fail(&["INTERNAL_ERROR", "Cannot handle encoding"]);
            wire.say("HTTP/1.1 404 Not Found\r\n\r\n").await;
        } => "open: HTTP 404 because INTERNAL_ERROR";
        "something else than HTTP", |wire| { wire.say("SSH-2.0-OpenSSH_9.2\r\n").await; } => "open: no HTTP";
        "a redirect without a place", |wire| {
            wire.say("HTTP/1.1 302 Found\r\n\r\n").await;
        } => "open: redirect not followed";
        "a redirect to a closed port", |wire| {
            wire.say(redirect_to_nobody().await).await;
        } => "open: connection failed";

        "FIN before the body", |wire| {
            wire.task.fail_with_io_error();
            wire.say(EARLY_OK).await;
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: cut because VDI_IO_ERROR";
        "FIN within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail_with_io_error();
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: cut because VDI_IO_ERROR";
        "RST within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail_with_io_error();
            wire.reset();
        } => "write: connection failed because VDI_IO_ERROR";
        "500 within the body, then FIN", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail(&["SR_BACKEND_FAILURE_44", "", "no space", ""]);
            wire.say(FIVE_HUNDRED).await;
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: HTTP 500 because SR_BACKEND_FAILURE_44";
        "500 within the body, then RST", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail_with_io_error();
            wire.say(FIVE_HUNDRED).await;
            wire.reset();
        } => "write: HTTP 500 because VDI_IO_ERROR";
        "the task succeeds after a part of the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.succeed("");
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: cut";

        "500 behind the whole body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.task.fail_with_io_error();
            wire.say(FIVE_HUNDRED).await;
        } => "finish: HTTP 500 because VDI_IO_ERROR";
        "500 behind the whole body, though the task succeeds", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.say(FIVE_HUNDRED).await;
            wire.task.succeed("");
        } => "finish: HTTP 500";
        "RST behind the whole body, though the task succeeds", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.task.succeed("");
            wire.reset();
        } => "finish: connection failed";
        "whole, but the task fails", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.task.fail_with_io_error();
        } => "finish: task says VDI_IO_ERROR";
        "whole, but the task is gone", |wire| {
            wire.task.vanish();
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
        } => "finish: task vanished";
    };
    try_all(IMPORT, &cases, write_whole).await;
}

#[tokio::test]
async fn chunked_imports_fail_as_what_they_failed_of() {
    let cases = cases! {
        "whole", |wire| {
            wire.say(EARLY_OK).await;
            assert_eq!(wire.swallow(BODY).await.len() as u64, BODY);
            wire.task.succeed("");
        } => "success";
        "404 of a host that does not take it", |wire| {
            wire.task.fail(&["INTERNAL_ERROR", "chunked"]);
            wire.say("HTTP/1.1 404 Not Found\r\n\r\n").await;
        } => "open: HTTP 404 because INTERNAL_ERROR";
        "FIN within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail_with_io_error();
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: cut because VDI_IO_ERROR";
        "an end before ours, which the task takes for success", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.succeed("");
            wire.half_close().await;
            wire.until_closed().await;
        } => "write: cut";
        "RST within the body", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(SOME).await;
            wire.task.fail_with_io_error();
            wire.reset();
        } => "write: connection failed because VDI_IO_ERROR";
        "whole, but the task fails", |wire| {
            wire.say(EARLY_OK).await;
            wire.swallow(BODY).await;
            wire.task.fail_with_io_error();
        } => "finish: task says VDI_IO_ERROR";
    };
    try_all(IMPORT, &cases, write_chunked).await;
}

#[tokio::test]
async fn an_export_without_an_answer_times_out() {
    let (host, session) = Host::streaming(EXPORT, |mut wire| async move { wire.until_closed().await }).await;
    let opening = tokio::spawn(async move { read_whole(session).await });
    host.asked_for(EXPORT).await;
    assert_eq!(in_no_time(opening).await.expect("no panic"), "open: timeout");
}

#[tokio::test]
async fn an_import_that_is_never_answered_fails_after_its_last_byte() {
    let (host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.swallow(BODY).await;
        wire.task.succeed("");
    })
    .await;
    let opening =
        tokio::spawn(async move { session.import_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), BODY, "import").await });
    host.asked_for(IMPORT).await;
    let import = in_no_time(opening).await.expect("no panic").expect("not refused");
    assert_eq!(fill(import, BODY).await, "finish: connection failed");
}

#[tokio::test]
async fn a_host_that_keeps_the_connection_after_its_task_is_not_waited_for_for_ever() {
    let (_host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.say(body(SOME)).await;
        wire.task.succeed("");
        wire.until_closed().await;
    })
    .await;
    let export = opened(&session).await;
    assert_eq!(outcome("finish", in_no_time(export.finish()).await), "finish: timeout");
}

#[tokio::test]
async fn a_task_that_does_not_end_with_its_stream_is_not_waited_for_for_ever() {
    let (host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.say(body(SOME)).await;
    })
    .await;
    let export = opened(&session).await;
    let finish = tokio::spawn(export.finish());
    host.asked_for("event.from").await;
    let said = outcome("finish", in_no_time(finish).await.expect("no panic"));
    assert!(["finish: task pending", "finish: timeout"].contains(&said.as_str()), "{said}");
}

/// An export of which [`SOME`] bytes were read.
async fn opened(session: &Session) -> Export {
    let mut export = session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await.expect("200");
    export.read_exact(&mut body(SOME)).await.expect("bytes");
    export
}

#[tokio::test]
async fn streams_that_stand_still_end_when_their_user_gives_up() {
    let moment = Duration::from_millis(50);

    let (host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.say(body(SOME)).await;
        wire.until_closed().await;
        wire.task.fail_with_io_error();
    })
    .await;
    let mut export = opened(&session).await;
    tokio::time::timeout(moment, export.read_u8()).await.expect_err("nothing comes");
    tokio::time::timeout(PATIENCE, export.abort()).await.expect("the host lets go");
    assert_eq!(host.count("task.destroy"), 1);

    let given_up = Arc::new(Notify::new());
    let wait = Arc::clone(&given_up);
    let (host, session) = Host::streaming(IMPORT, move |mut wire| {
        let wait = Arc::clone(&wait);
        async move {
            wire.say(EARLY_OK).await;
            wait.notified().await;
            wire.until_closed().await;
            wire.task.fail_with_io_error();
        }
    })
    .await;
    let mut import = session.import_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), BODY, "import").await.expect("200");
    tokio::time::timeout(moment, import.write_all(&body(BODY))).await.expect_err("nothing goes");
    given_up.notify_one();
    tokio::time::timeout(PATIENCE, import.abort()).await.expect("the host lets go");
    assert_eq!(host.count("task.destroy"), 1);
}

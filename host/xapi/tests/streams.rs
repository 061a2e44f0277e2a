//! Facts about disk streams, on hosts that answer early, late, twice, elsewhere or not at all.

mod support;

use std::sync::{Arc, Mutex};

use support::{Host, PATIENCE, SESSION, TASK, TestTask, raw, reset, talk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{ApiError, Error, Export, Import, Ref, Retry, Session};

const EXPORT: &str = "GET /export_raw_vdi";
const IMPORT: &str = "PUT /import_raw_vdi";

/// What XAPI answers at once, in both directions.
const EARLY_OK: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/vhd\r\n\r\n";

/// More than the buffers of a loopback connection hold.
const LARGE: u64 = 64 << 20;

fn vdi() -> Ref<Vdi> {
    Ref::new("OpaqueRef:d15c0000-0000-0000-0000-000000000001")
}

async fn bounded<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.expect("bounded")
}

async fn export(session: &Session) -> Result<Export, Error> {
    bounded(session.export_vdi(&vdi(), None, "export")).await
}

async fn import(session: &Session, length: u64) -> Result<Import, Error> {
    bounded(session.import_vdi(&vdi(), length, "import")).await
}

/// Writes up to `length` zeroes, until that fails.
async fn fill(import: &mut Import, length: u64) -> std::io::Result<()> {
    let block = vec![0; 1 << 20];
    let writing = async {
        let mut left = length;
        while left > 0 {
            let n = left.min(block.len() as u64);
            import.write_all(&block[..n as usize]).await?;
            left -= n;
        }
        import.flush().await
    };
    bounded(writing).await
}

/// Reads `length` bytes of a body.
async fn swallow(socket: &mut TcpStream, length: u64) -> Vec<u8> {
    let mut body = Vec::new();
    socket.take(length).read_to_end(&mut body).await.expect("a body");
    body
}

async fn answered(mut socket: TcpStream, answer: &[u8]) -> TcpStream {
    socket.write_all(answer).await.expect("the client reads");
    socket
}

fn failed(task: &TestTask) {
    task.fail(&["VDI_IO_ERROR", "Device I/O errors"]);
}

#[test]
fn streams_may_cross_threads() {
    fn check<T: Send + Unpin>() {}
    check::<Export>();
    check::<Import>();
}

#[tokio::test]
async fn an_export_ends_with_its_connection_and_is_confirmed_by_its_task() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on(EXPORT, |_| raw([EARLY_OK, b"conectix and so on"].concat()));
    let base = Ref::new("OpaqueRef:ba5e0000-0000-0000-0000-000000000001");
    let mut export = bounded(session.export_vdi(&vdi(), Some(&base), "a label")).await.expect("opens");
    let mut body = Vec::new();
    bounded(export.read_to_end(&mut body)).await.expect("reads");
    assert_eq!(body, b"conectix and so on");
    assert_eq!(export.received(), body.len() as u64);

    let task = host.task.clone();
    let finish = tokio::spawn(export.finish());
    host.asked_for("event.from").await;
    assert!(!finish.is_finished(), "the end of the data proves nothing");
    task.succeed("");
    bounded(finish).await.expect("no panic").expect("confirmed");

    let requests = host.requests();
    let head = &requests.iter().find(|r| r.name == EXPORT).expect("the export").head;
    for part in [
        "format=vhd",
        &format!("&vdi={}", vdi()),
        &format!("&base={base}"),
        &format!("&session_id={SESSION}"),
        &format!("&task_id={TASK}"),
    ] {
        assert!(head.contains(part), "{part} in {head}");
    }
    assert!(requests.iter().any(|r| r.name == "task.create" && r.body.contains("a label")));
    assert_eq!(host.count("task.destroy"), 1);
}

#[tokio::test]
async fn an_export_whose_task_fails_is_a_failure_though_its_data_ended_well() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on(EXPORT, |_| raw([EARLY_OK, b"conectix"].concat()));
    let mut export = export(&session).await.expect("opens");
    export.read_to_end(&mut Vec::new()).await.expect("looks complete");
    failed(&host.task);
    let error = bounded(export.finish()).await.expect_err("the task knows better");
    assert!(matches!(error.api(), Some(ApiError::VdiIoError { .. })), "{error}");
}

#[tokio::test]
async fn an_error_inside_the_body_of_an_early_200_is_the_error_it_is() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(EXPORT, move |_| {
        task.fail(&["VDI_IN_USE", "OpaqueRef:d", "export"]);
        talk(|socket| async {
            let mut socket = answered(socket, EARLY_OK).await;
            // In pieces, so that the first bytes alone do not tell.
            for piece in ["HT", "TP/1.1 500 Internal Error\r\n", "\r\n<html>VDI_IN_USE: [ OpaqueRef:d ]</html>"] {
                socket.write_all(piece.as_bytes()).await.expect("the client reads");
                socket.flush().await.expect("flushes");
            }
        })
    });
    let mut export = export(&session).await.expect("200");
    let error = bounded(export.read_to_end(&mut Vec::new())).await.expect_err("no data");
    assert!(error.to_string().contains("HTTP 500"), "{error}");
    match bounded(export.finish()).await {
        Err(Error::Transfer { task: ApiError::VdiInUse { .. }, stream }) => {
            assert!(matches!(*stream, Error::Http { status: 500, .. }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(host.count("task.destroy"), 1);
}

#[tokio::test]
async fn data_that_begins_like_an_error_is_data() {
    let host = Host::start().await;
    let session = host.login().await;
    for body in [&b""[..], b"H", b"HTTQ/", b"conectix"] {
        host.on(EXPORT, move |_| raw([EARLY_OK, body].concat()));
        let mut export = export(&session).await.expect("opens");
        let mut read = Vec::new();
        bounded(export.read_to_end(&mut read)).await.expect("reads");
        assert_eq!(read, body);
    }
}

#[tokio::test]
async fn a_reset_export_fails_with_what_both_sides_know() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go_on);
    host.on(EXPORT, move |_| {
        let (task, wait) = (task.clone(), Arc::clone(&wait));
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            socket.write_all(&[7; 1000]).await.expect("the client reads");
            wait.notified().await;
            failed(&task);
            reset(socket);
        })
    });
    let mut export = export(&session).await.expect("opens");
    bounded(export.read_exact(&mut [0; 1000])).await.expect("the first bytes");
    go_on.notify_one();
    bounded(export.read_to_end(&mut Vec::new())).await.expect_err("reset");
    match bounded(export.finish()).await {
        Err(Error::Transfer { task: ApiError::VdiIoError { .. }, stream }) => {
            assert!(matches!(*stream, Error::Transport { .. }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_aborted_export_waits_until_the_host_let_go() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(EXPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            while socket.write_all(&[7; 1000]).await.is_ok() {}
            failed(&task);
        })
    });
    let mut export = export(&session).await.expect("opens");
    bounded(export.read_exact(&mut [0; 1000])).await.expect("the first bytes");
    bounded(export.abort()).await;
    assert_eq!(host.names().last().map(String::as_str), Some("task.destroy"));
}

#[tokio::test]
async fn an_export_that_is_finished_too_early_is_an_error() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(EXPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            while socket.write_all(&[7; 1000]).await.is_ok() {}
            failed(&task);
        })
    });
    let mut export = export(&session).await.expect("opens");
    export.read_exact(&mut [0; 10]).await.expect("some");
    match bounded(export.finish()).await {
        Err(Error::Transfer { stream, .. }) => {
            assert!(matches!(*stream, Error::NotAtEnd { bytes: 10, .. }), "{stream}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refused_export_gives_status_words_and_the_tasks_reason() {
    let host = Host::start().await;
    let session = host.login().await;
    failed(&host.task);
    host.on(EXPORT, |_| raw(format!("HTTP/1.1 500 Internal Error\r\n\r\n<html>no {SESSION} here</html>")));
    match export(&session).await.err() {
        Some(Error::Transfer { stream, .. }) => match *stream {
            Error::Http { status, excerpt, .. } => assert_eq!((status, excerpt.as_str()), (500, "no … here")),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    assert_eq!(host.count("task.destroy"), 1);
}

#[tokio::test]
async fn a_dropped_stream_closes_its_connection_and_removes_its_task() {
    let host = Host::start().await;
    let session = host.login().await;
    let closed = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&closed);
    host.on(EXPORT, move |_| {
        let notify = Arc::clone(&notify);
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0);
            notify.notify_one();
        })
    });
    drop(export(&session).await.expect("opens"));
    bounded(closed.notified()).await;
    bounded(host.asked_for("task.destroy")).await;
}

fn redirect_to(host: &Host, name: &str) -> Vec<u8> {
    let path = name.split(' ').nth(1).expect("a path");
    let at = format!("{}://127.0.0.1:{}{path}?session_id={SESSION}", host.scheme(), host.port);
    format!("HTTP/1.1 302 Found\r\nLocation: {at}\r\nConnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn an_export_follows_a_redirect() {
    let (master, other) = (Host::start().await, Host::start().await);
    let session = master.login().await;
    let answer = redirect_to(&other, EXPORT);
    master.on(EXPORT, move |_| raw(&answer));
    other.on(EXPORT, |_| raw([EARLY_OK, b"from the other"].concat()));
    let mut export = export(&session).await.expect("follows");
    let mut body = String::new();
    bounded(export.read_to_string(&mut body)).await.expect("reads");
    assert_eq!(body, "from the other");
    master.task.succeed("");
    bounded(export.finish()).await.expect("the task is the pool's");
    let head = &other.requests()[0].head;
    assert!(head.contains(SESSION) && head.contains(TASK), "the request is repeated whole: {head}");
}

#[tokio::test]
async fn an_import_follows_a_redirect_before_its_body_begins() {
    let (master, other) = (Host::start().await, Host::start().await);
    let session = master.login().await;
    let answer = redirect_to(&other, IMPORT);
    master.on(IMPORT, move |_| raw(&answer));
    let (task, body) = (master.task.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&body);
    other.on(IMPORT, move |_| {
        let (task, seen) = (task.clone(), Arc::clone(&seen));
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            *seen.lock().expect("not poisoned") = swallow(&mut socket, 8).await;
            task.succeed("");
        })
    });
    let mut import = import(&session, 8).await.expect("follows");
    bounded(import.write_all(b"whole it")).await.expect("writes");
    bounded(import.finish()).await.expect("confirmed");
    assert_eq!(*body.lock().expect("not poisoned"), b"whole it");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let host = Host::start().await;
    let session = host.login().await;
    let answer = redirect_to(&host, EXPORT);
    host.on(EXPORT, move |_| raw(&answer));
    let error = export(&session).await.err().expect("a circle");
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(!format!("{error:?} {error}").contains(SESSION));
    assert_eq!((host.count(EXPORT), host.count("task.destroy")), (4, 1));
}

#[tokio::test]
async fn an_import_is_confirmed_by_count_end_and_task() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, LARGE).await;
            // A client that closed its side would be seen here as an end.
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(100), socket.read_u8()).await;
            assert!(waiting.is_err(), "the write side stays open");
            task.succeed("<value>OpaqueRef:d</value>");
        })
    });
    let mut import = import(&session, LARGE).await.expect("opens");
    fill(&mut import, LARGE).await.expect("writes");
    import.shutdown().await.expect("a shutdown by a copy loop does no harm");
    assert_eq!(import.written(), LARGE);
    bounded(import.finish()).await.expect("confirmed");

    let head = host.requests().into_iter().find(|r| r.name == IMPORT).expect("the import").head;
    assert!(head.contains(&format!("Content-Length: {LARGE}\r\n")), "{head}");
    assert!(!head.contains("Expect") && !head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(host.count("task.destroy"), 1);
}

#[tokio::test]
async fn an_early_200_and_a_clean_end_in_the_middle_is_no_success() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, 4 << 20).await;
            // What arrived is read, so that the end is a FIN and no reset; the rest is taken until the client stops.
            socket.shutdown().await.expect("half closed");
            failed(&task);
            swallow(&mut socket, LARGE).await;
        })
    });
    let mut import = import(&session, LARGE).await.expect("200");
    fill(&mut import, LARGE).await.expect_err("the end is noticed");
    assert!(import.written() < LARGE);
    match bounded(import.finish()).await {
        Err(Error::Transfer { task: ApiError::VdiIoError { .. }, stream }) => {
            assert!(matches!(*stream, Error::Cut { .. }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_500_is_recovered_after_a_reset() {
    for _ in 0..20 {
        let host = Host::start().await;
        let session = host.login().await;
        let task = host.task.clone();
        host.on(IMPORT, move |_| {
            let task = task.clone();
            talk(|socket| async move {
                let mut socket = answered(socket, EARLY_OK).await;
                swallow(&mut socket, 1 << 20).await;
                let socket = answered(socket, b"HTTP/1.1 500 Internal Error\r\n\r\n<html>no such luck</html>").await;
                failed(&task);
                // Closed with bytes unread, which resets the connection.
                drop(socket);
            })
        });
        let mut import = import(&session, LARGE).await.expect("200");
        fill(&mut import, LARGE).await.expect_err("reset");
        match bounded(import.finish()).await {
            Err(Error::Transfer { stream, .. }) => match *stream {
                Error::Http { status, excerpt, .. } => assert_eq!((status, excerpt.as_str()), (500, "no such luck")),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reset_without_a_word_is_a_connection_error_with_the_tasks_reason() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, 1 << 20).await;
            failed(&task);
            reset(socket);
        })
    });
    let mut import = import(&session, LARGE).await.expect("200");
    fill(&mut import, LARGE).await.expect_err("reset");
    match bounded(import.finish()).await {
        Err(Error::Transfer { task: ApiError::VdiIoError { .. }, stream }) => {
            assert!(matches!(*stream, Error::Transport { .. } | Error::Cut { .. }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_that_answers_only_after_the_body_is_waited_for_no_longer_than_it_takes_to_begin() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|mut socket| async move {
            swallow(&mut socket, 8).await;
            task.succeed("");
            answered(socket, EARLY_OK).await;
        })
    });
    let mut import = import(&session, 8).await.expect("not refused");
    import.write_all(&[1; 8]).await.expect("writes");
    bounded(import.finish()).await.expect("confirmed");
}

#[tokio::test]
async fn an_error_inside_the_answer_after_an_early_200_ends_the_writing() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, 1 << 20).await;
            let mut socket = answered(socket, b"HTTP/1.1 500 Internal Error\r\n\r\n<html>SR_FULL</html>").await;
            task.fail(&["SR_BACKEND_FAILURE_44", "", "no space", ""]);
            socket.shutdown().await.expect("half closed");
            swallow(&mut socket, LARGE).await;
        })
    });
    let mut import = import(&session, LARGE).await.expect("200");
    let error = fill(&mut import, LARGE).await.expect_err("refused");
    assert!(error.to_string().contains("HTTP 500"), "{error}");
    let error = bounded(import.finish()).await.expect_err("full");
    assert!(matches!(error.api(), Some(ApiError::SrFull { backend: Some(44), .. })), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn a_whole_import_whose_task_fails_is_a_failure() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, 8).await;
            failed(&task);
        })
    });
    let mut import = import(&session, 8).await.expect("200");
    import.write_all(&[1; 8]).await.expect("writes");
    let error = bounded(import.finish()).await.expect_err("the task knows better");
    assert!(matches!(error.api(), Some(ApiError::VdiIoError { .. })), "{error}");
}

#[tokio::test]
async fn an_import_takes_exactly_what_was_promised() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, LARGE).await;
            failed(&task);
        })
    });
    let mut short = import(&session, 8).await.expect("200");
    short.write_all(&[1; 5]).await.expect("writes");
    let error = short.write_all(&[1; 5]).await.expect_err("too much");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    match bounded(short.finish()).await {
        Err(Error::Transfer { stream, .. }) => {
            assert!(matches!(*stream, Error::NotAtEnd { bytes: 5, length: Some(8) }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_aborted_import_waits_until_the_host_let_go() {
    let host = Host::start().await;
    let session = host.login().await;
    let task = host.task.clone();
    host.on(IMPORT, move |_| {
        let task = task.clone();
        talk(|socket| async move {
            let mut socket = answered(socket, EARLY_OK).await;
            swallow(&mut socket, LARGE).await;
            failed(&task);
        })
    });
    let mut import = import(&session, LARGE).await.expect("200");
    import.write_all(&[1; 5]).await.expect("writes");
    bounded(import.abort()).await;
    assert_eq!(host.names().last().map(String::as_str), Some("task.destroy"));
}

#[tokio::test]
async fn a_stream_uses_the_session_that_is_current() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("session.login_with_password", |_| support::value("OpaqueRef:fresh"));
    host.once("task.create", |_| support::failure(["SESSION_INVALID", SESSION]));
    host.on(EXPORT, |_| raw(EARLY_OK));
    drop(export(&session).await.expect("opens"));
    let head = host.requests().into_iter().find(|r| r.name == EXPORT).expect("the export").head;
    assert!(head.contains("session_id=OpaqueRef:fresh"), "{head}");
}

//! Facts about disk streams, on hosts that answer early, late, twice, elsewhere or not at all.

mod support;

use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use socket2::SockRef;
use support::{EARLY_OK, Host, PATIENCE, SESSION, TASK, in_no_time, raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmferry_disk::transfer::{SocketReader, SocketWriter};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{ApiError, Error, Export, Import, Ref, Retry, Session};

const EXPORT: &str = "GET /export_raw_vdi";
const IMPORT: &str = "PUT /import_raw_vdi";

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
async fn a_qcow2_export_is_asked_for_in_its_format() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on(EXPORT, |_| raw([EARLY_OK, b"QFI\xfb"].concat()));
    let base = Ref::new("OpaqueRef:ba5e0000-0000-0000-0000-000000000001");
    let mut export = bounded(session.export_qcow2(&vdi(), Some(&base), "a label")).await.expect("opens");
    let mut body = Vec::new();
    bounded(export.read_to_end(&mut body)).await.expect("reads");
    assert_eq!(body, b"QFI\xfb");
    let requests = host.requests();
    let head = &requests.iter().find(|r| r.name == EXPORT).expect("the export").head;
    assert!(head.contains("format=qcow2&vdi=") && head.contains(&format!("&base={base}")), "{head}");
}

#[tokio::test]
async fn an_export_whose_task_fails_is_a_failure_though_its_data_ended_well() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on(EXPORT, |_| raw([EARLY_OK, b"conectix"].concat()));
    let mut export = export(&session).await.expect("opens");
    export.read_to_end(&mut Vec::new()).await.expect("looks complete");
    host.task.fail_with_io_error();
    let error = bounded(export.finish()).await.expect_err("the task knows better");
    assert!(matches!(error.api(), Some(ApiError::VdiIoError { .. })), "{error}");
}

#[tokio::test]
async fn an_error_inside_the_body_of_an_early_200_is_the_error_it_is() {
    let (host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.task.fail(&["VDI_IN_USE", "OpaqueRef:d", "export"]);
        wire.say(EARLY_OK).await;
        // In pieces, so that the first bytes alone do not tell.
        for piece in ["HT", "TP/1.1 500 Internal Error\r\n", "\r\n<html>VDI_IN_USE: [ OpaqueRef:d ]</html>"] {
            wire.say(piece).await;
        }
    })
    .await;
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
    let go_on = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go_on);
    let (_host, session) = Host::streaming(EXPORT, move |mut wire| {
        let wait = Arc::clone(&wait);
        async move {
            wire.say(EARLY_OK).await;
            wire.say([7; 1000]).await;
            wait.notified().await;
            wire.task.fail_with_io_error();
            wire.reset();
        }
    })
    .await;
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
    let (host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        while wire.try_say([7; 1000]).await {}
        wire.task.fail_with_io_error();
    })
    .await;
    let mut export = export(&session).await.expect("opens");
    bounded(export.read_exact(&mut [0; 1000])).await.expect("the first bytes");
    bounded(export.abort()).await;
    assert_eq!(host.names().last().map(String::as_str), Some("task.destroy"));
}

#[tokio::test]
async fn an_export_that_is_finished_too_early_is_an_error() {
    let (_host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        while wire.try_say([7; 1000]).await {}
        wire.task.fail_with_io_error();
    })
    .await;
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
    host.task.fail_with_io_error();
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
    let closed = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&closed);
    let (host, session) = Host::streaming(EXPORT, move |mut wire| {
        let notify = Arc::clone(&notify);
        async move {
            wire.say(EARLY_OK).await;
            wire.until_closed().await;
            notify.notify_one();
        }
    })
    .await;
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
    other.on_stream(IMPORT, move |mut wire| {
        let (task, seen) = (task.clone(), Arc::clone(&seen));
        async move {
            wire.say(EARLY_OK).await;
            *seen.lock().expect("not poisoned") = wire.swallow(8).await;
            task.succeed("");
        }
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
    let (host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(LARGE).await;
        // A client that closed its side would be seen here as an end.
        assert!(!wire.is_closed_by_client().await, "the write side stays open");
        wire.task.succeed("<value>OpaqueRef:d</value>");
    })
    .await;
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
async fn a_chunked_import_has_no_length_and_ends_with_what_the_host_takes_for_its_end() {
    // An extent of two bytes at byte 512, and the end marker.
    const BODY: &[u8] = &[0, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        assert_eq!(wire.swallow(BODY.len() as u64).await, BODY);
        assert!(!wire.is_closed_by_client().await, "the write side stays open");
        wire.task.succeed("<value>OpaqueRef:d</value>");
    })
    .await;
    let mut import = bounded(session.import_chunked(&vdi(), "a label")).await.expect("opens");
    import.write_all(BODY).await.expect("writes");
    import.flush().await.expect("flushes");
    assert_eq!((import.length(), import.written()), (None, BODY.len() as u64));
    bounded(import.finish()).await.expect("confirmed");

    let head = host.requests().into_iter().find(|r| r.name == IMPORT).expect("the import").head;
    assert!(head.contains("format=raw&chunked=true&vdi="), "{head}");
    assert!(!head.contains("Content-Length") && !head.contains("Transfer-Encoding"), "{head}");
}

#[tokio::test]
async fn an_early_200_and_a_clean_end_in_the_middle_is_no_success() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(4 << 20).await;
        // What arrived is read, so that the end is a FIN and no reset; the rest is taken until the client stops.
        wire.half_close().await;
        wire.task.fail_with_io_error();
        wire.swallow(LARGE).await;
    })
    .await;
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
        let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
            wire.say(EARLY_OK).await;
            wire.swallow(1 << 20).await;
            wire.say("HTTP/1.1 500 Internal Error\r\n\r\n<html>no such luck</html>").await;
            wire.task.fail_with_io_error();
            // Dropped with bytes unread, which resets the connection.
        })
        .await;
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
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(1 << 20).await;
        wire.task.fail_with_io_error();
        wire.reset();
    })
    .await;
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
    let (host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.swallow(8).await;
        wire.task.succeed("");
        wire.say(EARLY_OK).await;
    })
    .await;
    let opening = tokio::spawn(async move { session.import_vdi(&vdi(), 8, "import").await });
    bounded(host.asked_for(IMPORT)).await;
    let mut import = in_no_time(opening).await.expect("no panic").expect("not refused");
    import.write_all(&[1; 8]).await.expect("writes");
    bounded(import.finish()).await.expect("confirmed");
}

#[tokio::test]
async fn an_error_inside_the_answer_after_an_early_200_ends_the_writing() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(1 << 20).await;
        wire.say("HTTP/1.1 500 Internal Error\r\n\r\n<html>SR_FULL</html>").await;
        wire.task.fail(&["SR_BACKEND_FAILURE_44", "", "no space", ""]);
        wire.half_close().await;
        wire.swallow(LARGE).await;
    })
    .await;
    let mut import = import(&session, LARGE).await.expect("200");
    let error = fill(&mut import, LARGE).await.expect_err("refused");
    assert!(error.to_string().contains("HTTP 500"), "{error}");
    let error = bounded(import.finish()).await.expect_err("full");
    assert!(matches!(error.api(), Some(ApiError::SrFull { backend: Some(44), .. })), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn a_whole_import_whose_task_fails_is_a_failure() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(8).await;
        wire.task.fail_with_io_error();
    })
    .await;
    let mut import = import(&session, 8).await.expect("200");
    import.write_all(&[1; 8]).await.expect("writes");
    let error = bounded(import.finish()).await.expect_err("the task knows better");
    assert!(matches!(error.api(), Some(ApiError::VdiIoError { .. })), "{error}");
}

#[tokio::test]
async fn an_import_takes_exactly_what_was_promised() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(LARGE).await;
        wire.task.fail_with_io_error();
    })
    .await;
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
    let (host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(LARGE).await;
        wire.task.fail_with_io_error();
    })
    .await;
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

/// Takes at most `most` bytes off a socket that an export lends.
async fn read_call(export: &mut Export, most: usize) -> std::io::Result<Vec<u8>> {
    let mut taken = vec![0; most];
    let mut call = |tcp: &TcpStream| (&*SockRef::from(tcp)).read(&mut taken);
    let n = bounded(std::future::poll_fn(|cx| Pin::new(&mut *export).poll_read_call(cx, &mut call))).await?;
    taken.truncate(n);
    Ok(taken)
}

/// Puts some of `bytes` onto a socket that an import lends.
async fn write_call(import: &mut Import, bytes: &[u8]) -> std::io::Result<usize> {
    let mut call = |tcp: &TcpStream| (&*SockRef::from(tcp)).write(bytes);
    bounded(std::future::poll_fn(|cx| Pin::new(&mut *import).poll_write_call(cx, &mut call))).await
}

#[tokio::test]
async fn an_export_lends_its_socket_behind_what_was_read_ahead_and_counts_what_is_taken() {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go_on);
    let (_host, session) = Host::streaming(EXPORT, move |mut wire| {
        let wait = Arc::clone(&wait);
        async move {
            wire.say([EARLY_OK, b"ahead of it, "].concat()).await;
            wait.notified().await;
            wire.say("the socket's own").await;
            wire.task.succeed("");
        }
    })
    .await;
    let mut export = export(&session).await.expect("opens");
    assert!(export.lends_socket());
    let refused = read_call(&mut export, 100).await.expect_err("not before data is told from an error");
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);

    let mut first = [0; 5];
    bounded(export.read_exact(&mut first)).await.expect("reads");
    if export.read_ahead() > 0 {
        read_call(&mut export, 100).await.expect_err("not before what was read ahead");
    }
    let mut rest = vec![0; b" of it, ".len()];
    bounded(export.read_exact(&mut rest)).await.expect("reads");
    assert_eq!(export.read_ahead(), 0);

    go_on.notify_one();
    let mut taken = Vec::new();
    while taken.last() != Some(&b'n') {
        taken.extend(read_call(&mut export, 7).await.expect("the socket has it"));
    }
    assert_eq!(taken, b"the socket's own");
    assert_eq!(read_call(&mut export, 7).await.expect("the end"), b"");
    assert_eq!(export.received(), (b"ahead of it, ".len() + taken.len()) as u64);
    bounded(export.finish()).await.expect("confirmed");
}

#[tokio::test]
async fn a_reset_is_the_exports_failure_also_when_a_lent_socket_meets_it() {
    let (_host, session) = Host::streaming(EXPORT, |mut wire| async move {
        wire.say([EARLY_OK, b"data"].concat()).await;
        wire.task.fail_with_io_error();
        wire.reset();
    })
    .await;
    let mut export = export(&session).await.expect("opens");
    bounded(export.read_exact(&mut [0; 4])).await.expect("reads");
    read_call(&mut export, 7).await.expect_err("reset");
    match bounded(export.finish()).await {
        Err(Error::Transfer { task: ApiError::VdiIoError { .. }, stream }) => {
            assert!(matches!(*stream, Error::Transport { .. }), "{stream}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_import_lends_its_socket_counts_what_is_put_there_and_still_hears_a_500() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(8).await;
        wire.task.succeed("");
    })
    .await;
    let mut whole = import(&session, 8).await.expect("opens");
    assert!(whole.lends_socket());
    let mut put = 0;
    while put < 8 {
        put += write_call(&mut whole, &b"whole it"[put..]).await.expect("writes");
    }
    assert_eq!(whole.written(), 8);
    bounded(whole.finish()).await.expect("confirmed");

    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(1 << 20).await;
        wire.task.fail_with_io_error();
        wire.say("HTTP/1.1 500 Internal Error\r\n\r\n<html>no such luck</html>").await;
    })
    .await;
    let mut refused = import(&session, LARGE).await.expect("200");
    let block = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = write_call(&mut refused, &block).await {
            break error;
        }
    };
    assert!(error.to_string().contains("no such luck"), "{error}");
    let unmoved = write_call(&mut refused, &block).await.expect_err("it stays so");
    assert!(unmoved.to_string().contains("no such luck"), "{unmoved}");
    let error = bounded(refused.finish()).await.expect_err("refused");
    assert!(matches!(error, Error::Transfer { task: ApiError::VdiIoError { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_call_that_the_kernel_refuses_leaves_a_stream_as_it_was() {
    let (_host, session) = Host::streaming(IMPORT, |mut wire| async move {
        wire.say(EARLY_OK).await;
        wire.swallow(8).await;
        wire.task.succeed("");
    })
    .await;
    let mut import = import(&session, 8).await.expect("opens");
    let mut refused = |_: &TcpStream| Err(std::io::ErrorKind::Unsupported.into());
    let error = bounded(std::future::poll_fn(|cx| Pin::new(&mut import).poll_write_call(cx, &mut refused))).await;
    assert_eq!(error.expect_err("refused").kind(), std::io::ErrorKind::Unsupported);
    import.write_all(&[1; 8]).await.expect("as if nothing had been");
    bounded(import.finish()).await.expect("confirmed");
}
